"""The loss between two lines of metrics.jsonl, and what happens when it is not finite."""

import math
import sys
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visuomotor.data.dataset import Dataset
from visuomotor.errors import LossError, mismatch
from visuomotor.training.checkpoint import last_good

NAMED = 64  # windows of a batch that an error names


class Losses:
    """Adds up the loss since the last line, and keeps steps that are not finite away from the weights.

    A step whose loss or gradient is not finite changes neither weights nor moments. On a processor both are looked at
    before the step. On a GPU that would make the host wait at every step: there a flag on the device tells the fused
    optimizer to leave the update out, and the host reads the numbers when they have arrived, a step or two later and
    always before a line or a checkpoint is written. So `accept` may be a part of a CUDA graph, and `note` is not.

    Args:
        optimizer: Fused, if `asynchronous`.
        skip: Leave such batches out and go on; otherwise they end the run.
        place: Names the windows of a step, for the error.
        run: The run's folder, for the error.
        noted: `state()` of the run that is resumed.
        asynchronous: Whether the loss is computed on a GPU.
        statistics: What a forward pass changes, as BatchNorm does: with `skip`, a step that is left out does not.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        skip: bool,
        place: Callable[[int], str],
        run: Path,
        noted: dict[str, Any] | None = None,
        asynchronous: bool = False,
        statistics: Iterable[torch.Tensor] = (),
    ):
        noted = noted or {"sum": 0.0, "count": 0, "skipped": 0}
        device = optimizer.param_groups[0]["params"][0].device
        self._sum = torch.tensor(noted["sum"], dtype=torch.float32, device=device)
        self._skipped = torch.tensor(noted["skipped"], device=device)
        self._count: int = noted["count"]
        self._optimizer, self._asynchronous = optimizer, asynchronous
        self._skip, self._place, self._run, self._told = skip, place, run, False
        self._statistics = [(tensor, tensor.clone()) for tensor in statistics if skip]
        self._numbers: torch.Tensor | None = None
        self._on_the_way: deque[tuple[int, torch.Tensor, Any]] = deque()

    def accept(self, step: int, loss: torch.Tensor, gradient_norm: torch.Tensor) -> bool:
        """Judges step number `step`, from 0; returns whether the optimizer is to be called.

        Raises:
            LossError: The loss or the gradient is not finite; on a GPU `note` says so.
        """
        loss = loss.detach()
        finite = loss.isfinite() & gradient_norm.isfinite()
        self._sum += loss.masked_fill(~finite, 0)
        self._skipped += ~finite
        for tensor, before in self._statistics:
            before.copy_(torch.where(finite, tensor, before))
            tensor.copy_(before)
        self._numbers = torch.stack([loss, gradient_norm])
        if not self._asynchronous:
            return self._look(step, self._numbers)
        self._optimizer.found_inf = (~finite).float()  # ty: ignore[missing-attribute]  # as torch's GradScaler does
        return True

    def note(self, step: int) -> None:
        """Counts step number `step`, after it; on a GPU sends for its numbers, and looks at those that have arrived.

        Raises:
            LossError: On a GPU, the loss or the gradient of this step or of an earlier one is not finite.
        """
        self._count += 1
        if not self._asynchronous:
            return
        assert self._numbers is not None
        numbers, event = self._numbers.clone(), None
        if numbers.is_cuda:
            numbers = torch.empty(2, pin_memory=True).copy_(numbers, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._on_the_way.append((step, numbers, event))
        while self._on_the_way and _arrived(self._on_the_way[0][2]):
            self._look(*self._on_the_way.popleft()[:2])

    def mean(self) -> dict[str, float | None]:
        """The fields of a line: the mean `loss` since the last one, None if every step was left out; counts anew."""
        self.settle()
        skipped = int(self._skipped)
        counted = self._count - skipped
        fields: dict[str, float | None] = {"loss": self._sum.item() / counted if counted else None}
        if self._skip:
            fields["skipped_steps"] = skipped
        self._sum.zero_()
        self._skipped.zero_()
        self._count = 0
        return fields

    def state(self) -> dict[str, Any]:
        """What a resumed run needs so that its next line is that of a run which was never stopped."""
        self.settle()
        return {"sum": self._sum.item(), "count": self._count, "skipped": int(self._skipped)}

    def settle(self) -> None:
        """Waits for the numbers of all steps taken, and looks at them."""
        while self._on_the_way:
            step, numbers, event = self._on_the_way.popleft()
            if event:
                event.synchronize()
            self._look(step, numbers)

    def _look(self, step: int, numbers: torch.Tensor) -> bool:
        loss, norm = numbers.tolist()
        if math.isfinite(loss) and math.isfinite(norm):
            return True
        found = f"{loss:g} (gradient norm {norm:g})"
        if not self._skip:
            advice = "look at these windows; resume and leave such batches out with nonfinite_loss skip; or begin in a "
            advice += f"new folder with a lower optimizer_lr, from an initial_policy; {last_good(self._run)}"
            expected, found = "a finite number", f"{found} from {self._place(step)}"
            raise LossError(mismatch(f"loss of step {step + 1}", expected, found, advice))
        if not self._told:
            told = f"step {step + 1}: the loss is {found} and the batch is left out: {self._place(step)}; metrics.jsonl"
            print(f"{told} counts further ones as skipped_steps", file=sys.stderr)
            self._told = True
        return False


def name_windows(dataset: Dataset, rows: np.ndarray) -> str:
    """The windows relative to these rows as a user knows them: by episode and frame."""
    frames: dict[int, list[int]] = {}
    for row in np.sort(rows[:NAMED]).tolist():
        place = int(np.searchsorted(dataset.episode_ends, row, side="right"))
        frames.setdefault(int(dataset.episodes[place]), []).append(row - int(dataset.episode_starts[place]))
    parts = [f"episode {episode} frame {', '.join(map(str, there))}" for episode, there in frames.items()]
    more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    return f"the windows at {'; '.join(parts)}{more}"


def _arrived(event: Any) -> bool:
    return event is None or event.query()
