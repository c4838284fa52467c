"""How noise grows from clean actions, and what a prediction says of both: diffusion, and rectified flow."""

import math
from typing import Any

import torch
from torch import Generator, Tensor

from visuomotor.config import FLOW, DiffusionConfig

Step = float | Tensor
CLEAN = -1
"""The step after the last one: no noise is left."""
NOISIEST = -2.0
"""log(alpha / sigma) where `spread` begins, step 90 of 100 on the squared cosine. Before it a small alpha makes large
errors of small ones, which a sampler of second order carries on."""


class NoiseSchedule:
    """Forward diffusion q(x_t | x_0) = N(sqrt(a_t) x_0, 1 - a_t) (Ho et al. 2020, equation 4).

    Step 0 is nearly clean, num_train_timesteps - 1 nearly noise. Equal to diffusers' schedulers of the same names.

    Attributes:
        alphas_cumprod: (num_train_timesteps,) float32, a_t: how much of the clean signal's variance is left.
    """

    def __init__(self, config: DiffusionConfig):
        self.num_train_timesteps = config.num_train_timesteps
        self.prediction_type = config.prediction_type
        self.clip = config.clip_sample_range if config.clip_sample else None
        if config.beta_schedule == "linear":
            betas = torch.linspace(config.beta_start, config.beta_end, self.num_train_timesteps)
        else:
            betas = _squared_cosine_betas(self.num_train_timesteps)
        self.alphas_cumprod = torch.cumprod(1 - betas, dim=0)
        self._copies: dict[torch.device, Tensor] = {}

    def draw_steps(self, count: int, generator: Generator) -> Tensor:
        """(B,) steps to train at, uniform over all of them."""
        return torch.randint(self.num_train_timesteps, (count,), generator=generator)

    def add_noise(self, clean: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise, for (B, Tp, Da) and steps (B,)."""
        a = self._signal(step)
        return a.sqrt() * clean + (1 - a).sqrt() * noise

    def target(self, clean: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """What the network is to predict from `add_noise` of the same (v: Salimans and Ho 2022, appendix D)."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return clean
        a = self._signal(step)
        return a.sqrt() * noise - (1 - a).sqrt() * clean

    def _signal(self, step: Tensor) -> Tensor:
        """a_t of steps (B,), as (B, 1, 1). A copy stays on each device: to send it, a GPU's host would wait."""
        if step.device not in self._copies:
            self._copies[step.device] = self.alphas_cumprod.to(step.device)
        return self._copies[step.device][step][:, None, None]

    def timesteps(self, steps: int) -> list[int]:
        """Evenly spaced steps from noise to 0 ("leading" in diffusers): 10 of 100 gives 90, 80, ... 0."""
        stride = self.num_train_timesteps // steps
        return [i * stride for i in reversed(range(steps))]

    def spread(self, steps: int) -> list[int]:
        """Steps even in log(alpha / sigma), as DPM-Solver's authors took them (Lu et al. 2022), from `NOISIEST` on.

        4 of 100 are 90, 65, 24, 5. Fewer than were asked for where two would fall on one.
        """
        a = self.alphas_cumprod.double()
        log_ratios = (a / (1 - a)).log() / 2
        log_ratios = log_ratios[: max(int((log_ratios >= NOISIEST).sum()), 1)]
        wanted = torch.linspace(float(log_ratios[-1]), float(log_ratios[0]), steps + 1, dtype=torch.float64)[:-1]
        nearest = (log_ratios[:, None] - wanted).abs().argmin(dim=0)
        return list(dict.fromkeys(nearest.tolist()))

    def alpha(self, step: int) -> float:
        """a_t; 1 (all signal) before the first step."""
        return float(self.alphas_cumprod[step]) if step >= 0 else 1.0

    def scales(self, step: Step) -> tuple[Any, Any]:
        """(alpha, sigma) of a step: x = alpha clean + sigma noise; (1, 0) of `CLEAN`. Of steps (B,) as (B, 1, 1)."""
        a = self._signal(step) if isinstance(step, Tensor) else self.alpha(int(step))
        return a**0.5, (1 - a) ** 0.5

    def clean(self, x: Tensor, prediction: Tensor, step: Step) -> Tensor:
        """The clean actions that a prediction means for x at a step, or steps (B,); not clipped."""
        alpha, sigma = self.scales(step)
        if self.prediction_type == "epsilon":
            return (x - sigma * prediction) / alpha
        if self.prediction_type == "sample":
            return prediction
        return alpha * x - sigma * prediction

    def prediction(self, x: Tensor, clean: Tensor, step: Step) -> Tensor:
        """The prediction that means these clean actions for x at a step: `clean` the other way round."""
        alpha, sigma = self.scales(step)
        if self.prediction_type == "epsilon":
            return (x - alpha * clean) / sigma
        if self.prediction_type == "sample":
            return clean
        return (alpha * x - clean) / sigma

    def split(self, prediction: Tensor, x: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """The clean actions (clipped) and the noise that a prediction means for x_t."""
        alpha, sigma = self.scales(step)
        clean = self.clean(x, prediction, step)
        if self.prediction_type == "epsilon":
            noise = prediction
        elif self.prediction_type == "sample":
            noise = (x - alpha * clean) / sigma
        else:
            noise = alpha * prediction + sigma * x
        return _clip(clean, self.clip), noise


class RectifiedFlow:
    """Straight lines from actions to noise, x_s = (1 - s) clean + s noise (Liu et al. 2022; Lipman et al. 2022).

    The network predicts the velocity along them, dx/ds = noise - clean, or the clean actions. Time is continuous, and
    runs from 0 (clean) to 1 (noise); the network is told s * (num_train_timesteps - 1), not rounded, so that its
    embedding of the step has the range that it has in diffusion.

    Differs from Lipman et al. and pi0: their time runs the other way, from noise to data, as does their velocity.
    """

    def __init__(self, config: DiffusionConfig):
        self.last = config.num_train_timesteps - 1
        self.prediction_type = config.prediction_type
        self.clip = config.clip_sample_range if config.clip_sample else None

    def draw_steps(self, count: int, generator: Generator) -> Tensor:
        """(B,) times to train at as the network is told them, uniform."""
        return torch.rand(count, generator=generator) * self.last

    def add_noise(self, clean: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """x_s, for (B, Tp, Da) and steps (B,)."""
        s = (step / self.last)[:, None, None]
        return (1 - s) * clean + s * noise

    def target(self, clean: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """What the network is to predict from `add_noise` of the same; the velocity is one along the whole line."""
        return clean if self.prediction_type == "sample" else noise - clean

    def timesteps(self, steps: int) -> list[float]:
        """Evenly spaced times from noise on, as the network is told them; 0, where sampling ends, is none of them."""
        return [(1 - i / steps) * self.last for i in range(steps)]

    def scales(self, step: Step) -> tuple[Any, Any]:
        """(alpha, sigma) of a time as the network is told it: x = alpha clean + sigma noise; (1, 0) of `CLEAN`.

        Of times (B,) as (B, 1, 1).
        """
        s = (step[:, None, None] if isinstance(step, Tensor) else max(step, 0)) / self.last
        return 1 - s, s

    def clean(self, x: Tensor, prediction: Tensor, step: Step) -> Tensor:
        """The clean actions that a prediction means for x at a time, not clipped."""
        return prediction if self.prediction_type == "sample" else x - self.scales(step)[1] * prediction

    def prediction(self, x: Tensor, clean: Tensor, step: Step) -> Tensor:
        """The prediction that means these clean actions for x at a time: `clean` the other way round."""
        return clean if self.prediction_type == "sample" else (x - clean) / self.scales(step)[1]

    def split(self, prediction: Tensor, x: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """The clean actions (clipped) and the noise that a prediction means for x_s, s > 0."""
        alpha, sigma = self.scales(step)
        clean = self.clean(x, prediction, step)
        noise = (x - alpha * clean) / sigma if self.prediction_type == "sample" else x + alpha * prediction
        return _clip(clean, self.clip), noise


def noise_schedule(config: DiffusionConfig) -> NoiseSchedule | RectifiedFlow:
    """What the config's sampler undoes."""
    return RectifiedFlow(config) if config.noise_scheduler_type == FLOW else NoiseSchedule(config)


def _clip(clean: Tensor, limit: float | None) -> Tensor:
    return clean if limit is None else clean.clamp(-limit, limit)


def _squared_cosine_betas(steps: int) -> Tensor:
    """Nichol and Dhariwal 2021, equation 17, each beta at most 0.999."""

    def signal(share: float) -> float:
        return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - signal((i + 1) / steps) / signal(i / steps), 0.999) for i in range(steps)]
    return torch.tensor(betas, dtype=torch.float32)
