"""Named recipes: each a function that returns a config. Measured results stand in the README."""

from collections.abc import Callable
from dataclasses import replace

from visuomotor.config import DPM, DiffusionConfig, nearest
from visuomotor.errors import ConfigError, mismatch
from visuomotor.recipe import Recipe, TrainingConfig

KEYPOINTS = ("observation.state", "observation.environment_state")
IMAGE = ("observation.image", "observation.state")


def pusht_image() -> Recipe:
    """Push-T from images: the published recipe, 263M parameters, for a GPU."""
    return Recipe(DiffusionConfig(), TrainingConfig(observations=IMAGE))


def pusht_keypoints() -> Recipe:
    """Push-T from the block's corners: the published recipe's U-Net, for a GPU."""
    return Recipe(DiffusionConfig(crop_shape=None), TrainingConfig(observations=KEYPOINTS, batch_size=256))


def pusht_image_small() -> Recipe:
    """Push-T from images on two processor cores: half-width ResNet up to stride 16, small U-Net."""
    policy = DiffusionConfig(
        backbone_width=32,
        backbone_stages=3,
        down_dims=(64, 128, 256),
        noise_scheduler_type=DPM,
        num_inference_steps=4,
    )
    training = TrainingConfig(
        steps=13_500,
        batch_size=64,
        noise_draws=3,
        observations=IMAGE,
        augmentation="pusht-mirror",
        optimizer_lr=5e-4,
        grad_clip_norm=1.0,
        trunk_precision="bfloat16",
        save_every=500,
    )
    return Recipe(policy, training)


def pusht_keypoints_small() -> Recipe:
    """Push-T from the block's corners on two processor cores: 4.5M parameters."""
    policy = DiffusionConfig(
        crop_shape=None,
        down_dims=(64, 128, 256),
        noise_scheduler_type=DPM,
        num_inference_steps=8,
        do_mask_loss_for_padding=True,
    )
    training = TrainingConfig(
        steps=28_000,
        batch_size=256,
        observations=KEYPOINTS,
        augmentation="pusht-mirror",
        optimizer_lr=1e-3,
        grad_clip_norm=1.0,
        save_every=1_000,
    )
    return Recipe(policy, training)


def pusht_keypoints_velocity() -> Recipe:
    """`pusht-keypoints-small` from one observed step, predicting the velocity; LeRobot has no such policies."""
    recipe = pusht_keypoints_small()
    policy = replace(recipe.policy, n_obs_steps=1, prediction_type="v_prediction")
    return Recipe(policy, replace(recipe.training, steps=13_000))  # more learn 206 episodes by heart


def pusht_keypoints_aligned() -> Recipe:
    """`pusht-keypoints-velocity` for demonstrations that `visuomotor align` has moved: they end on the target."""
    recipe = pusht_keypoints_velocity()
    # Whoever stands still at their end does right, and the states near the target are there alone.
    policy = replace(recipe.policy, drop_n_last_frames=0, do_mask_loss_for_padding=False)
    return Recipe(policy, replace(recipe.training, steps=13_500, batch_size=128))


def arm() -> Recipe:
    """A real arm at 30 frames/s: several cameras, ResNet18 from ImageNet's weights (hub); for a GPU."""
    policy = DiffusionConfig(
        horizon=48,  # 1.6 s predicted and 0.8 s executed, as the published recipe at 10 Hz
        n_action_steps=24,
        drop_n_last_frames=23,  # horizon - n_action_steps - n_obs_steps + 1: no executed action is padding
        resize_shape=(240, 320),
        crop_ratio=0.9,
        use_separate_rgb_encoder_per_camera=True,
        pretrained_backbone_weights="timm/resnet18.tv_in1k",
        use_group_norm=False,  # they were trained with BatchNorm
        down_dims=(256, 512, 1024),
        noise_scheduler_type="DDIM",
        num_inference_steps=10,
    )
    training = TrainingConfig(
        steps=50_000, validation_episodes=0.1, trunk_precision="bfloat16", save_every=2_500, validate_every=2_500
    )
    return Recipe(policy, training)


def demo() -> Recipe:
    """`pusht-keypoints-small`, shortened to a few minutes: what `visuomotor demo` trains."""
    recipe = pusht_keypoints_small()
    sampler = {"noise_scheduler_type": "DDIM", "num_inference_steps": 16}
    policy = replace(recipe.policy, prediction_type="sample", **sampler)  # learns faster at first: docs/experiments.md
    shorter = replace(recipe.training, steps=4_000, batch_size=128, scheduler_warmup_steps=200)
    return Recipe(policy, shorter)


def debug() -> Recipe:
    """Two steps of a tiny policy, to see that everything runs."""
    policy = DiffusionConfig(crop_shape=None, down_dims=(16, 32), n_groups=4, backbone_width=16, backbone_stages=2)
    training = TrainingConfig(steps=2, batch_size=4, scheduler_warmup_steps=1, save_every=1, log_every=1)
    return Recipe(replace(policy, noise_scheduler_type="DDIM", num_inference_steps=2), training)


PRESETS: dict[str, Callable[[], Recipe]] = {
    "pusht-image": pusht_image,
    "pusht-keypoints": pusht_keypoints,
    "pusht-image-small": pusht_image_small,
    "pusht-keypoints-small": pusht_keypoints_small,
    "pusht-keypoints-velocity": pusht_keypoints_velocity,
    "pusht-keypoints-aligned": pusht_keypoints_aligned,
    "arm": arm,
    "demo": demo,
    "debug": debug,
}

PRESET_OF = {
    "pusht-keypoints-improved": "pusht-keypoints-small",
    "pusht-keypoints-improved-2": "pusht-keypoints-velocity",
    "pusht-image-improved": "pusht-image-small",
}
"""Of the policies that ship and are not named like one, how they were trained."""


def preset(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        ConfigError: There is none; the nearest is named.
    """
    if name not in PRESETS:
        advice = f"did you mean {nearest(name, PRESETS)}?"
        raise ConfigError(mismatch("preset", f"one of {list(PRESETS)}", repr(name), advice))
    return PRESETS[name]()
