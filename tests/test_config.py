"""Settings: what is refused and with which words, and JSON that comes back as it went."""

import dataclasses
import json

import pytest

from visuomotor.config import DiffusionConfig, Feature, from_json, nearest, to_json
from visuomotor.errors import ConfigError
from visuomotor.recipe import Recipe, TrainingConfig

IMAGE = Feature("VISUAL", (3, 96, 96))
STATE = Feature("STATE", (2,))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"n_action_steps": 16},
            "n_action_steps: expected 1 to 15 = horizon - n_obs_steps + 1, got 16; predictions start n_obs_steps - 1 "
            "in the past: execute fewer, or predict more (horizon)",
        ),
        ({"n_action_steps": 0}, "n_action_steps: expected 1 to 15"),
        ({"n_obs_steps": 0}, "n_obs_steps: expected 1 or more, got 0; observe at least the present"),
        (
            {"horizon": 12},
            "horizon: expected a multiple of 8 = 2 ** 3 stages of down_dims, got 12; change horizon, "
            "or use fewer stages",
        ),
        ({"horizon": 0}, "horizon: expected a multiple of 8"),
        ({"down_dims": ()}, "down_dims: expected one stage or more, got ()"),
        ({"down_dims": (64, 100)}, "n_groups: expected a divisor of every one of down_dims (64, 100), got 8"),
        ({"n_groups": 0}, "n_groups: expected a divisor"),
        ({"drop_n_last_frames": -1}, "drop_n_last_frames: expected 0 or more, got -1"),
        ({"kernel_size": 4}, "kernel_size: expected an odd number, got 4; use 3 or 5"),
        ({"diffusion_step_embed_dim": 7}, "diffusion_step_embed_dim: expected an even number from 4 on, got 7"),
        ({"diffusion_step_embed_dim": 2}, "diffusion_step_embed_dim: expected an even number from 4 on, got 2"),
        ({"crop_ratio": 0.0}, "crop_ratio: expected a share in (0, 1], got 0.0; 1 means no crop"),
        ({"crop_ratio": 1.5}, "crop_ratio: expected a share in (0, 1], got 1.5"),
        ({"num_train_timesteps": 1}, "num_train_timesteps: expected 2 or more, got 1"),
        ({"num_inference_steps": 0}, "num_inference_steps: expected 1 to num_train_timesteps = 100, got 0"),
        ({"num_inference_steps": 101}, "num_inference_steps: expected 1 to num_train_timesteps = 100, got 101"),
        ({"beta_start": 0.0}, "beta_start, beta_end: expected 0 < beta_start <= beta_end < 1, got (0.0, 0.02)"),
        ({"beta_start": 0.5}, "beta_start, beta_end: expected 0 < beta_start <= beta_end < 1, got (0.5, 0.02)"),
        ({"beta_end": 1.0}, "beta_start, beta_end: expected"),
        ({"clip_sample_range": 0.0}, "clip_sample_range: expected a positive number, got 0.0"),
        ({"backbone_stages": 5}, "backbone_stages: expected 1 to 4, got 5; a ResNet has 4"),
        ({"backbone_stages": 0}, "backbone_stages: expected 1 to 4, got 0"),
        ({"backbone_width": 24}, "backbone_width: expected a multiple of 16, got 24"),
        ({"backbone_width": 0}, "backbone_width: expected a multiple of 16, got 0"),
        ({"spatial_softmax_num_keypoints": 0}, "spatial_softmax_num_keypoints: expected 1 or more, got 0"),
        (
            {"pretrained_backbone_weights": "timm/resnet18.tv_in1k", "backbone_width": 32},
            "pretrained_backbone_weights: expected None with a backbone of another width or depth",
        ),
        (
            {"pretrained_backbone_weights": "timm/resnet18.tv_in1k", "backbone_stages": 3},
            "pretrained_backbone_weights: expected None with a backbone of another width or depth",
        ),
        ({"crop_shape": (0, 84)}, "crop_shape: expected a positive (H, W), got (0, 84); or None to leave it out"),
        ({"resize_shape": (96, -1)}, "resize_shape: expected a positive (H, W), got (96, -1)"),
        (
            {"vision_backbone": "resnet19"},
            "vision_backbone: expected one of ['resnet18', 'resnet34'], got 'resnet19'; did you mean resnet18?",
        ),
        (
            {"noise_scheduler_type": "DIMM"},
            "noise_scheduler_type: expected one of ['DDPM', 'DDIM', 'DPMSolverMultistep', 'FlowMatchEuler'], "
            "got 'DIMM'; did you mean DDIM?",
        ),
        (
            {"noise_scheduler_type": "FlowMatchEuler"},
            "prediction_type: expected v_prediction or sample with FlowMatchEuler, got epsilon; v_prediction is",
        ),
        ({"noise_scheduler_type": "DDIM", "ddim_eta": 1}, None),
        ({"noise_scheduler_type": "DDIM", "num_inference_steps": 2, "timesteps": (90, 42)}, None),
        (
            {"noise_scheduler_type": "DDIM", "num_inference_steps": 3, "timesteps": (90, 42)},
            "timesteps: expected num_inference_steps = 3 falling numbers below 100, with DDIM, got (90, 42)",
        ),
        (
            {"noise_scheduler_type": "DDIM", "num_inference_steps": 2, "timesteps": (42, 90)},
            "timesteps: expected num_inference_steps = 2 falling numbers below 100, with DDIM, got (42, 90)",
        ),
        ({"num_inference_steps": 2, "timesteps": (90, 42)}, "timesteps: expected num_inference_steps = 2 falling"),
        ({"noise_scheduler_type": "DDIM", "ddim_eta": -0.1}, "ddim_eta: expected 0 to 1, got -0.1; 0 adds no noise"),
        (
            {"ddim_eta": 0.5},
            "ddim_eta: expected 0 with any sampler but DDIM, got 0.5; set noise_scheduler_type to DDIM",
        ),
        ({"warm_start": 0.0}, "warm_start: expected a share in (0, 1], got 0.0; 1 starts from noise"),
        ({"denoiser": "dit"}, "denoiser: expected one of ['unet', 'transformer'], got 'dit'; did you mean unet?"),
        ({"denoiser": "transformer", "horizon": 9}, None),  # nothing halves its time axis
        ({"denoiser": "transformer", "horizon": 0}, "horizon: expected 1 or more, got 0; 16 is usual"),
        ({"transformer_dim": 255}, "transformer_dim: expected an even number from 4 on, got 255; use 256"),
        ({"transformer_layers": 0}, "transformer_layers: expected 1 to 100, got 0; use 6"),
        ({"transformer_layers": 101}, "transformer_layers: expected 1 to 100, got 101"),
        ({"transformer_heads": 3}, "transformer_heads: expected a divisor of transformer_dim 256, got 3; 64 channels"),
        ({"transformer_heads": 0}, "transformer_heads: expected a divisor of transformer_dim 256, got 0"),
        ({"beta_schedule": "cosine"}, "beta_schedule: expected one of ['squaredcos_cap_v2', 'linear'], got 'cosine'"),
        (
            {"prediction_type": "noise"},
            "prediction_type: expected one of ['epsilon', 'sample', 'v_prediction'], got 'noise'; did you mean sample?",
        ),
        (
            {"input_features": {"observation.image": Feature("VISUAL", (3, 64, 64))}},
            "crop_shape: expected a crop that fits the image, got a crop of (84, 84) from observation.image of "
            "(64, 64)",
        ),
        (
            {"input_features": {"observation.image": IMAGE}, "resize_shape": (48, 48), "crop_ratio": 0.5},
            None,  # the crop follows from the resized image, not from crop_shape
        ),
        (
            {"input_features": {"observation.image": Feature("VISUAL", (96, 96))}},
            "observation.image: expected an image (C, H, W), got (96, 96); move the channels first",
        ),
        (
            {"input_features": {"observation.a": IMAGE, "observation.b": Feature("VISUAL", (3, 96, 128))}},
            "observation.b: expected (3, 96, 96), got (3, 96, 128); all cameras share one shape",
        ),
        (
            {"input_features": {"action": Feature("ACTION", (2,))}},
            "action: expected a camera, observation.state or observation.environment_state, got ACTION; join",
        ),
        (
            {"input_features": {"observation.effort": Feature("STATE", (2,))}},
            "observation.effort: expected a camera, observation.state or observation.environment_state, got STATE",
        ),
        (
            {"output_features": {"actions": Feature("ACTION", (2,))}},
            "output_features: expected exactly `action`, got ['actions']; rename it",
        ),
    ],
)
def test_impossible_policies_are_refused_with_the_reason(settings, message):
    if message is None:
        DiffusionConfig(**settings)
        return
    with pytest.raises(ConfigError) as caught:
        DiffusionConfig(**settings)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *[
            ({name: 0}, f"{name}: expected 1 or more, got 0; choose a positive number")
            for name in ("steps", "batch_size", "noise_draws", "save_every", "keep_checkpoints", "log_every")
        ],
        ({"optimizer_lr": 0.0}, "optimizer_lr: expected a positive number, got 0.0; 1e-4 is the usual one"),
        ({"grad_clip_norm": -1.0}, "grad_clip_norm: expected a positive number, got -1.0"),
        ({"ema_max_decay": 1.0}, "ema_max_decay: expected a number in [0, 1), got 1.0"),
        ({"optimizer_betas": (0.9, 1.0)}, "optimizer_betas: expected two numbers in [0, 1), got (0.9, 1.0)"),
        ({"optimizer_eps": 0.0}, "optimizer_eps: expected a positive number, got 0.0"),
        ({"optimizer_weight_decay": -1.0}, "optimizer_weight_decay: expected 0 or more, got -1.0"),
        ({"scheduler_warmup_steps": -1}, "scheduler_warmup_steps: expected 0 or more, got -1"),
        ({"threads": -1}, "threads: expected 0 or more, got -1; 0 leaves torch's choice"),
        (
            {"augmentation": "pusht_mirror"},
            "augmentation: expected one of ['none', 'pusht-mirror'], got 'pusht_mirror'; did you mean pusht-mirror?",
        ),
    ],
)
def test_impossible_trainings_are_refused_with_the_reason(settings, message):
    with pytest.raises(ConfigError) as caught:
        TrainingConfig(**settings)
    assert str(caught.value).startswith(message)


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


def test_configs_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DiffusionConfig().horizon = 8  # ty: ignore[invalid-assignment]


def test_nearest_is_the_most_similar_name():
    assert nearest("pusht-imag-small", ["debug", "pusht-image", "pusht-image-small"]) == "pusht-image-small"


def test_windows_of_the_published_recipe():
    config = DiffusionConfig(input_features={"observation.state": STATE})
    assert config.observation_steps == [-1, 0]
    assert config.action_steps == list(range(-1, 15))
    windows = config.delta_timestamps(fps=10)
    assert windows["observation.state"] == [-0.1, 0.0]
    assert (len(windows["action"]), windows["action"][0], windows["action"][-1]) == (16, -0.1, 1.4)


@pytest.mark.parametrize(
    ("settings", "crop"),
    [
        ({}, (84, 84)),
        ({"crop_shape": None}, None),
        ({"resize_shape": (60, 80)}, None),
        ({"resize_shape": (60, 80), "crop_ratio": 0.9}, (54, 72)),
    ],
)
def test_the_crop_in_force(settings, crop):
    assert DiffusionConfig(**settings).crop == crop
