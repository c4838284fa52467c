"""The learning rate of each step, a function of the step and the config alone."""

import math

import torch

from visuomotor.recipe import TrainingConfig


def learning_rate(step: int, config: TrainingConfig) -> float:
    """The rate of one step, from 0.

    `cosine`: linear warm-up, then half a cosine to zero (diffusers' `get_cosine_schedule_with_warmup`).
    `warmup-stable-decay`: linear warm-up, then constant, and in the last steps 1 - sqrt to zero (Hägele et al. 2024,
    "Scaling laws and compute-optimal training beyond fixed training durations").
    """
    warmup = config.scheduler_warmup_steps
    if step < warmup:
        return config.optimizer_lr * step / warmup
    start = decay_start(config)
    if start is None:
        progress = (step - warmup) / max(1, config.steps - warmup)
        return config.optimizer_lr * 0.5 * (1 + math.cos(math.pi * min(progress, 1)))
    progress = max(0, step - start) / max(1, config.steps - start)
    return config.optimizer_lr * (1 - math.sqrt(min(progress, 1)))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The optimizer's next step has this rate; one that is a tensor is filled, so that a CUDA graph finds it there."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def decay_start(config: TrainingConfig) -> int | None:
    """The step from which warmup-stable-decay falls; up to here a run may be extended exactly. None for others."""
    if config.scheduler_name != "warmup-stable-decay":
        return None
    steps = config.steps // 5 if config.scheduler_decay_steps is None else config.scheduler_decay_steps
    return max(config.scheduler_warmup_steps, config.steps - steps)


def first_difference(before: TrainingConfig, now: TrainingConfig, done: int) -> int:
    """How many of the `done` steps that a run has taken had the rate that `now` asks for; `done` if all had."""
    if before == now:
        return done
    return next((step for step in range(done) if learning_rate(step, before) != learning_rate(step, now)), done)
