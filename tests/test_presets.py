from dataclasses import replace

import pytest
import torch

from visuomotor.config import Feature
from visuomotor.errors import ConfigError
from visuomotor.policy.diffusion import DiffusionModel
from visuomotor.presets import PRESETS, preset
from visuomotor.recipe import Recipe
from visuomotor.serialization import from_json, to_json


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_recipe_that_survives_json(name: str) -> None:
    recipe = preset(name)
    assert from_json(Recipe, to_json(recipe), name) == recipe


def test_the_published_recipe() -> None:
    policy, training = preset("pusht-image").policy, preset("pusht-image").training
    assert (policy.horizon, policy.n_obs_steps, policy.n_action_steps, policy.drop_n_last_frames) == (16, 2, 8, 7)
    assert (policy.crop_shape, policy.use_group_norm, policy.pretrained_backbone_weights) == ((84, 84), True, None)
    assert (policy.down_dims, policy.spatial_softmax_num_keypoints) == ((512, 1024, 2048), 32)
    assert (policy.noise_scheduler_type, policy.num_train_timesteps, policy.prediction_type) == ("DDPM", 100, "epsilon")
    assert (training.batch_size, training.optimizer_lr, training.steps) == (64, 1e-4, 200_000)
    assert training.augmentation == "none"


def test_the_arm() -> None:
    """At 30 frames/s the spans of the published recipe at 10, and ImageNet's weights with the BatchNorm they need."""
    policy, training = preset("arm").policy, preset("arm").training
    published = preset("pusht-image").policy
    assert (policy.horizon / 30, policy.n_action_steps / 30) == (published.horizon / 10, published.n_action_steps / 10)
    assert policy.drop_n_last_frames == policy.horizon - policy.n_action_steps - policy.n_obs_steps + 1
    assert (policy.resize_shape, policy.crop) == ((240, 320), (216, 288))
    assert (policy.pretrained_backbone_weights, policy.use_group_norm) == ("timm/resnet18.tv_in1k", False)
    assert policy.use_separate_rgb_encoder_per_camera
    assert training.observations is None and 0 < training.validation_episodes < 1


@pytest.mark.parametrize(("cameras", "joints"), [(1, 6), (2, 7), (3, 14)])
def test_the_arm_takes_any_cameras_and_joints(cameras: int, joints: int) -> None:
    sizes = [(3, 480, 640), (3, 240, 424), (3, 720, 1280)]
    features = {f"observation.images.{number}": Feature("VISUAL", sizes[number]) for number in range(cameras)}
    features["observation.state"] = Feature("STATE", (joints,))
    config = replace(
        preset("arm").policy, input_features=features, output_features={"action": Feature("ACTION", (joints,))}
    )
    with torch.device("meta"):
        model = DiffusionModel(config, pretrained=False)
    assert len(model.rgb_encoder) == cameras
    numbers = sum(parameter.numel() for parameter in model.parameters())
    assert 60e6 < numbers < 130e6


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"got 'pusht-imag-small'; did you mean pusht-image-small\?"):
        preset("pusht-imag-small")
