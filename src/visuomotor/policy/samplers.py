"""From noise to actions: the reverse process, each sampler a function of one signature.

`sampler(predict, schedule, noise, steps)`, where
    predict(x, step) gives the network's prediction for x (B, Tp, Da) at one denoising step,
    schedule is what the policy was trained with: a `NoiseSchedule`, or for `flow_match_euler` a `RectifiedFlow`,
    noise is (K, B, Tp, Da): where to start, then one draw for each step that adds noise (`draws` says how many), and
    steps is how many of the schedule's steps to take.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from visuomotor.config import FLOW
from visuomotor.policy.schedule import NoiseSchedule, RectifiedFlow

Predict = Callable[[Tensor, float], Tensor]
Sampler = Callable[[Predict, Any, Tensor, int], Tensor]


def ddpm(predict: Predict, schedule: NoiseSchedule, noise: Tensor, steps: int) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, algorithm 2, with the smaller variance of its section 3.2)."""
    x = noise[0]
    timesteps = schedule.timesteps(steps)
    for i, step in enumerate(timesteps):
        a, a_next = schedule.alpha(step), schedule.alpha(step - schedule.num_train_timesteps // steps)
        a_step = float(np.float32(a / a_next))  # rounded as diffusers does: 1 - a_step keeps its four digits only
        clean, _ = schedule.split(predict(x, step), x, step)
        x = a_next**0.5 * (1 - a_step) / (1 - a) * clean + a_step**0.5 * (1 - a_next) / (1 - a) * x
        if step > 0:
            x = x + ((1 - a_next) / (1 - a) * (1 - a_step)) ** 0.5 * noise[i + 1]
    return x


def ddim(predict: Predict, schedule: NoiseSchedule, noise: Tensor, steps: int) -> Tensor:
    """Deterministic sampling (Song et al. 2021, equation 12 with eta = 0): few steps do."""
    x = noise[0]
    for step in schedule.timesteps(steps):
        a_next = schedule.alpha(step - schedule.num_train_timesteps // steps)
        clean, direction = schedule.split(predict(x, step), x, step)
        x = a_next**0.5 * clean + (1 - a_next) ** 0.5 * direction
    return x


def flow_match_euler(predict: Predict, schedule: RectifiedFlow, noise: Tensor, steps: int) -> Tensor:
    """Euler's method along the velocity, from s = 1 to 0 in equal steps (Liu et al. 2022, section 2.1)."""
    x = noise[0]
    for i, step in enumerate(schedule.timesteps(steps)):
        s_next = 1 - (i + 1) / steps
        clean, direction = schedule.split(predict(x, step), x, step)
        # x + (s_next - s) * velocity, written so that the estimate of the clean actions can be clipped.
        x = (1 - s_next) * clean + s_next * direction
    return x


SAMPLERS: dict[str, Sampler] = {"DDPM": ddpm, "DDIM": ddim, FLOW: flow_match_euler}


def draws(name: str, steps: int) -> int:
    """Draws of (Tp, Da) noise that one chunk takes: the start, and for DDPM one a step but the last."""
    return steps if name == "DDPM" else 1
