"""JSON that comes back as it went, and how faulty JSON is answered."""

import dataclasses
import json

import pytest

from visuomotor.config import DiffusionConfig, Feature
from visuomotor.errors import ConfigError
from visuomotor.recipe import Recipe, TrainingConfig
from visuomotor.serialization import from_json, to_json

IMAGE = Feature("VISUAL", (3, 96, 96))
STATE = Feature("STATE", (2,))

RECIPES = {
    "the defaults": Recipe(DiffusionConfig(), TrainingConfig()),
    "no field at its default": Recipe(
        DiffusionConfig(
            input_features={"observation.image": IMAGE, "observation.state": STATE},
            output_features={"action": Feature("ACTION", (2,))},
            n_obs_steps=3,
            horizon=32,
            n_action_steps=4,
            normalization_mapping={"VISUAL": "IDENTITY", "ACTION": "MEAN_STD"},
            drop_n_last_frames=0,
            vision_backbone="resnet34",
            backbone_width=32,
            backbone_stages=2,
            resize_shape=(80, 72),
            crop_ratio=0.9,
            crop_shape=None,
            crop_is_random=False,
            use_group_norm=False,
            spatial_softmax_num_keypoints=8,
            use_separate_rgb_encoder_per_camera=True,
            denoiser="transformer",
            transformer_dim=64,
            transformer_layers=2,
            transformer_heads=8,
            down_dims=(24, 48),
            kernel_size=3,
            n_groups=6,
            diffusion_step_embed_dim=32,
            use_film_scale_modulation=False,
            gradient_checkpointing=True,
            noise_scheduler_type="DDIM",
            ddim_eta=0.2,
            timesteps=(47, 40, 31, 22, 13, 8, 2),
            warm_start=0.5,
            num_train_timesteps=50,
            beta_schedule="linear",
            beta_start=1e-5,
            beta_end=0.1,
            prediction_type="sample",
            clip_sample=False,
            clip_sample_range=2.5,
            num_inference_steps=7,
            do_mask_loss_for_padding=True,
        ),
        TrainingConfig(
            observations=("observation.state",), optimizer_lr=1 / 3, augmentation="pusht-mirror", device="cpu"
        ),
    ),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_json_brings_back_the_same_config(recipe):
    text = json.dumps(to_json(recipe), allow_nan=False)
    assert from_json(Recipe, json.loads(text), "config.json") == recipe


def test_the_second_recipe_above_leaves_no_field_of_the_policy_at_its_default():
    mine, default = RECIPES["no field at its default"].policy, DiffusionConfig()
    same = [spec.name for spec in dataclasses.fields(mine) if getattr(mine, spec.name) == getattr(default, spec.name)]
    assert same == ["pretrained_backbone_weights"]  # only goes with the full ResNet


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"policy": {"horizn": 16}},
            "run/config.json: policy.horizn: expected a known field, got an unknown one; did you mean horizon?",
        ),
        (
            {"traning": {}},
            "run/config.json: traning: expected a known field, got an unknown one; did you mean training?",
        ),
        ({"training": {"steps": "many"}}, "run/config.json: training.steps: expected a valid integer"),
        ({"training": {"steps": 0}}, "run/config.json: steps: expected 1 or more, got 0"),
        ({"policy": {"vision_backbone": "vgg"}}, "run/config.json: policy.vision_backbone: expected 'resnet18' or"),
        (
            {"policy": {"input_features": {"observation.state": {"type": "STATE", "shap": [2]}}}},
            "run/config.json: policy.input_features.observation.state.shap: expected a known field, got an "
            "unknown one; did you mean shape?",
        ),
        ({"policy": None}, "run/config.json: policy: expected "),
    ],
)
def test_a_faulty_file_is_answered_with_its_name_and_the_field(change, message):
    content = to_json(Recipe(DiffusionConfig(), TrainingConfig()))
    for name, value in change.items():
        known = content.get(name)
        content[name] = known | value if isinstance(known, dict) and isinstance(value, dict) else value
    with pytest.raises(ConfigError) as caught:
        from_json(Recipe, content, "run/config.json")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_missing_part_is_named():
    with pytest.raises(ConfigError, match=r"^config\.json: training: expected a value, got none; add the field"):
        from_json(Recipe, {"policy": {}}, "config.json")


def test_anything_but_an_object_is_refused():
    with pytest.raises(ConfigError, match=r"^config\.json: the whole: expected "):
        from_json(Recipe, [1, 2], "config.json")
