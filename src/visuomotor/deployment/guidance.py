"""Real-time chunking for diffusion and rectified flow: plans that continue the chunk before (Black, Galliker and
Levine 2025, "Real-Time Execution of Action Chunking Flow Policies").

At every denoising step the estimate of the clean actions is drawn towards those of the chunk before, by the gradient of
their weighted distance (pseudo-inverse guidance, Song et al. 2023, with a bounded weight).

Differs from the paper:

- Actions that have been or will have been executed, those of the observed past among them, are also put into the
  estimate as they are (inpainting), so that the new chunk holds them exactly.
- The weight, which the paper gives for rectified flow, is written for any x = alpha clean + sigma noise. With the
  paper's time tau = alpha / (alpha + sigma), x / (alpha + sigma) is rectified flow, and its weight
  min(beta, (1 - tau) / (tau r^2)) pulls the estimate by min(beta sigma, sigma^2 / (alpha r^2)) times the gradient with
  respect to x.
- r^2, how uncertain the estimate is, takes the plans for one observation to be spread by s, not by 1:
  r^2 = s^2 sigma^2 / (alpha^2 s^2 + sigma^2). A policy that knows what it wants is not moved at all by the paper's r^2.
- The estimate is never moved further than its weighted distance from the chunk before.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from visuomotor.deployment.joining import Prior, RealtimeConfig
from visuomotor.policy.diffusion import DiffusionPolicy, Guide
from visuomotor.policy.samplers import Predict


def plan(
    policy: DiffusionPolicy,
    observation: Mapping[str, Tensor],
    priors: Sequence[Prior | None],
    config: RealtimeConfig,
    noise: Tensor | None = None,
    previous: Tensor | None = None,
) -> np.ndarray:
    """Plans for several episodes at once.

    Args:
        policy: Its weights stay as they are.
        observation: As for `DiffusionPolicy.plan`, (B, To, ...).
        priors: B of them; None for a plan that is free.
        config: For `max_guidance` and `plan_spread`.
        noise: As for `DiffusionPolicy.plan`.
        previous: As for `DiffusionPolicy.plan`: for a warm start.

    Returns:
        (B, Tp, Da) float32 in data units.
    """
    if all(prior is None for prior in priors):
        return policy.plan(observation, noise, previous=previous).float().cpu().numpy()
    guide = continuation(policy, priors, config)
    learning = [weight for weight in policy.parameters() if weight.requires_grad]
    try:
        for weight in learning:  # gradients of the weights would cost a third of the time
            weight.requires_grad_(False)
        return policy.plan(observation, noise, guide, previous).float().cpu().numpy()
    finally:
        for weight in learning:
            weight.requires_grad_()


def continuation(policy: DiffusionPolicy, priors: Sequence[Prior | None], config: RealtimeConfig) -> Guide:
    """The guide for `DiffusionPolicy.plan` that makes each of B plans continue what its prior says."""
    horizon, size = policy.config.horizon, policy.config.output_features["action"].shape[0]
    free = Prior(np.zeros((horizon, size), np.float32), np.zeros(horizon, np.float32), np.zeros(horizon, bool))
    known = [prior or free for prior in priors]
    actions, weights, frozen = (
        torch.from_numpy(np.stack([getattr(prior, name) for prior in known])).to(policy.device)
        for name in ("actions", "weights", "frozen")
    )
    target, schedule = policy.normalizer("action", actions), policy.schedule
    weights, frozen = weights[..., None], frozen[..., None]

    def guide(predict: Predict) -> Predict:
        def guided(x: Tensor, step: float) -> Tensor:
            alpha, sigma = schedule.scales(step)
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                clean = schedule.clean(x, predict(x, step), step)
                error = (weights * (target - clean)).detach()
                (pull,) = torch.autograd.grad(clean, x, error)
            x, clean = x.detach(), clean.detach()
            spread = alpha * config.plan_spread**2  # 0 at the start of rectified flow, and the weight without bounds
            certain = (alpha * spread + sigma**2) / spread if spread else math.inf
            pull = pull * min(config.max_guidance * sigma, certain)
            share = _length(error) / _length(pull).clamp(min=1e-12)
            clean = torch.where(frozen, target, clean + share.clamp(max=1) * pull)
            return schedule.prediction(x, clean, step)

        return guided

    return guide


def _length(vectors: Tensor) -> Tensor:
    return vectors.norm(dim=(1, 2), keepdim=True)
