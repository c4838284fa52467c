"""How noise grows over the diffusion steps, and what a prediction says of the clean actions and of the noise."""

import math

import torch
from torch import Tensor

from visuomotor.config import DiffusionConfig


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

    def add_noise(self, clean: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise, for (B, Tp, Da) and steps (B,)."""
        a = self.alphas_cumprod.to(clean.device)[step][:, None, None]
        return a.sqrt() * clean + (1 - a).sqrt() * noise

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
        else:
            clean = prediction
            noise = (x - a**0.5 * clean) / (1 - a) ** 0.5
        if self.clip is not None:
            clean = clean.clamp(-self.clip, self.clip)
        return clean, noise


def _squared_cosine_betas(steps: int) -> Tensor:
    """Nichol and Dhariwal 2021, equation 17, each beta at most 0.999."""

    def signal(share: float) -> float:
        return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - signal((i + 1) / steps) / signal(i / steps), 0.999) for i in range(steps)]
    return torch.tensor(betas, dtype=torch.float32)
