"""An exponential moving average of the weights, which acts better than the weights themselves."""

import copy

import torch

from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.recipe import TrainingConfig
from visuomotor.training.sharding import gathered_copy, held, is_sharded, sharded_copy


class WeightAverage:
    """Follows a policy's weights with decay 1 - (1 + step) ** -power, at most max_decay (as diffusion_policy does).

    Buffers (BatchNorm's statistics) are copied, not averaged. With max_decay 0 the average is the policy, and takes no
    memory of its own; that of a policy which is shared out among processes is a copy even then.

    Attributes:
        policy: A copy in evaluation mode that holds the averages, shared out as the policy is.
    """

    def __init__(self, policy: DiffusionPolicy, config: TrainingConfig):
        self.power, self.max_decay = config.ema_power, config.ema_max_decay
        self._sharded = is_sharded(next(policy.parameters()))
        self._is_policy = not self.max_decay and not self._sharded
        if self._sharded:  # FSDP2 refuses a deep copy
            self.policy = sharded_copy(policy)
        else:
            shared = [*policy.parameters(), *policy.buffers()] if self._is_policy else []
            self.policy = copy.deepcopy(policy, {id(tensor): tensor for tensor in shared}).eval()
        if not self._is_policy:
            self.policy.requires_grad_(False)
        self._averages, self._weights = list(self.policy.parameters()), list(policy.parameters())
        self._buffers = list(zip(self.policy.buffers(), policy.buffers(), strict=True))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Call after the optimizer's step number `step`, from 0."""
        if self._is_policy:
            return
        decay = min(1 - (1 + step) ** -self.power, self.max_decay)
        # On a GPU in a few kernels; on a processor one tensor after the other.
        averages, weights = ([held(tensor) for tensor in tensors] for tensors in (self._averages, self._weights))
        torch._foreach_lerp_(averages, weights, 1 - decay)
        for average, buffer in self._buffers:
            average.copy_(buffer)

    def gathered(self) -> DiffusionPolicy | None:
        """The averaged policy, whole: `policy` itself, unless that is shared out among processes.

        Returns:
            If it is, which every process must ask for, a copy on the processor in the main one, and None in the others.
        """
        return gathered_copy(self.policy) if self._sharded else self.policy
