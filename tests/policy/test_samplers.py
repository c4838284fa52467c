"""Whole trajectories equal to diffusers', with a small fixed network in place of the U-Net."""

import dataclasses
from typing import Any, Literal

import pytest
import torch
from diffusers.schedulers import scheduling_ddpm
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from visuomotor.config import DPM, DiffusionConfig
from visuomotor.policy.samplers import Predict, ddim, denoising_steps, draws, sampler_of
from visuomotor.policy.schedule import noise_schedule

from .lerobot_case import TOLERANCE, largest_error

SHAPE = (2, 8, 3)  # B, Tp, Da


def network(x: Tensor, step: float) -> Tensor:
    """Bounded, not linear, and different at each step."""
    mixed = x.flip(-1) * 0.7 + x.roll(1, dims=1) * 0.5
    return torch.tanh(mixed + 0.3 * torch.sin(torch.arange(3.0) + step / 7)) + 0.2 * x.clamp(-2, 2)


def sample(config: DiffusionConfig, predict: Predict, noise: Tensor, steps: int) -> Tensor:
    schedule = noise_schedule(config)
    return sampler_of(config)(predict, schedule, noise, denoising_steps(config.noise_scheduler_type, schedule, steps))


def trajectory_of_ours(config: DiffusionConfig, steps: int, noise: Tensor) -> Tensor:
    entered: list[Tensor] = []

    def predict(x: Tensor, step: float) -> Tensor:
        entered.append(x.clone())
        return network(x, step)

    final = sample(config, predict, noise, steps)
    return torch.stack([*entered[1:], final])


def trajectory_of_diffusers(
    config: DiffusionConfig, steps: int, noise: Tensor, monkeypatch: pytest.MonkeyPatch
) -> Tensor:
    draws_left = iter(noise[1:])
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: next(draws_left))
    kind = {"DDPM": DDPMScheduler, "DDIM": DDIMScheduler}[config.noise_scheduler_type]
    added = {"eta": config.ddim_eta} if config.noise_scheduler_type == "DDIM" else {}
    names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "clip_sample", "clip_sample_range")
    scheduler = kind(prediction_type=config.prediction_type, **{name: getattr(config, name) for name in names})
    scheduler.set_timesteps(steps)
    x, left = noise[0], []
    for step in scheduler.timesteps:
        if config.ddim_eta > 0:  # after the last step diffusers takes a draw as well, and multiplies it by 0
            added["variance_noise"] = next(draws_left, torch.zeros(SHAPE))
        x = scheduler.step(network(x, int(step)), int(step), x, return_dict=False, **added)[0]
        left.append(x)
    assert next(draws_left, None) is None  # all of the noise went in
    return torch.stack(left)


@pytest.mark.parametrize("steps", [1, 7, 10, 33, 100])
@pytest.mark.parametrize("clip", [{"clip_sample": True}, {"clip_sample_range": 0.3}, {"clip_sample": False}])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("schedule", ["squaredcos_cap_v2", "linear"])
@pytest.mark.parametrize("sampler", ["DDPM", "DDIM"])
def test_whole_trajectory(
    sampler: Literal["DDPM", "DDIM"],
    schedule: Literal["squaredcos_cap_v2", "linear"],
    prediction_type: Literal["epsilon", "sample", "v_prediction"],
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


@pytest.mark.parametrize("steps", [1, 2, 10, 100])
@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_whole_trajectory_of_ddim_with_noise(
    prediction_type: Literal["epsilon", "sample", "v_prediction"],
    eta: float,
    steps: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = DiffusionConfig(noise_scheduler_type="DDIM", ddim_eta=eta, prediction_type=prediction_type)
    noise = torch.randn(draws("DDIM", steps, eta), *SHAPE, generator=torch.Generator().manual_seed(steps))
    expected = trajectory_of_diffusers(config, steps, noise, monkeypatch)
    assert largest_error(trajectory_of_ours(config, steps, noise), expected) <= TOLERANCE


def test_ddim_with_all_the_noise_is_ddpm() -> None:
    """Song et al. 2021, section 4.1, with the smaller variance; clipped, the two treat the noise differently."""
    ddpm = DiffusionConfig(clip_sample=False)
    noisy = dataclasses.replace(ddpm, noise_scheduler_type="DDIM", ddim_eta=1.0)
    noise = torch.randn(20, *SHAPE, generator=torch.Generator().manual_seed(0))
    found, expected = (sample(config, network, noise, 20) for config in (noisy, ddpm))
    assert largest_error(found, expected) <= TOLERANCE


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 14, 15, 33, 98])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("schedule", ["squaredcos_cap_v2", "linear"])
def test_whole_trajectory_of_dpm_solver(
    schedule: Literal["squaredcos_cap_v2", "linear"],
    prediction_type: Literal["epsilon", "sample", "v_prediction"],
    clip: bool,
    steps: int,
) -> None:
    """diffusers' default solver (order 2, midpoint, lower_order_final, a last sigma of zero), told the same steps."""
    config = DiffusionConfig(
        noise_scheduler_type=DPM, beta_schedule=schedule, prediction_type=prediction_type, clip_sample=clip
    )
    scheduler = DPMSolverMultistepScheduler(
        **{name: getattr(config, name) for name in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")},
        prediction_type=prediction_type,
        thresholding=clip,  # which clips to 1 where the highest value is 1
        sample_max_value=1.0,
    )
    taken = denoising_steps(DPM, noise_schedule(config), steps)
    scheduler.set_timesteps(timesteps=taken)
    noise = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(steps))
    x, expected = noise[0], []
    for step in scheduler.timesteps:
        x = scheduler.step(network(x, int(step)), int(step), x, return_dict=False)[0]
        expected.append(x)
    found = trajectory_of_ours(config, steps, noise)
    assert len(found) == len(taken)
    assert largest_error(found, torch.stack(expected)) <= TOLERANCE


def test_dpm_solver_is_of_second_order() -> None:
    """On Gaussian actions N(m, d^2), whose best prediction is known: twice the steps, about a quarter of the error."""
    m, d, count = 0.4, 0.25, 2000
    config = DiffusionConfig(
        noise_scheduler_type=DPM, clip_sample=False, prediction_type="sample", num_train_timesteps=count
    )
    schedule = noise_schedule(config)
    x = torch.randn(1, 1, 64, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def clean(x: Tensor, step: float) -> Tensor:
        alpha, sigma = schedule.scales(step)
        return m + alpha * d**2 / (alpha**2 * d**2 + sigma**2) * (x - alpha * m)

    alpha, sigma = schedule.scales(denoising_steps(DPM, schedule, 1)[0])
    exact = m + d * (x[0] - alpha * m) / (alpha**2 * d**2 + sigma**2) ** 0.5  # the flow keeps the place in the bell
    errors = {n: (sample(config, clean, x, n) - exact).abs().max().item() for n in (16, 32, 64)}
    assert errors[16] / errors[32] > 3.5 and errors[32] / errors[64] > 3.5
    same_steps = ddim(clean, schedule, x, denoising_steps(DPM, schedule, 16))  # of first order
    assert errors[16] < (same_steps - exact).abs().max().item() / 8


def test_draws() -> None:
    """Where to start, and one draw for every DDPM step but the last."""
    assert [draws("DDPM", steps) for steps in (1, 10, 100)] == [1, 10, 100]
    assert [draws("DDIM", steps) for steps in (1, 10, 100)] == [1, 1, 1]
    assert [draws(DPM, steps) for steps in (1, 10, 100)] == [1, 1, 1]
    assert [draws("FlowMatchEuler", steps) for steps in (1, 10, 100)] == [1, 1, 1]
    assert [draws("DDIM", steps, eta=0.1) for steps in (1, 10, 100)] == [1, 10, 100]


@pytest.mark.parametrize("sampler", ["DDPM", "DDIM", "DPMSolverMultistep", "FlowMatchEuler"])
def test_a_perfect_network_finds_the_actions(
    sampler: Literal["DDPM", "DDIM", "DPMSolverMultistep", "FlowMatchEuler"],
) -> None:
    """Told the clean actions at every step, every sampler ends on them exactly, whatever the noise."""
    config = DiffusionConfig(noise_scheduler_type=sampler, prediction_type="sample")
    generator = torch.Generator().manual_seed(0)
    actions = torch.rand(SHAPE, generator=generator) * 2 - 1
    noise = torch.randn(draws(sampler, 10), *SHAPE, generator=generator)
    final = sample(config, lambda _x, _step: actions, noise, 10)
    assert torch.allclose(final, actions, atol=1e-6, rtol=0)


# Rectified flow

FLOW = DiffusionConfig(noise_scheduler_type="FlowMatchEuler", prediction_type="v_prediction", clip_sample=False)


@pytest.mark.parametrize("steps", [1, 7, 10, 33, 100])
def test_whole_flow(steps: int) -> None:
    """diffusers' scheduler, told the same equal steps: its own begin at 1 and end at 1/100, not at 0."""
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=100, shift=1.0)
    scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
    noise = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(steps))
    x, expected = noise[0], []
    for time, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        x = scheduler.step(network(x, sigma.item() * 99), time, x, return_dict=False)[0]
        expected.append(x)
    assert largest_error(trajectory_of_ours(FLOW, steps, noise), torch.stack(expected)) <= TOLERANCE


def test_flow_to_a_point_is_exact_in_any_number_of_steps() -> None:
    """Where all demonstrations do the same, the field is (x - actions) / s, and its curves are straight lines."""
    actions = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(1))
    for steps in (1, 2, 3, 16):
        final = sample(FLOW, lambda x, step: (x - actions) / (step / 99), noise, steps)
        assert torch.allclose(final, actions, atol=1e-5, rtol=0)


def test_flow_to_a_gaussian_converges_to_its_closed_form() -> None:
    """N(m, d^2) at 0, N(0, 1) at 1: the field is linear, and takes noise z to m + d z. Euler's error halves."""
    m, d = 0.4, 0.25
    noise = torch.randn(1, 1, 64, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def field(x: Tensor, step: float) -> Tensor:
        s = step / 99
        slope = (s - (1 - s) * d**2) / ((1 - s) ** 2 * d**2 + s**2)  # E[noise - clean | x_s = x]
        return slope * (x - (1 - s) * m) - m

    errors = []
    for steps in (50, 100, 200):
        final = sample(FLOW, field, noise, steps)
        errors.append((final - (m + d * noise[0])).abs().max().item())
    assert errors[2] < 0.02
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.2)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.2)


def test_flow_on_a_linear_field_by_hand() -> None:
    """dx/ds = 2 x - s in four steps of -1/4 from s = 1."""
    x = 3.0
    for s in (1, 0.75, 0.5, 0.25):
        x -= 0.25 * (2 * x - s)
    noise = torch.full((1, *SHAPE), 3.0)
    final = sample(FLOW, lambda x, step: 2 * x - step / 99, noise, 4)
    assert torch.allclose(final, torch.full(SHAPE, x), atol=1e-6, rtol=0)


def test_clipping_a_flow() -> None:
    """The estimate of the clean actions is clipped at every step, and the noise that goes with it is kept."""
    config = dataclasses.replace(FLOW, clip_sample=True, clip_sample_range=0.5)
    noise = torch.full((1, *SHAPE), 2.0)
    seen: list[float] = []

    def predict(x: Tensor, step: float) -> Tensor:
        seen.append(x[0, 0, 0].item())
        return torch.ones(SHAPE)  # clean actions at 2 - s: 1 at first, 1.25 then, both clipped to 0.5

    final = sample(config, predict, noise, 2)
    assert seen == [2, 0.5 * 0.5 + 0.5 * 2]
    assert torch.equal(final, torch.full(SHAPE, 0.5))
