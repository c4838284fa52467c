"""Whole trajectories equal to diffusers', with a small fixed network in place of the U-Net."""

from typing import Any, Literal

import pytest
import torch
from diffusers.schedulers import scheduling_ddpm
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from visuomotor.config import DiffusionConfig
from visuomotor.policy.samplers import SAMPLERS, draws
from visuomotor.policy.schedule import NoiseSchedule

from .lerobot_case import TOLERANCE, largest_error

SHAPE = (2, 8, 3)  # B, Tp, Da


def network(x: Tensor, step: int) -> Tensor:
    """Bounded, not linear, and different at each step."""
    mixed = x.flip(-1) * 0.7 + x.roll(1, dims=1) * 0.5
    return torch.tanh(mixed + 0.3 * torch.sin(torch.arange(3.0) + step / 7)) + 0.2 * x.clamp(-2, 2)


def trajectory_of_ours(config: DiffusionConfig, steps: int, noise: Tensor) -> Tensor:
    entered: list[Tensor] = []

    def predict(x: Tensor, step: int) -> Tensor:
        entered.append(x.clone())
        return network(x, step)

    final = SAMPLERS[config.noise_scheduler_type](predict, NoiseSchedule(config), noise, steps)
    return torch.stack([*entered[1:], final])


def trajectory_of_diffusers(
    config: DiffusionConfig, steps: int, noise: Tensor, monkeypatch: pytest.MonkeyPatch
) -> Tensor:
    draws_left = iter(noise[1:])
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: next(draws_left))
    kind = {"DDPM": DDPMScheduler, "DDIM": DDIMScheduler}[config.noise_scheduler_type]
    names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "clip_sample", "clip_sample_range")
    scheduler = kind(prediction_type=config.prediction_type, **{name: getattr(config, name) for name in names})
    scheduler.set_timesteps(steps)
    x, left = noise[0], []
    for step in scheduler.timesteps:
        x = scheduler.step(network(x, int(step)), int(step), x, return_dict=False)[0]
        left.append(x)
    assert next(draws_left, None) is None  # all of the noise went in
    return torch.stack(left)


@pytest.mark.parametrize("steps", [1, 7, 10, 33, 100])
@pytest.mark.parametrize("clip", [{"clip_sample": True}, {"clip_sample_range": 0.3}, {"clip_sample": False}])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample"])
@pytest.mark.parametrize("schedule", ["squaredcos_cap_v2", "linear"])
@pytest.mark.parametrize("sampler", ["DDPM", "DDIM"])
def test_whole_trajectory(
    sampler: Literal["DDPM", "DDIM"],
    schedule: Literal["squaredcos_cap_v2", "linear"],
    prediction_type: Literal["epsilon", "sample"],
    clip: dict[str, Any],
    steps: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = DiffusionConfig(
        noise_scheduler_type=sampler, beta_schedule=schedule, prediction_type=prediction_type, **clip
    )
    noise = torch.randn(draws(sampler, steps), *SHAPE, generator=torch.Generator().manual_seed(steps))
    expected = trajectory_of_diffusers(config, steps, noise, monkeypatch)
    found = trajectory_of_ours(config, steps, noise)
    assert found.isfinite().all()
    assert largest_error(found, expected) <= TOLERANCE


def test_draws() -> None:
    """Where to start, and one draw for every DDPM step but the last."""
    assert [draws("DDPM", steps) for steps in (1, 10, 100)] == [1, 10, 100]
    assert [draws("DDIM", steps) for steps in (1, 10, 100)] == [1, 1, 1]


@pytest.mark.parametrize("sampler", ["DDPM", "DDIM"])
def test_a_perfect_network_finds_the_actions(sampler: Literal["DDPM", "DDIM"]) -> None:
    """Told the clean actions at every step, both samplers end on them exactly, whatever the noise."""
    config = DiffusionConfig(noise_scheduler_type=sampler, prediction_type="sample")
    generator = torch.Generator().manual_seed(0)
    actions = torch.rand(SHAPE, generator=generator) * 2 - 1
    noise = torch.randn(draws(sampler, 10), *SHAPE, generator=generator)
    final = SAMPLERS[sampler](lambda _x, _step: actions, NoiseSchedule(config), noise, 10)
    assert torch.allclose(final, actions, atol=1e-6, rtol=0)
