"""Settings: what is refused and with which words."""

import dataclasses

import pytest

from visuomotor.config import DiffusionConfig, Feature, nearest
from visuomotor.errors import ConfigError
from visuomotor.recipe import TrainingConfig

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
            {"input_features": {"observation.a": IMAGE, "observation.b": Feature("VISUAL", (1, 96, 96))}},
            "observation.b: expected (3, 96, 96), got (1, 96, 96); all cameras need the same number of channels",
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
        ({"seed": -1}, "seed: expected 0 or more, got -1"),
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
