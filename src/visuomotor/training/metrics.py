"""What a run says while it trains: metrics.jsonl always, a progress bar, TensorBoard if it is installed."""

import json
import sys
import time
from pathlib import Path
from typing import Any, Self


class Metrics:
    """Writes one line of metrics at a time, and shows them.

    Fields of metrics.jsonl: `step` (steps done), `epoch` (passes over the windows), `loss` (mean since the last line),
    `learning_rate` (of the last step), `gradient_norm` (of the last step, before clipping), `samples_per_second`
    (windows, since the last line), `seconds` (since the run was started or resumed).
    """

    def __init__(self, run: Path, first_step: int, steps: int):
        self._file = (run / "metrics.jsonl").open("a")
        self._steps, self._first = steps, first_step
        self._start = self._printed = time.monotonic()
        self._bar: Any = None
        self._board = _tensorboard(run)
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = [TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[said]}")]
            self._bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
            self._task = self._bar.add_task("", total=steps, completed=first_step, said="")

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._bar:
            self._bar.stop()
        if self._board:
            self._board.close()

    def tick(self, step: int) -> None:
        """One more step is done."""
        if self._bar:
            self._bar.update(self._task, completed=step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line, flushed: a run that is killed keeps it."""
        now = time.monotonic()
        line = {"step": step, **values, "seconds": round(now - self._start, 2)}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        said = f"loss {values['loss']:.4f}  {values['samples_per_second']:.0f} samples/s"
        if self._bar:
            self._bar.update(self._task, said=said)
        elif now - self._printed > 30 or step == self._steps:
            self._printed = now
            left = (now - self._start) / (step - self._first) * (self._steps - step)
            print(f"step {step}/{self._steps}  {said}  {left / 60:.1f} min left", file=sys.stderr, flush=True)


def _tensorboard(run: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # the extra `tensorboard` is not installed
        return None
    return SummaryWriter(str(run / "tensorboard"))
