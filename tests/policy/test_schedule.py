"""Equality with diffusers' schedulers, which define the schedules and the steps."""

import math
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from visuomotor.config import DiffusionConfig
from visuomotor.policy.schedule import CLEAN, NoiseSchedule, RectifiedFlow, noise_schedule

PredictionType = Literal["epsilon", "sample", "v_prediction"]
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


@pytest.mark.parametrize("settings", SCHEDULES)
def test_velocity(settings: dict[str, Any]) -> None:
    ours = NoiseSchedule(DiffusionConfig(prediction_type="v_prediction", **settings))
    theirs = DDPMScheduler(num_train_timesteps=100, **settings)
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 100, 4, 3, generator=generator)
    found = ours.target(clean, noise, torch.arange(100))
    expected = theirs.get_velocity(clean, noise, torch.IntTensor(range(100)))
    assert (found - expected).abs().max() < 1e-6


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_split_undoes_the_noise(prediction_type: PredictionType) -> None:
    """A perfect prediction gives back the clean actions and the noise that x_t was made of."""
    schedule = NoiseSchedule(DiffusionConfig(prediction_type=prediction_type, clip_sample=False))
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 1, 4, 3, generator=generator, dtype=torch.float64)
    for step in (0, 1, 50, 98):
        x = schedule.add_noise(clean, noise, torch.tensor([step]))
        found = schedule.split(schedule.target(clean, noise, torch.tensor([step])), x, step)
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


def test_steps_even_in_the_signal_to_noise_ratio() -> None:
    schedule = NoiseSchedule(DiffusionConfig())
    taken = schedule.spread(8)
    logs = [math.log(alpha / sigma) for alpha, sigma in map(schedule.scales, [*taken, 0])]
    assert logs[0] == pytest.approx(-2, abs=0.1) and logs[0] >= -2
    even = (logs[-1] - logs[0]) / 8
    assert [after - before for before, after in pairwise(logs)] == pytest.approx([even] * 8, abs=0.3)
    assert [schedule.spread(n) for n in (1, 2, 4)] == [[90], [90, 24], [90, 65, 24, 5]]


@pytest.mark.parametrize("settings", [*SCHEDULES, {"num_train_timesteps": 2}, {"num_train_timesteps": 1000}])
def test_no_step_is_taken_twice(settings: dict[str, Any]) -> None:
    schedule = NoiseSchedule(DiffusionConfig(**settings))
    for count in (1, 2, 16, 100):
        taken = schedule.spread(count)
        assert 1 <= len(taken) <= count
        assert taken == sorted(set(taken), reverse=True) and taken[-1] >= 0


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("sampler", ["DDPM", "FlowMatchEuler"])
def test_a_guide_can_take_predictions_apart(sampler: Literal["DDPM", "FlowMatchEuler"], prediction_type: Any) -> None:
    """x from `scales`, clean actions from a prediction, and a prediction from clean actions."""
    if (sampler, prediction_type) == ("FlowMatchEuler", "epsilon"):
        return  # which there is not
    config = DiffusionConfig(noise_scheduler_type=sampler, prediction_type=prediction_type, clip_sample_range=0.1)
    schedule = noise_schedule(config)
    clean, noise = torch.randn(2, 1, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for step in (1, 50, 99):
        alpha, sigma = schedule.scales(step)
        x = schedule.add_noise(clean, noise, torch.tensor([step]))
        assert torch.allclose(x, alpha * clean + sigma * noise, atol=1e-6, rtol=0)
        x = alpha * clean + sigma * noise  # `add_noise` takes roots in float32
        target = schedule.prediction(x, clean, step)
        assert torch.allclose(schedule.clean(x, target, step), clean, atol=1e-9, rtol=0)  # not clipped
        assert torch.allclose(target, schedule.target(clean, noise, torch.tensor([step])), atol=1e-5, rtol=0)
        assert torch.equal(schedule.split(target, x, step)[0], schedule.clean(x, target, step).clamp(-0.1, 0.1))
    assert schedule.scales(CLEAN) == (1, 0)


# Rectified flow


def flow(**changes: Any) -> RectifiedFlow:
    settings = {"noise_scheduler_type": "FlowMatchEuler", "prediction_type": "v_prediction"} | changes
    schedule = noise_schedule(DiffusionConfig(**settings))
    assert isinstance(schedule, RectifiedFlow)
    return schedule


def test_the_sampler_decides_the_schedule() -> None:
    assert isinstance(noise_schedule(DiffusionConfig(noise_scheduler_type="DDPM")), NoiseSchedule)
    assert isinstance(noise_schedule(DiffusionConfig(noise_scheduler_type="DDIM")), NoiseSchedule)
    assert isinstance(flow(), RectifiedFlow)


def test_flow_is_a_straight_line() -> None:
    """From the actions at 0 to the noise at num_train_timesteps - 1, at one velocity."""
    schedule = flow()
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 4, 8, 3, generator=generator, dtype=torch.float64)
    step = torch.tensor([0.0, 24.75, 49.5, 99.0], dtype=torch.float64)
    x = schedule.add_noise(clean, noise, step)
    for i, s in enumerate((0, 0.25, 0.5, 1)):
        assert torch.allclose(x[i], (1 - s) * clean[i] + s * noise[i], atol=1e-12, rtol=0)
    later = schedule.add_noise(clean, noise, step + 0.99)
    assert torch.allclose((later - x) / 0.01, schedule.target(clean, noise, step), atol=1e-9, rtol=0)


def test_flow_by_diffusers() -> None:
    """`scale_noise` at diffusers' own discrete times, sigma = 1/100 to 1."""
    theirs = FlowMatchEulerDiscreteScheduler(num_train_timesteps=100, shift=1.0)
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 100, 8, 3, generator=generator)
    expected = theirs.scale_noise(clean, theirs.timesteps, noise)
    found = flow().add_noise(clean, noise, theirs.sigmas * 99)
    assert (found - expected).abs().max() < 1e-6


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_split_undoes_the_flow(prediction_type: PredictionType) -> None:
    schedule = flow(prediction_type=prediction_type, clip_sample=False)
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 1, 4, 3, generator=generator, dtype=torch.float64)
    for step in (0.5, 33.3, 99.0):
        steps = torch.tensor([step], dtype=torch.float64)
        x = schedule.add_noise(clean, noise, steps)
        found = schedule.split(schedule.target(clean, noise, steps), x, step)
        assert torch.allclose(found[0], clean, atol=1e-12, rtol=0)
        assert torch.allclose(found[1], noise, atol=1e-12, rtol=0)


def test_only_the_clean_actions_of_a_flow_are_clipped() -> None:
    x, velocity = torch.tensor([[[1.0, -1.0]]]), torch.tensor([[[0.5, 2.0]]])
    clean, noise = flow(clip_sample_range=0.6).split(velocity, x, 49.5)  # s = 0.5: unclipped 0.75 and -2
    assert torch.equal(clean, torch.tensor([[[0.6, -0.6]]]))
    assert torch.equal(noise, torch.tensor([[[1.25, 0.0]]]))


def test_times_of_a_flow() -> None:
    """The network is told s * (num_train_timesteps - 1), not rounded; training draws it uniformly."""
    assert flow().timesteps(4) == [99, 74.25, 49.5, 24.75]
    assert flow(num_train_timesteps=1000).timesteps(1) == [999]
    drawn = flow().draw_steps(10_000, torch.Generator().manual_seed(0))
    assert drawn.is_floating_point() and drawn.min() >= 0 and drawn.max() < 99
    counts = torch.histc(drawn, bins=10, min=0, max=99)
    assert counts.min() > 880 and counts.max() < 1120  # 1,000 expected, deviation 30


def test_steps_of_diffusion_are_drawn_as_ever() -> None:
    """Runs made before flows were known go on bit for bit."""
    seeded = [torch.Generator().manual_seed(0) for _ in range(2)]
    found = noise_schedule(DiffusionConfig()).draw_steps(64, seeded[0])
    assert torch.equal(found, torch.randint(100, (64,), generator=seeded[1]))
