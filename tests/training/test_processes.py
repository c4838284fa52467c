"""One run by several processes: torchrun, gloo, processors."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from visuomotor.errors import ConfigError
from visuomotor.recipe import Recipe
from visuomotor.training.loop import train

from .runs import change, lines, names

FLAGS = ["--batch-size", "8", "--noise-draws", "2", "--augmentation", "pusht-mirror", "--down-dims", "16", "32"]


def launch(count: int, run: Path, data: Path, *flags: str) -> "subprocess.Popen[str]":
    """`visuomotor train debug` in `count` processes, each on a thread of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command += ["-m", "visuomotor", "train", "debug", "--data", str(data), "--output", str(run), "--threads", "1"]
    command += ["--log-every", "1", "--save-every", "3", *FLAGS, *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)


def wait_for_lines(run: Path, process: "subprocess.Popen[str]", count: int) -> None:
    there, deadline = run / "metrics.jsonl", time.monotonic() + 120
    while not there.exists() or len(there.read_text().splitlines()) < count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def finish(process: "subprocess.Popen[str]") -> str:
    told, said = process.communicate(timeout=180)
    assert process.returncode == 0, said
    assert told.count("trained: ") == 1  # by one of them
    return said


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    folder = run / "checkpoints" / f"step_{step:06d}"
    return load_file(folder / "training/state.safetensors") | {
        f"average.{name}": value for name, value in load_file(folder / "policy/model.safetensors").items()
    }


def assert_same_run(run: Path, straight: Path, step: int) -> None:
    """Lines and weights are equal, up to what another order of adding changes."""
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = list(zip(lines(run), lines(straight), strict=True))
    assert [found["step"] for found, _ in pairs] == list(range(1, step + 1))
    for found, expected in pairs:
        assert found == pytest.approx(expected, rel=1e-5)
    found, expected = weights(run, step), weights(straight, step)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        if not name.startswith("exp_avg_sq."):
            # Adam divides by the gradient's size: where that is rounding alone, a step's sign is chance.
            assert ((value - expected[name]).abs() > 1e-5).float().mean() < 1e-3, name


@pytest.mark.slow
def test_two_processes_are_one_run(demonstrations: Path, tmp_path: Path) -> None:
    """The same losses and weights as one process; the two are killed and resumed meanwhile."""
    straight, run = tmp_path / "straight", tmp_path / "two"
    finish(launch(1, straight, demonstrations, "--steps", "9"))

    process = launch(2, run, demonstrations, "--steps", "9")
    wait_for_lines(run, process, 4)
    process.kill()  # the launcher; its workers end when it is gone
    subprocess.run(["pkill", "-9", "-f", str(run)], check=False)
    process.communicate(timeout=60)
    assert names(run)

    finish(launch(2, run, demonstrations, "--steps", "9", "--resume"))
    assert_same_run(run, straight, 9)


@pytest.mark.slow
def test_one_process_goes_on_with_what_two_began(demonstrations: Path, tmp_path: Path) -> None:
    straight, run = tmp_path / "straight", tmp_path / "two"
    finish(launch(1, straight, demonstrations, "--steps", "9"))
    process = launch(2, run, demonstrations, "--steps", "9")
    wait_for_lines(run, process, 4)
    process.terminate()
    _, said = process.communicate(timeout=120)
    assert "is saved; go on with --resume" in said
    assert len(lines(run)) < 9
    finish(launch(1, run, demonstrations, "--steps", "9", "--resume"))
    assert_same_run(run, straight, 9)


@pytest.mark.slow
def test_what_each_process_takes_in_parts_is_the_same_run_too(demonstrations: Path, tmp_path: Path) -> None:
    straight, run = tmp_path / "straight", tmp_path / "two"
    finish(launch(1, straight, demonstrations, "--steps", "3"))
    finish(launch(2, run, demonstrations, "--steps", "3", "--gradient-accumulation-steps", "2"))
    assert_same_run(run, straight, 3)


def test_parts_are_the_same_run(recipe: Recipe, demonstrations: Path, tmp_path: Path) -> None:
    whole = change(recipe, batch_size=8, steps=3, save_every=3)
    train(whole, demonstrations, tmp_path / "whole")
    train(change(whole, gradient_accumulation_steps=4), demonstrations, tmp_path / "parts")
    assert_same_run(tmp_path / "parts", tmp_path / "whole", 3)


def test_a_batch_that_cannot_be_shared_out_is_refused(
    recipe: Recipe, demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = change(recipe, batch_size=6, gradient_accumulation_steps=4)
    with pytest.raises(ConfigError, match="batch_size: expected a multiple of 4: 1 processes and 4 parts in each"):
        train(wrong, demonstrations, tmp_path / "run")


def test_bfloat16_trains_close_to_float32(recipe: Recipe, demonstrations: Path, tmp_path: Path) -> None:
    train(change(recipe, batch_size=8), demonstrations, tmp_path / "float32")
    train(change(recipe, batch_size=8, mixed_precision="bf16"), demonstrations, tmp_path / "bf16")
    for found, expected in zip(lines(tmp_path / "bf16"), lines(tmp_path / "float32"), strict=True):
        assert found["loss"] != expected["loss"]
        assert found["loss"] == pytest.approx(expected["loss"], rel=0.02)
    state = weights(tmp_path / "bf16", 4)
    assert {value.dtype for value in state.values()} == {torch.float32}
