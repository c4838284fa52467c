"""A training that pages start, follow and stop: `visuomotor train` in a process of its own."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from threading import RLock
from typing import Any, Literal

from visuomotor.config import STRICT, DiffusionConfig, check_rules
from visuomotor.data.dataset import Dataset, read
from visuomotor.errors import ConfigError, DatasetError, mismatch
from visuomotor.policy.checkpoint import checkpoints
from visuomotor.presets import PRESETS, preset
from visuomotor.recipe import TrainingConfig
from visuomotor.serialization import from_json
from visuomotor.studio.policies import Policies
from visuomotor.studio.session import Message
from visuomotor.studio.sources import Sources
from visuomotor.training.loop import fill_features

RUNS = "outputs/studio"
MOST_STEPS = 1_000_000
TUNING = 0.3
"""Of a preset's learning rate where a policy is trained further."""
NICENESS = 10
"""Of a training, at least: what is watched meanwhile keeps its time."""
PATIENCE = 60.0
"""Seconds that a training has to save and leave when the studio ends; it has its signal and goes on doing so."""

State = Literal["none", "running", "stopping", "stopped", "failed", "done"]
UNDER_WAY = ("running", "stopping")


@dataclass(frozen=True)
class Asked:
    """What a page wants to be trained."""

    __pydantic_config__ = STRICT

    data: tuple[str, ...]
    """Names among the studio's sources; several are joined."""
    preset: str
    """Of the recipe."""
    steps: int
    """Optimizer steps."""
    initial_policy: str = ""
    """Name of one of the studio's policies whose weights to begin with; empty begins with random ones."""
    held_out: int = 0
    """Episodes that are not trained on but measure the loss."""

    def __post_init__(self) -> None:
        once = len(set(self.data)) == len(self.data) > 0
        check_rules(
            [
                (once, "data", "one source or more, each once", list(self.data), "choose others"),
                (1 <= self.steps <= MOST_STEPS, "steps", f"1 to {MOST_STEPS}", self.steps, "choose another number"),
                (self.held_out >= 0, "held_out", "0 or more", self.held_out, "0 trains on all"),
            ]
        )


class Training:
    """The studio's training; one at a time, whoever asks.

    Attributes:
        state: What came of it, or `none` before the first one.
        error: Why it failed, in one line.
        run: Its folder.
        lines: Of its metrics.jsonl; another list where it began anew.

    Args:
        policies: To begin with, and where the result is put at each of its checkpoints.
        sources: What may be learned from.
        runs: Folder in which each run has one of its own, named after the time; nothing is written elsewhere.
    """

    def __init__(self, policies: Policies, sources: Sources, runs: str | Path = RUNS):
        self._policies, self._sources, self._runs = policies, sources, Path(runs)
        self._lock = RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._asked: Asked | None = None
        self._command: list[str] = []
        self.state: State = "none"
        self.error = ""
        self.run = Path()
        self.lines: list[dict[str, Any]] = []
        self._file = self._read = 0  # which file the lines are from, how far it is read
        self._checkpoint: Path | None = None
        self._silent = 0  # bytes of the log that earlier launches wrote

    def options(self, data: Sequence[str]) -> dict[str, Any]:
        """What can be trained on some of the sources: presets that fit their features, and for each of these the
        policies that it can begin with.

        Raises:
            DatasetError: They are none of the studio's, or cannot be read.
        """
        sources = self._sources.names
        chosen = list(data) or sources[:1]
        for name in chosen:
            if name not in sources:
                raise DatasetError(mismatch("data", f"some of {sources}", repr(name), "start the studio with --data"))
        dataset = Dataset(read(chosen[0] if len(chosen) == 1 else chosen), check=False)
        presets = []
        for name, make in PRESETS.items():
            recipe = make()
            try:
                config = fill_features(recipe, dataset)
            except (ConfigError, DatasetError):
                continue  # it is for other features
            about, like = make.__doc__, self._policies.like(config)
            presets.append({"name": name, "about": about, "steps": recipe.training.steps, "policies": like})
        counts = {"episodes": len(dataset.episodes), "frames": len(dataset)}
        return {"data": chosen, "presets": presets, **counts}

    def start(self, asked: Asked) -> None:
        """Begins one in a new folder.

        Raises:
            ConfigError: One is under way, or nothing can be written there, or what is asked for does not fit.
            DatasetError: The data are none of the studio's, or cannot be read.
        """
        possible = self.options(asked.data)
        presets = {one["name"]: one for one in possible["presets"]}
        if asked.preset not in presets:
            advice = "the others observe something else"
            raise ConfigError(mismatch("preset", f"one of {list(presets)}", repr(asked.preset), advice))
        like = presets[asked.preset]["policies"]
        if asked.initial_policy and asked.initial_policy not in like:
            advice = f"others are not of the network of {asked.preset}"
            raise ConfigError(mismatch("initial_policy", f"one of {like}", repr(asked.initial_policy), advice))
        if asked.held_out >= possible["episodes"]:
            expected = f"less than all {possible['episodes']} episodes"
            raise ConfigError(mismatch("held_out", expected, asked.held_out, "leave some to train on"))
        with self._lock:
            self.look()
            if self.state in UNDER_WAY:
                raise ConfigError(mismatch("training", "one at a time", f"{self.run} under way", "stop that first"))
            run = self._new_folder()
            self._command = [sys.executable, "-m", "visuomotor", "train", asked.preset, "--data", *asked.data]
            self._command += ["--output", str(run), *self._flags(asked)]
            self._asked, self.run, self.lines, self._file, self._checkpoint = asked, run, [], 0, None
            self._launch()

    def go_on(self) -> None:
        """Resumes the one that was stopped.

        Raises:
            ConfigError: There is none.
        """
        with self._lock:
            self.look()
            if self.state not in ("stopped", "failed"):
                raise ConfigError(mismatch("training", "one that was stopped", self.state, "start one"))
            self._launch("--resume")

    def stop(self) -> None:
        """Has it save a checkpoint after the running step, and leave. One that has ended meanwhile is left alone."""
        with self._lock:
            self.look()
            if self._process and self.state == "running":  # a second signal would end it unsaved
                self._process.terminate()
                self.state = "stopping"

    def close(self) -> None:
        """Stops it, and waits for its checkpoint."""
        self.stop()
        if self._process and self.state in UNDER_WAY:
            _say(f"studio:  {self.run} saves its checkpoint")
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                _say(f"studio:  {self.run} is still at it")

    def look(self) -> None:
        """Takes in what it has done since."""
        with self._lock:
            if self._process is None or self.state not in UNDER_WAY:
                return
            status = self._process.poll()  # first: when it has ended, everything is there
            self._read_lines()
            newest = next(iter(checkpoints(self.run)), None)
            if newest and newest != self._checkpoint:
                self._checkpoint = newest
                self._policies.add(str(self.run))
            if status is not None:
                stopped = status in (-signal.SIGTERM, 128 + signal.SIGTERM)
                self.state = "done" if status == 0 else "stopped" if stopped else "failed"
                self.error = self._failure(status) if self.state == "failed" else ""

    def status(self) -> dict[str, Any]:
        """How it stands, for a page."""
        with self._lock:
            return {
                "sources": list(self._sources.names),
                "state": self.state,
                "run": str(self.run),
                "asked": dataclasses.asdict(self._asked) if self._asked else None,
                "left": self._left(),
                "policy": str(self.run) if self._checkpoint else "",
                "error": self.error,
            }

    def _flags(self, asked: Asked) -> Iterator[str]:
        """What is other than in the preset: short runs have lines and checkpoints, too."""
        recipe, few = preset(asked.preset).training, max(1, asked.steps // 10)
        changed: dict[str, Any] = {
            "steps": asked.steps,
            "scheduler_warmup_steps": min(recipe.scheduler_warmup_steps, few),
            "validation_episodes": asked.held_out,
            "log_every": min(recipe.log_every, max(1, asked.steps // 100)),
            "validate_every": max(1, asked.steps // 20),
            "save_every": min(recipe.save_every, few),
            "device": self._policies.device,
        }
        if asked.initial_policy:
            changed["initial_policy"] = self._policies.source(asked.initial_policy)
            changed["optimizer_lr"] = f"{TUNING * recipe.optimizer_lr:g}"
            changed["prediction_type"] = self._policies.prediction_type(asked.initial_policy)
        known = (*dataclasses.fields(TrainingConfig), *dataclasses.fields(DiffusionConfig))
        assert changed.keys() <= {spec.name for spec in known}
        for name, value in changed.items():
            yield from (f"--{name.replace('_', '-')}", str(value))

    def _new_folder(self) -> Path:
        name, number = f"{datetime.now():%Y-%m-%d_%H-%M-%S}", 1
        while True:
            run = self._runs / (name if number == 1 else f"{name}_{number}")
            try:
                run.mkdir(parents=True)
            except FileExistsError:
                number += 1
            except OSError as error:
                advice = "choose another with --runs"
                raise ConfigError(mismatch(str(run), "a folder that can be made", error.strerror, advice)) from error
            else:
                return run

    def _launch(self, *more: str) -> None:
        try:
            with self._log.open("ab") as log:
                self._silent = log.tell()
                self._process = subprocess.Popen(
                    [*self._command, *more],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C in a terminal is for the studio, which passes one signal on
                )
        except OSError as error:
            self.state, self.error = "failed", f"{self.run}: {error.strerror}"
            return
        self.state, self.error = "running", ""
        with suppress(OSError):  # where that is forbidden, it trains all the same
            nice = max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0))
            os.setpriority(os.PRIO_PROCESS, self._process.pid, nice)

    def _read_lines(self) -> None:
        try:
            file = (self.run / "metrics.jsonl").open("rb")
        except FileNotFoundError:  # it has not begun yet
            return
        with file:
            if (number := os.fstat(file.fileno()).st_ino) != self._file:  # a run that goes on writes it anew
                self._file, self._read, self.lines = number, 0, []
            file.seek(self._read)
            whole = file.read().rpartition(b"\n")[0]
        if whole:
            self._read += len(whole) + 1
            self.lines += [json.loads(line) for line in whole.splitlines()]

    def _left(self) -> float | None:
        """Seconds; None where nothing is known yet."""
        if self.state != "running" or self._asked is None or not self.lines:
            return None
        last = self.lines[-1]
        return last["seconds"] / last["step"] * (self._asked.steps - last["step"])

    @property
    def _log(self) -> Path:
        return self.run / "training.log"

    def _failure(self, status: int) -> str:
        """The command's last error."""
        if status < 0:
            found, advice = f"signal {signal.Signals(-status).name}", "go on from its last checkpoint"
            return mismatch(str(self.run), "to end by itself", found, advice)
        text = self._log.read_bytes()[self._silent :].decode(errors="replace") if self._log.exists() else ""
        said = [line for line in text.splitlines() if line.strip()]
        errors = [line for line in said if line.startswith("error: ")]
        return (errors or said or [f"{self.run}: status {status}"])[-1].removeprefix("error: ")


def _say(line: str) -> None:
    with suppress(OSError):  # the terminal may have been closed
        print(line, file=sys.stderr, flush=True)


class Following:
    """One tab that follows the training: what it has not been told yet.

    Attributes:
        running, waiting, period: As of `Session`.

    Args:
        training: Shared by all tabs.
    """

    waiting = True
    period = 0.25

    def __init__(self, training: Training):
        self.running = True
        self._training = training
        self._status: dict[str, Any] = {}
        self._lines: list[dict[str, Any]] = []
        self._told = 0

    def handle(self, message: Mapping[str, Any]) -> Iterator[Message]:
        """Does what the page asks, and gives what it is to be told then.

        Raises:
            VisuomotorError: It asks for something that there is not.
        """
        kind, content = message.get("type"), {name: value for name, value in message.items() if name != "type"}
        if kind == "options":
            yield {"type": "options", **self._training.options(from_json(tuple[str, ...], content.get("data"), "data"))}
        elif kind == "start":
            self._training.start(from_json(Asked, content, "training"))
        elif kind == "resume":
            self._training.go_on()
        elif kind == "stop":
            self._training.stop()
        else:
            expected = "one of options, start, stop, resume"
            raise ConfigError(mismatch("type", expected, repr(kind), "load the page again"))
        yield from self.advance()

    def advance(self) -> Iterator[Message]:
        """What is new, if anything is."""
        training = self._training
        training.look()
        if training.lines is not self._lines or training.status() != self._status or len(self._lines) > self._told:
            yield self.frame()

    def frame(self) -> Message:
        """How it stands, with the lines that this tab has not heard: those from number `first` on."""
        self._status, lines = self._training.status(), self._training.lines
        first = self._told if lines is self._lines else 0
        fresh = lines[first:]
        self._lines, self._told = lines, first + len(fresh)
        return {"type": "training", **self._status, "first": first, "lines": fresh}
