"""What tests of runs share: what a run has written, and runs in processes of their own."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from visuomotor.recipe import Recipe

TIMED = ("samples_per_second", "seconds")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def lines(run: Path) -> list[dict[str, Any]]:
    written = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMED} for line in written]


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def change(recipe: Recipe, **fields: object) -> Recipe:
    return replace(recipe, training=replace(recipe.training, **fields))


def start(run: Path, data: Path, *flags: str, preset: str = "debug") -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "visuomotor", "train", preset, "--data", str(data), "--output", str(run)]
    command += ["--threads", "1", *flags]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ)


def wait_for_line(run: Path, process: "subprocess.Popen[str]", step: int) -> None:
    """Returns when metrics.jsonl has a whole line of this step or a later one, or the process has ended."""
    deadline, there = time.monotonic() + 120, run / "metrics.jsonl"
    while process.poll() is None:
        assert time.monotonic() < deadline
        opened = (run / "lock").exists() and (
            run / "lock"
        ).read_text() == f"{process.pid}\n"  # not what one before left
        whole = there.read_text().split("\n")[:-1] if opened and there.exists() else []
        if whole and json.loads(whole[-1])["step"] >= step:
            return
        time.sleep(0.002)
