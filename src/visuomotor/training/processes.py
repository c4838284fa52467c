"""The processes that train one policy together: one, unless torchrun has started several.

Each takes its share of every batch. Everything random is drawn for the whole batch and then shared out, so that the
same batch gives the same loss and gradient however many processes there are, up to rounding. Weights, moments and
average are equal in all of them, unless each holds a part (sharding.py); the main one writes.
"""

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from visuomotor.errors import ConfigError, mismatch
from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.recipe import TrainingConfig
from visuomotor.training.sharding import shard

Value = TypeVar("Value")
PATIENCE = timedelta(days=1)
"""The main process may decode a data set while the others wait. That one of them has ended torchrun notices itself."""


class Processes:
    """What the loop needs to know of the others.

    Args:
        config: Its `batch_size` is that of all processes together, `gradient_accumulation_steps` parts in each.
        device: `cpu`, `cuda` or `mps`, of this process.

    Attributes:
        main: Whether this is the one that writes.
        rank: Its number, from 0, which is the main one's.
        device: Where this one computes.
        sharded: Whether each holds a part of the policy.
        takes_part: Whether this one is needed where the whole policy is read: the main one, or all if it is sharded.

    Raises:
        ConfigError: The batch cannot be shared out equally; sharding is asked of one process; or Accelerate is not
            installed.
    """

    def __init__(self, config: TrainingConfig, device: str):
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.main, self.device, self.sharded = True, device, config.sharding == "fsdp"
        if self.sharded and self.count == 1:
            advice = "start with torchrun --nproc-per-node N, or go on with --sharding none"
            raise ConfigError(mismatch("sharding fsdp", "several processes of torchrun", "one", advice))
        self._accelerator: Any = None
        if self.count > 1:
            self._accelerator = _accelerator(device)
            self.main, self.device = self._accelerator.is_main_process, str(self._accelerator.device)
            self._hosts = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
        elif "ACCELERATE_MIXED_PRECISION" in os.environ:
            told = "accelerate launch has started one process, as it does on processors whatever is asked for"
            print(f"{told}: torchrun --nproc-per-node N starts N", file=sys.stderr)
        self.takes_part = self.main or self.sharded
        self.rank = self._accelerator.process_index if self._accelerator else 0
        pieces = self.count * config.gradient_accumulation_steps
        size, rest = divmod(config.batch_size, pieces)
        if rest:
            shared = f"{self.count} processes and {config.gradient_accumulation_steps} parts in each"
            advice = "change batch_size, which is that of all together, or gradient_accumulation_steps"
            raise ConfigError(mismatch("batch_size", f"a multiple of {pieces}: {shared}", config.batch_size, advice))
        first = self.rank * config.gradient_accumulation_steps
        places = range(first, first + config.gradient_accumulation_steps)
        self.parts = [slice(place * size, (place + 1) * size) for place in places]
        self._autocast = config.mixed_precision == "bf16"

    def place(self, policy: DiffusionPolicy) -> DiffusionPolicy:
        """The policy where it computes: whole on this one's device, or each process's part on its own."""
        return shard(policy, self.device) if self.sharded else policy.to(self.device)

    def wrap(self, policy: nn.Module) -> nn.Module:
        """The policy whose `forward` is the loss, and whose gradients will be those of all processes."""
        return policy if self.sharded or not self._accelerator else self._accelerator.prepare_model(policy)

    def precision(self) -> AbstractContextManager[Any]:
        """In which the loss is computed."""
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self._autocast)

    def collect(self, model: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Around the backward pass of a part: gradients are exchanged after the last one.

        After each one if the policy is sharded: kept until the last, they would be as large as the whole policy.
        """
        waits = self._accelerator and not last and not self.sharded
        return self._accelerator.no_sync(model) if waits else nullcontext()

    def mean(self, value: Tensor) -> Tensor:
        """Of all processes, in each of them."""
        return self._accelerator.reduce(value, "mean") if self._accelerator else value

    def any(self, wish: bool) -> bool:
        """Whether any process wishes it: all hear of it after the same step."""
        if not self._accelerator:
            return wish
        wishes = torch.tensor(float(wish))  # in the processor's memory: nobody waits for what is in a GPU's queue
        torch.distributed.all_reduce(wishes, group=self._hosts)
        return bool(wishes)

    def main_first(self) -> AbstractContextManager[Any]:
        """The main process goes through this alone; the others follow when it is done, and find what it has made."""
        return self._accelerator.main_process_first() if self._accelerator else nullcontext()

    def from_main(self, make: Callable[[], Value]) -> Value:
        """What the main process makes; the others wait for it. If it fails there, torchrun ends the others."""
        made = [make() if self.main else None]
        if self._accelerator:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(made)
        return made[0]  # ty: ignore[invalid-explicit-return]

    def first(self, said: str | None) -> str | None:
        """Of what the processes that take part say, the first that is not None; each of them must call it."""
        if not self.sharded:
            return said
        from accelerate.utils import gather_object

        return next(filter(None, gather_object([said])), None)


def _accelerator(device: str) -> Any:
    try:
        from accelerate import Accelerator, InitProcessGroupKwargs
    except ImportError as error:
        advice = "pip install 'visuomotor[accelerate]'"
        raise ConfigError(mismatch("several processes", "the package accelerate", "none", advice)) from error
    # Precision is the recipe's, whatever `accelerate config` says.
    patience = InitProcessGroupKwargs(timeout=PATIENCE)
    return Accelerator(cpu=device == "cpu", mixed_precision="no", kwargs_handlers=[patience])
