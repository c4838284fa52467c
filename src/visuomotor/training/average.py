"""An exponential moving average of the weights, which acts better than the weights themselves."""

import copy

import torch

from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.recipe import TrainingConfig


class WeightAverage:
    """Follows a policy's weights with decay 1 - (1 + step) ** -power, at most max_decay (as diffusion_policy does).

    Buffers (BatchNorm's statistics) are copied, not averaged. With max_decay 0 the average is the policy, and takes no
    memory of its own.

    Attributes:
        policy: A copy in evaluation mode that holds the averages.
    """

    def __init__(self, policy: DiffusionPolicy, config: TrainingConfig):
        self.power, self.max_decay = config.ema_power, config.ema_max_decay
        shared = [] if self.max_decay else [*policy.parameters(), *policy.buffers()]
        self.policy = copy.deepcopy(policy, {id(tensor): tensor for tensor in shared}).eval()
        if not shared:
            self.policy.requires_grad_(False)
        self._averages, self._weights = list(self.policy.parameters()), list(policy.parameters())
        self._buffers = list(zip(self.policy.buffers(), policy.buffers(), strict=True))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Call after the optimizer's step number `step`, from 0."""
        if not self.max_decay:
            return
        decay = min(1 - (1 + step) ** -self.power, self.max_decay)
        for average, weight in zip(self._averages, self._weights, strict=True):
            average.lerp_(weight, 1 - decay)
        for average, buffer in self._buffers:
            average.copy_(buffer)
