"""What a run says while it trains: metrics.jsonl and a progress bar, and the boards that show the same."""

import json
import math
import os
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from visuomotor.errors import VisuomotorError, mismatch
from visuomotor.files import replacing
from visuomotor.recipe import Recipe
from visuomotor.training.boards import open_boards


class Metrics:
    """Writes one line of metrics at a time, and shows them.

    Fields of metrics.jsonl, null where there is no finite number: `step` (steps done), `epoch` (passes over the
    windows), `loss` (mean since the last line), `learning_rate` (of the last step), `gradient_norm` (of the last
    step, before clipping), `samples_per_second` (windows, since the last line, without the time of validation and
    checkpoints), `seconds` (of training, in all sessions of the run, without what was taken again); with episodes held
    out `validation_loss` every `validate_every` steps; with nonfinite_loss skip `skipped_steps` (left out since the
    last line).

    Args:
        run: The run's folder.
        first_step: Steps done.
        recipe: With the features filled.
        silent: Write and show nothing, as all processes but the main one.
    """

    def __init__(self, run: Path, first_step: int, recipe: Recipe, silent: bool = False):
        self._steps, self._first, self._batch = recipe.training.steps, first_step, recipe.training.batch_size
        self._silent = silent
        self._boards = [] if silent else open_boards(run, first_step, recipe)
        self._path = Path(os.devnull) if silent else run / "metrics.jsonl"
        self._before = 0.0 if silent else _seconds(self._path)
        self._file = self._path.open("a")
        self._start = self._printed = self._since = time.monotonic()
        self._last = first_step
        self._validation = ""
        self._bar: Any = None
        if sys.stderr.isatty() and not silent:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = [TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[said]}")]
            columns.append(TimeRemainingColumn())
            # rich looks back 30 seconds: it would never know the time left of steps that take longer.
            self._bar = Progress(*columns, console=Console(stderr=True), speed_estimate_period=3600)
            self._task = self._bar.add_task("", total=self._steps, completed=first_step, said="")

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()
        for board in self._boards:
            with _told(board):
                board.close()
        with suppress(OSError):  # on a full disk; every line that counts has been flushed
            self._file.close()

    def tick(self, step: int) -> None:
        """One more step is done."""
        if self._bar:
            self._bar.update(self._task, completed=step)
        elif not self._silent and self._printed == self._start and time.monotonic() - self._start > 30:
            self._print(step, time.monotonic(), "")  # the first line of metrics may be an hour away

    @contextmanager
    def pause(self) -> Generator[None]:
        """What happens meanwhile does not count in `samples_per_second`."""
        began = time.monotonic()
        yield
        self._since += time.monotonic() - began

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """One line, flushed: a run that is killed keeps it.

        Raises:
            VisuomotorError: The disk is full.
        """
        now = time.monotonic()
        speed = (step - self._last) * self._batch / (now - self._since)
        values = {**values, "samples_per_second": speed}
        # JSON knows no NaN: what is not finite is null.
        values = {name: None if value is None or not math.isfinite(value) else value for name, value in values.items()}
        line = {"step": step, **values, "seconds": round(self._before + now - self._start, 2)}
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            advice = "make room and go on with --resume"
            raise VisuomotorError(mismatch(str(self._path), "room for a line", str(error), advice)) from error
        self._since, self._last = now, step
        self.show(step, values)
        self._say(step, now, values)

    def show(self, step: int, values: Mapping[str, Any]) -> None:
        """Numbers for the boards alone."""
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        for board in self._boards:
            with _told(board):
                board.write(step, numbers)

    def sync(self) -> None:
        """Waits until the lines have reached the disk."""
        os.fsync(self._file.fileno())

    def _say(self, step: int, now: float, values: Mapping[str, float | None]) -> None:
        loss, speed = values["loss"], values["samples_per_second"]
        if values.get("validation_loss") is not None:
            self._validation = f"held out {values['validation_loss']:.4f}  "
        said = f"loss {'none' if loss is None else f'{loss:.4f}'}  {self._validation}{speed:.0f} samples/s"
        if self._bar:
            self._bar.update(self._task, said=said)
        elif not self._silent and (now - self._printed > 30 or step == self._steps):
            self._print(step, now, f"{said}  ")

    def _print(self, step: int, now: float, said: str) -> None:
        self._printed = now
        left = (now - self._start) / (step - self._first) * (self._steps - step)
        print(f"step {step}/{self._steps}  {said}{left / 60:.1f} min left", file=sys.stderr, flush=True)


@contextmanager
def _told(board: object) -> Generator[None]:
    """A board that fails is told of, and the run goes on."""
    try:
        yield
    except Exception as error:  # of whatever kind: a board is a service of others
        print(f"{type(board).__name__}: {error}", file=sys.stderr)


def cut_lines(path: Path, step: int) -> None:
    """Drops the lines of steps that a resumed run will take again, and one that was cut short."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines() if _step(line) <= step]
        with replacing(path, durable=True) as draft:
            draft.write_text("".join(f"{line}\n" for line in lines))


def _seconds(path: Path) -> float:
    """What the run that is gone on with has taken up to its last line."""
    last = path.read_text().splitlines()[-1:] if path.is_file() else []  # not a device, which may never end
    return json.loads(last[0]).get("seconds", 0.0) if last else 0.0


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")  # a line that was cut short when the run was killed
