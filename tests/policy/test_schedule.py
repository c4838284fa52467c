"""Equality with diffusers' schedulers, which define the schedules and the steps."""

import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from visuomotor.config import DiffusionConfig
from visuomotor.policy.schedule import NoiseSchedule

SCHEDULES: list[dict[str, Any]] = [
    {"beta_schedule": "squaredcos_cap_v2"},
    {"beta_schedule": "linear"},
    {"beta_schedule": "linear", "beta_start": 0.001, "beta_end": 0.3},
]


@pytest.mark.parametrize("steps", [2, 50, 100, 1000])
@pytest.mark.parametrize("settings", SCHEDULES)
def test_signal_left_at_each_step(settings: dict[str, Any], steps: int) -> None:
    ours = NoiseSchedule(DiffusionConfig(num_train_timesteps=steps, **settings))
    theirs = DDPMScheduler(num_train_timesteps=steps, **settings)
    assert ours.alphas_cumprod.dtype == torch.float32
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)


def test_squared_cosine_by_its_formula() -> None:
    """Nichol and Dhariwal 2021, equation 17: a_t = f(t) / f(0), where no beta reaches the cap of 0.999."""
    found = NoiseSchedule(DiffusionConfig()).alphas_cumprod.double().numpy()
    t = np.arange(1, 101) / 100
    f = np.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    exact = f / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert np.abs(found - exact)[:-1].max() < 1e-6
    assert found[-1] == pytest.approx(exact[-2] * 0.001, rel=1e-4)  # the last beta is capped


@pytest.mark.parametrize("settings", SCHEDULES)
def test_noisy_actions(settings: dict[str, Any]) -> None:
    ours = NoiseSchedule(DiffusionConfig(**settings))
    theirs = DDPMScheduler(num_train_timesteps=100, **settings)
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 100, 4, 3, generator=generator)
    steps = torch.arange(100)
    found, expected = ours.add_noise(clean, noise, steps), theirs.add_noise(clean, noise, torch.IntTensor(range(100)))
    assert (found - expected).abs().max() < 1e-6


@pytest.mark.parametrize("steps", [1, 2, 7, 10, 33, 50, 99, 100])
@pytest.mark.parametrize("scheduler", [DDPMScheduler, DDIMScheduler])
def test_steps_taken(steps: int, scheduler: type[DDPMScheduler] | type[DDIMScheduler]) -> None:
    theirs = scheduler(num_train_timesteps=100)
    theirs.set_timesteps(steps)
    assert NoiseSchedule(DiffusionConfig()).timesteps(steps) == theirs.timesteps.tolist()


def test_ten_of_a_hundred() -> None:
    assert NoiseSchedule(DiffusionConfig()).timesteps(10) == [90, 80, 70, 60, 50, 40, 30, 20, 10, 0]


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample"])
def test_split_undoes_the_noise(prediction_type: Literal["epsilon", "sample"]) -> None:
    """A perfect prediction gives back the clean actions and the noise that x_t was made of."""
    schedule = NoiseSchedule(DiffusionConfig(prediction_type=prediction_type, clip_sample=False))
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 1, 4, 3, generator=generator, dtype=torch.float64)
    for step in (0, 1, 50, 98):
        x = schedule.add_noise(clean, noise, torch.tensor([step]))
        found = schedule.split(noise if prediction_type == "epsilon" else clean, x, step)
        assert torch.allclose(found[0], clean, atol=1e-4, rtol=0)  # a_t is float32
        assert torch.allclose(found[1], noise, atol=1e-4, rtol=0)


def test_only_the_clean_actions_are_clipped() -> None:
    schedule = NoiseSchedule(DiffusionConfig(prediction_type="sample", clip_sample_range=0.5))
    x = torch.tensor([[[1.0, -1.0, 0.25]]])
    prediction = torch.tensor([[[2.0, -3.0, 0.25]]])
    clean, noise = schedule.split(prediction, x, 40)
    assert clean.tolist() == [[[0.5, -0.5, 0.25]]]
    a = float(schedule.alphas_cumprod[40])
    assert torch.allclose(noise, (x - math.sqrt(a) * prediction) / math.sqrt(1 - a))


def test_before_the_first_step_all_is_signal() -> None:
    schedule = NoiseSchedule(DiffusionConfig())
    assert schedule.alpha(-1) == schedule.alpha(-10) == 1.0
    assert schedule.alpha(0) == float(schedule.alphas_cumprod[0]) < 1
