"""Fewer steps from noise to actions: a student learns to go in one step where its teacher takes two."""

import torch
from torch import Tensor, nn

from visuomotor.errors import ConfigError, mismatch
from visuomotor.policy.diffusion import Batch, DiffusionPolicy
from visuomotor.policy.draws import Draws


class Halving(nn.Module):
    """The loss of progressive distillation (Salimans and Ho 2022, algorithm 2).

    From x at one of the student's steps the teacher takes two steps of DDIM (of Euler, with rectified flow). The clean
    actions with which one step of the student would end at the same place are what the student is to predict.

    Args:
        student: Trained; its `denoising_steps` are what it learns.
        teacher: Of the same observations, horizon and schedule. Each of its steps is half of one of the student's.

    Raises:
        ConfigError: It is not.
    """

    times: Tensor
    levels: Tensor

    def __init__(self, student: DiffusionPolicy, teacher: DiffusionPolicy):
        super().__init__()
        self.student, self.teacher = student, teacher.eval().requires_grad_(False)
        finer, self.steps = teacher.denoising_steps(), len(student.denoising_steps())
        if finer[::2] != student.denoising_steps() or len(finer) % 2:
            advice = "let `visuomotor distill` choose them"
            raise ConfigError(mismatch("timesteps", f"every other one of {finer}", student.denoising_steps(), advice))
        levels = [*map(student.schedule.scales, finer), (1.0, 0.0)]  # where the last step ends all is clean
        self.register_buffer("times", torch.tensor(finer, device=student.device), persistent=False)
        self.register_buffer("levels", torch.tensor(levels, device=student.device), persistent=False)

    def forward(self, batch: Batch, draws: Draws) -> Tensor:
        """As `DiffusionPolicy.forward`; which of its steps the student takes comes from `draws.steps`."""
        student = self.student
        condition, clean, noise, drawn = student.training_inputs(batch, draws)
        place = 2 * (drawn * self.steps / student.config.num_train_timesteps).long()  # among the teacher's steps
        alpha, sigma = self._levels(place)
        start, step = alpha * clean + sigma * noise, self.times[place]
        with torch.no_grad():
            end = self._two_steps(start, place, self.teacher.training_inputs(batch, draws)[0])
            alpha_end, sigma_end = self._levels(place + 2)
            # end = alpha_end * wanted + sigma_end * (start - alpha * wanted) / sigma, for the clean actions wanted
            ratio = sigma_end / sigma
            wanted = (end - ratio * start) / (alpha_end - ratio * alpha)
            target = student.schedule.prediction(start, wanted, step)
        return student.mean_error(student.diffusion.denoiser(start, step, condition), target, batch)

    def _two_steps(self, x: Tensor, place: Tensor, condition: Tensor) -> Tensor:
        for now in (place, place + 1):
            step, (alpha, sigma) = self.times[now], self._levels(now + 1)
            predicted = self.teacher.diffusion.denoiser(x, step, condition)
            clean, direction = self.teacher.schedule.split(predicted, x, step)
            x = alpha * clean + sigma * direction
        return x

    def _levels(self, place: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at places among the teacher's steps, (B,), as (B, 1, 1) each."""
        alpha, sigma = self.levels[place].unbind(1)
        return alpha[:, None, None], sigma[:, None, None]
