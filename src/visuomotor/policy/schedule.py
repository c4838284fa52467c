"""How noise grows from clean actions, and what a prediction says of both: diffusion, and rectified flow."""

import math

import torch
from torch import Generator, Tensor

from visuomotor.config import FLOW, DiffusionConfig


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

    def draw_steps(self, count: int, generator: Generator) -> Tensor:
        """(B,) steps to train at, uniform over all of them."""
        return torch.randint(self.num_train_timesteps, (count,), generator=generator)

    def add_noise(self, clean: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise, for (B, Tp, Da) and steps (B,)."""
        a = self.alphas_cumprod.to(clean.device)[step][:, None, None]
        return a.sqrt() * clean + (1 - a).sqrt() * noise

    def target(self, clean: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """What the network is to predict from `add_noise` of the same (v: Salimans and Ho 2022, appendix D)."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return clean
        a = self.alphas_cumprod.to(clean.device)[step][:, None, None]
        return a.sqrt() * noise - (1 - a).sqrt() * clean

    def timesteps(self, steps: int) -> list[int]:
        """Evenly spaced steps from noise to 0 ("leading" in diffusers): 10 of 100 gives 90, 80, ... 0."""
        stride = self.num_train_timesteps // steps
        return [i * stride for i in reversed(range(steps))]

    def alpha(self, step: int) -> float:
        """a_t; 1 (all signal) before the first step."""
        return float(self.alphas_cumprod[step]) if step >= 0 else 1.0

    def split(self, prediction: Tensor, x: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The clean actions (clipped) and the noise that a prediction means for x_t."""
        a = self.alpha(step)
        if self.prediction_type == "epsilon":
            noise = prediction
            clean = (x - (1 - a) ** 0.5 * noise) / a**0.5
        elif self.prediction_type == "sample":
            clean = prediction
            noise = (x - a**0.5 * clean) / (1 - a) ** 0.5
        else:
            clean = a**0.5 * x - (1 - a) ** 0.5 * prediction
            noise = a**0.5 * prediction + (1 - a) ** 0.5 * x
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

    def split(self, prediction: Tensor, x: Tensor, step: float) -> tuple[Tensor, Tensor]:
        """The clean actions (clipped) and the noise that a prediction means for x_s, s > 0."""
        s = step / self.last
        if self.prediction_type == "sample":
            clean = prediction
            noise = (x - (1 - s) * clean) / s
        else:
            clean = x - s * prediction
            noise = x + (1 - s) * prediction
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
