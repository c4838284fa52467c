"""The loss of distillation: its targets are where two of the teacher's steps end."""

import dataclasses

import pytest
import torch
from torch import Tensor

from visuomotor.errors import ConfigError
from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.policy.distillation import Halving
from visuomotor.policy.samplers import SAMPLERS

from .small import small_batch, small_config, small_policy

DDIM = {"noise_scheduler_type": "DDIM", "prediction_type": "v_prediction"}
FLOW = {"noise_scheduler_type": "FlowMatchEuler", "prediction_type": "v_prediction"}


def pair(kind: dict[str, str], teacher_prediction: str, steps: int) -> tuple[DiffusionPolicy, DiffusionPolicy]:
    """A student of so many steps and its teacher, with random weights of their own."""
    asked = {**kind, "prediction_type": teacher_prediction, "num_inference_steps": 2 * steps, "clip_sample": False}
    teacher = small_policy(small_config(**asked), seed=1)
    own = {"num_inference_steps": steps, "clip_sample": False}
    if kind is DDIM:
        own["timesteps"] = tuple(teacher.denoising_steps()[::2])
    return small_policy(small_config(**kind, **own)), teacher


def watch(policy: DiffusionPolicy) -> list[tuple[Tensor, Tensor, Tensor]]:
    calls: list[tuple[Tensor, Tensor, Tensor]] = []
    policy.diffusion.denoiser.register_forward_pre_hook(lambda _, arguments: calls.append(arguments))
    return calls


@pytest.mark.parametrize(
    ("kind", "teacher_prediction"),
    [(DDIM, "epsilon"), (DDIM, "sample"), (DDIM, "v_prediction"), (FLOW, "v_prediction"), (FLOW, "sample")],
)
def test_one_step_is_to_end_where_two_of_the_teacher_end(kind: dict[str, str], teacher_prediction: str) -> None:
    student, teacher = pair(kind, teacher_prediction, steps=1)
    batch = small_batch(student.config)
    draws = student.draw(3, torch.Generator().manual_seed(0))
    calls = watch(student)
    with torch.no_grad():
        loss = Halving(student, teacher)(batch, draws)
        ((start, step, condition),) = calls
        known = teacher.training_inputs(batch, draws)[0]

        def predict(x: Tensor, at: float) -> Tensor:
            return teacher.diffusion.denoiser(x, torch.full((len(x),), at), known)

        sampler = SAMPLERS[teacher.config.noise_scheduler_type]
        end = sampler(predict, teacher.schedule, start[None], teacher.denoising_steps())
        assert set(step.tolist()) == set(student.denoising_steps())
        found = student.schedule.clean(start, student.diffusion.denoiser(start, step, condition), step)
        _, sigma = student.schedule.scales(step)
        weight = 1 / sigma  # of a velocity's error, in terms of that of the clean actions
        expected = ((weight * (found - end)) ** 2).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", [DDIM, FLOW])
def test_a_student_that_predicts_the_target_goes_where_its_teacher_goes(kind: dict[str, str], monkeypatch) -> None:
    """From every one of several steps, and whole trajectories are then the teacher's."""
    student, teacher = pair(kind, "v_prediction", steps=4)
    batch = small_batch(student.config)
    halving, targets = Halving(student, teacher), []
    monkeypatch.setattr(student, "mean_error", lambda prediction, target, batch: targets.append(target))
    calls = watch(student)
    draws = student.draw(3, torch.Generator().manual_seed(0), noise_draws=30)
    with torch.no_grad():
        halving(batch, draws)
        known = teacher.training_inputs(batch, draws)[0]
    ((start, steps, _),), (target,) = calls, targets
    own, finer = [*student.denoising_steps(), -1], [*teacher.denoising_steps(), -1]
    assert set(steps.tolist()) == set(own[:-1])
    for row in range(len(start)):
        x, step = start[row : row + 1], steps[row].item()
        for at, following in zip(finer[finer.index(step) :][:2], finer[finer.index(step) + 1 :][:2], strict=True):
            with torch.no_grad():
                predicted = teacher.diffusion.denoiser(x, torch.tensor([at]), known[row : row + 1])
            clean, direction = teacher.schedule.split(predicted, x, at)
            alpha, sigma = teacher.schedule.scales(following)
            x = alpha * clean + sigma * direction
        clean, direction = student.schedule.split(target[row : row + 1], start[row : row + 1], step)
        alpha, sigma = student.schedule.scales(own[own.index(step) + 1])
        torch.testing.assert_close(alpha * clean + sigma * direction, x, rtol=1e-4, atol=1e-4)


def test_a_student_learns() -> None:
    student, teacher = pair(DDIM, "sample", steps=2)
    halving, batch = Halving(student, teacher), small_batch(student.config)
    draws = student.draw(3, torch.Generator().manual_seed(0))
    optimizer, losses = torch.optim.Adam(student.parameters(), lr=1e-2), []
    for _ in range(60):
        optimizer.zero_grad()
        loss = halving(batch, draws)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_teacher_is_not_trained() -> None:
    student, teacher = pair(DDIM, "epsilon", steps=2)
    halving = Halving(student, teacher)
    halving(small_batch(student.config), student.draw(3)).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert any(parameter.grad is not None for parameter in student.parameters())


def test_steps_that_are_not_the_teachers_are_refused() -> None:
    student, teacher = pair(DDIM, "epsilon", steps=2)
    config = dataclasses.replace(student.config, timesteps=(19, 3))
    other = DiffusionPolicy(config, student.statistics)
    with pytest.raises(ConfigError, match=r"timesteps: expected every other one of \[15, 10, 5, 0\], got \[19, 3\]"):
        Halving(other, teacher)
    with pytest.raises(ConfigError, match="timesteps: expected every other one"):
        Halving(student, teacher.with_sampler(num_inference_steps=3))
