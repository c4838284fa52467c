"""Policies small enough that a test takes milliseconds, with data of the right shapes."""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visuomotor.config import DiffusionConfig, Feature
from visuomotor.policy.diffusion import DiffusionPolicy

SMALL = DiffusionConfig(
    horizon=8,
    n_action_steps=4,
    crop_shape=(24, 28),
    backbone_width=16,
    backbone_stages=2,
    spatial_softmax_num_keypoints=4,
    down_dims=(16, 32),
    kernel_size=3,
    n_groups=4,
    diffusion_step_embed_dim=16,
    num_train_timesteps=20,
)


def small_config(cameras: int = 0, state: int = 2, environment: int = 0, **changes: Any) -> DiffusionConfig:
    """A small policy's config: cameras of (3, 32, 40) and states of the given sizes, 0 for none."""
    inputs = {f"observation.images.{'abc'[i]}": Feature("VISUAL", (3, 32, 40)) for i in range(cameras)}
    if state:
        inputs["observation.state"] = Feature("STATE", (state,))
    if environment:
        inputs["observation.environment_state"] = Feature("ENV", (environment,))
    outputs = {"action": Feature("ACTION", (3,))}
    return dataclasses.replace(SMALL, **({"input_features": inputs, "output_features": outputs} | changes))


def small_statistics(config: DiffusionConfig) -> dict[str, dict[str, np.ndarray]]:
    """Statistics that move and stretch every dimension differently."""
    random = np.random.default_rng(0)
    statistics = {}
    for name, feature in (config.input_features | config.output_features).items():
        shape = (3, 1, 1) if feature.type == "VISUAL" else feature.shape
        low, size = random.uniform(-5, 5, shape), random.uniform(0.5, 20, shape)
        statistics[name] = {"min": low, "max": low + size, "mean": random.uniform(0, 1, shape), "std": size / 10}
    return statistics


def small_policy(config: DiffusionConfig, seed: int = 0) -> DiffusionPolicy:
    """In training mode, with random weights."""
    torch.manual_seed(seed)
    return DiffusionPolicy(config, small_statistics(config))


def small_batch(config: DiffusionConfig, size: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """A training batch in data units, images uint8, the last two actions of the first sample padded."""
    generator = torch.Generator().manual_seed(seed)
    batch = {}
    for name, feature in config.input_features.items():
        shape = (size, config.n_obs_steps, *feature.shape)
        image = feature.type == "VISUAL"
        draw = torch.randint(256, shape, generator=generator, dtype=torch.uint8) if image else None
        batch[name] = torch.randn(shape, generator=generator) * 5 if draw is None else draw
    batch["action"] = torch.randn(size, config.horizon, 3, generator=generator) * 5
    batch["action_is_pad"] = torch.zeros(size, config.horizon, dtype=torch.bool)
    batch["action_is_pad"][0, -2:] = True
    return batch


def observation(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch's observations alone."""
    return {name: values for name, values in batch.items() if name.startswith("observation.")}
