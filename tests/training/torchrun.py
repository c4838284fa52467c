"""Runs by several processes: torchrun, gloo, processors."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from visuomotor.training.parts import Parts

from .runs import lines

FLAGS = ["--batch-size", "8", "--noise-draws", "2", "--augmentation", "pusht-mirror", "--down-dims", "16", "32"]


def launch(
    count: int, run: Path, data: Path, *flags: str, program: str = "-m visuomotor", every: list[str] = FLAGS
) -> "subprocess.Popen[str]":
    """`visuomotor train debug` in `count` processes, each on a thread of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command += [*program.split(), "train", "debug", "--data", str(data), "--output", str(run), "--threads", "1"]
    command += ["--log-every", "1", "--save-every", "3", *every, *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)


def wait_for_lines(run: Path, process: "subprocess.Popen[str]", count: int) -> None:
    there, deadline = run / "metrics.jsonl", time.monotonic() + 120
    while not there.exists() or len(there.read_text().splitlines()) < count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def workers(process: "subprocess.Popen[str]") -> list[int]:
    """The processes that a launcher has started."""
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
    return [int(number) for number in found.split()]


def kill(process: "subprocess.Popen[str]") -> None:
    """kill -9 of the launcher and of its workers."""
    started = workers(process)
    process.kill()
    for worker in started:
        with suppress(ProcessLookupError):  # the kernel may have been faster
            os.kill(worker, signal.SIGKILL)
    process.communicate(timeout=60)


def finish(process: "subprocess.Popen[str]") -> str:
    told, said = process.communicate(timeout=180)
    assert process.returncode == 0, said
    assert told.count("trained: ") == 1  # by one of them
    return said


def stop(run: Path, process: "subprocess.Popen[str]", after: int) -> None:
    """SIGTERM, once so many lines are written."""
    wait_for_lines(run, process, after)
    process.terminate()
    _, said = process.communicate(timeout=120)
    assert "is saved; go on with --resume" in said


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Of a checkpoint weights, moments and average, whole."""
    folder = run / "checkpoints" / f"step_{step:06d}"
    parts = Parts(sorted((folder / "training").glob("*.safetensors")))
    found = {name: torch.full(shape, torch.nan) for name, shape in parts.shapes.items()}
    for name, tensor in found.items():
        parts.fill(name, tensor)
    averages = load_file(folder / "policy/model.safetensors")
    return found | {f"average.{name}": value for name, value in averages.items()}


def assert_same_run(run: Path, straight: Path, step: int) -> None:
    """Lines and weights are equal, up to what another order of adding changes."""
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = list(zip(lines(run), lines(straight), strict=True))
    assert [found["step"] for found, _ in pairs] == list(range(1, step + 1))
    for found, expected in pairs:
        assert found == pytest.approx(expected, rel=1e-5)
    found, expected = weights(run, step), weights(straight, step)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        # Adam divides by the gradient's size: where that is rounding alone, a step's sign is chance. So it is
        # everywhere for what is added to a whole map before its softmax.
        if not name.startswith("exp_avg_sq.") and not name.endswith("pool.nets.bias"):
            assert ((value - expected[name]).abs() > 1e-5).float().mean() < 1e-3, name
