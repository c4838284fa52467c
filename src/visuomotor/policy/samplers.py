"""From noise to actions: the reverse process, each sampler a function of one signature.

`sampler(predict, schedule, noise, steps)`, where
    predict(x, step) gives the network's prediction for x (B, Tp, Da) at one denoising step,
    schedule is what the policy was trained with: a `NoiseSchedule`, or for `flow_match_euler` a `RectifiedFlow`,
    noise is (K, B, Tp, Da): where to start, then one draw for each step that adds noise (`draws` says how many), and
    steps are those at which the network is asked, from noise on (`denoising_steps` says which).
It gives the clean actions (B, Tp, Da).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from visuomotor.config import DPM, FLOW, DiffusionConfig
from visuomotor.policy.schedule import CLEAN, NoiseSchedule, RectifiedFlow

Predict = Callable[[Tensor, float], Tensor]
Sampler = Callable[[Predict, Any, Tensor, Sequence[Any]], Tensor]


def ddpm(predict: Predict, schedule: NoiseSchedule, noise: Tensor, steps: Sequence[int]) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, algorithm 2, with the smaller variance of its section 3.2)."""
    x = noise[0]
    for i, (step, following) in enumerate(_pairs(steps)):
        a, a_next = schedule.alpha(step), schedule.alpha(following)
        a_step = _ratio(a, a_next)
        clean, _ = schedule.split(predict(x, step), x, step)
        x = a_next**0.5 * (1 - a_step) / (1 - a) * clean + a_step**0.5 * (1 - a_next) / (1 - a) * x
        if following != CLEAN:
            x = x + ((1 - a_next) / (1 - a) * (1 - a_step)) ** 0.5 * noise[i + 1]
    return x


def ddim(predict: Predict, schedule: NoiseSchedule, noise: Tensor, steps: Sequence[int], eta: float = 0.0) -> Tensor:
    """Few steps do (Song et al. 2021, equation 12): deterministic with `eta` 0, as much noise as `ddpm` adds with 1."""
    x = noise[0]
    for i, (step, following) in enumerate(_pairs(steps)):
        a, a_next = schedule.alpha(step), schedule.alpha(following)
        variance = eta**2 * (1 - a_next) / (1 - a) * (1 - _ratio(a, a_next))
        clean, direction = schedule.split(predict(x, step), x, step)
        x = a_next**0.5 * clean + (1 - a_next - variance) ** 0.5 * direction
        if variance > 0:
            x = x + variance**0.5 * noise[i + 1]
    return x


def dpm_solver(predict: Predict, schedule: NoiseSchedule, noise: Tensor, steps: Sequence[int]) -> Tensor:
    """DPM-Solver++ (2M): the clean actions along a line through the last two estimates (Lu et al. 2022, algorithm 2).

    The first step has one estimate only, and so is DDIM's; the last one ends on its estimate.
    """
    x = noise[0]
    before: tuple[Tensor, float] | None = None  # the last estimate, and how far ago it was
    for step, following in _pairs(steps):
        clean, _ = schedule.split(predict(x, step), x, step)
        if following == CLEAN:
            return clean
        (alpha, sigma), (alpha_next, sigma_next) = schedule.scales(step), schedule.scales(following)
        width = math.log(alpha_next / sigma_next) - math.log(alpha / sigma)  # of the step, in log signal-to-noise
        middle = clean if before is None else clean + width / (2 * before[1]) * (clean - before[0])
        x = sigma_next / sigma * x - alpha_next * math.expm1(-width) * middle
        before = clean, width
    return x


def flow_match_euler(predict: Predict, schedule: RectifiedFlow, noise: Tensor, steps: Sequence[float]) -> Tensor:
    """Euler's method along the velocity, from s = 1 to 0 (Liu et al. 2022, section 2.1)."""
    x = noise[0]
    for step, following in _pairs(steps):
        alpha_next, sigma_next = schedule.scales(following)
        clean, direction = schedule.split(predict(x, step), x, step)
        # x + (s_next - s) * velocity, written so that the estimate of the clean actions can be clipped.
        x = alpha_next * clean + sigma_next * direction
    return x


SAMPLERS: dict[str, Sampler] = {"DDPM": ddpm, "DDIM": ddim, DPM: dpm_solver, FLOW: flow_match_euler}


def sampler_of(config: DiffusionConfig) -> Sampler:
    """The sampler that a config names, with its settings."""
    name = config.noise_scheduler_type
    return partial(ddim, eta=config.ddim_eta) if name == "DDIM" else SAMPLERS[name]


def denoising_steps(name: str, schedule: NoiseSchedule | RectifiedFlow, count: int) -> list[Any]:
    """The steps at which a sampler asks the network, from noise on.

    DDPM, DDIM and Euler take the schedule's `timesteps`, DPM-Solver++ those of `spread`.
    """
    if name == DPM:
        assert isinstance(schedule, NoiseSchedule)
        return schedule.spread(count)
    return schedule.timesteps(count)


def draws(name: str, steps: int, eta: float = 0.0) -> int:
    """Draws of (Tp, Da) noise that one chunk takes: the start, and if noise is added one a step but the last."""
    return steps if name == "DDPM" or eta > 0 else 1


def _pairs(steps: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Each step with the one after it; after the last all is clean."""
    return zip(steps, [*steps[1:], CLEAN], strict=True)


def _ratio(a: float, a_next: float) -> float:
    """The signal that one step leaves, rounded as diffusers does: one minus it keeps its four digits only."""
    return float(np.float32(a / a_next))
