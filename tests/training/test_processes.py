"""One run by several processes: torchrun, gloo, processors."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from visuomotor.errors import ConfigError
from visuomotor.recipe import Recipe
from visuomotor.training.loop import train
from visuomotor.training.processes import Processes

from .runs import change, lines, names
from .torchrun import assert_same_run, finish, kill, launch, stop, wait_for_lines, weights, workers


@pytest.mark.slow
def test_two_processes_are_one_run(demonstrations: Path, tmp_path: Path) -> None:
    """The same losses and weights as one process; the two are killed and resumed meanwhile."""
    straight, run = tmp_path / "straight", tmp_path / "two"
    finish(launch(1, straight, demonstrations, "--steps", "9"))

    process = launch(2, run, demonstrations, "--steps", "9")
    wait_for_lines(run, process, 4)
    kill(process)
    assert names(run)

    finish(launch(2, run, demonstrations, "--steps", "9", "--resume"))
    assert_same_run(run, straight, 9)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others(demonstrations: Path, tmp_path: Path) -> None:
    straight, run = tmp_path / "straight", tmp_path / "two"
    finish(launch(1, straight, demonstrations, "--steps", "9"))
    process = launch(2, run, demonstrations, "--steps", "9")
    wait_for_lines(run, process, 4)
    os.kill(workers(process)[1], signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode != 0 and "SIGKILL" in said
    finish(launch(2, run, demonstrations, "--steps", "9", "--resume"))
    assert_same_run(run, straight, 9)


@pytest.mark.slow
def test_accelerate_launch_on_processors_says_that_it_is_one_process(demonstrations: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m", "visuomotor"]
    command += ["train", "debug", "--data", str(demonstrations), "--output", str(tmp_path / "run"), "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert "accelerate launch has started one process" in done.stderr
    assert done.stdout.count("trained: ") == 1


@pytest.mark.slow
def test_one_process_goes_on_with_what_two_began(demonstrations: Path, tmp_path: Path) -> None:
    straight, run = tmp_path / "straight", tmp_path / "two"
    finish(launch(1, straight, demonstrations, "--steps", "9"))
    stop(run, launch(2, run, demonstrations, "--steps", "9"), after=4)
    assert len(lines(run)) < 9
    finish(launch(1, run, demonstrations, "--steps", "9", "--resume"))
    assert_same_run(run, straight, 9)


@pytest.mark.slow
def test_what_each_process_takes_in_parts_is_the_same_run_too(demonstrations: Path, tmp_path: Path) -> None:
    straight, run = tmp_path / "straight", tmp_path / "two"
    finish(launch(1, straight, demonstrations, "--steps", "3"))
    finish(launch(2, run, demonstrations, "--steps", "3", "--gradient-accumulation-steps", "2"))
    assert_same_run(run, straight, 3)


@pytest.mark.parametrize("consecutive", [1, 3])
def test_parts_are_the_same_run(recipe: Recipe, demonstrations: Path, tmp_path: Path, consecutive: int) -> None:
    """Also where a part ends within a run of windows that share their reflection."""
    whole = change(recipe, batch_size=8, steps=3, save_every=3, consecutive_windows=consecutive)
    train(whole, demonstrations, tmp_path / "whole")
    train(change(whole, gradient_accumulation_steps=4), demonstrations, tmp_path / "parts")
    assert_same_run(tmp_path / "parts", tmp_path / "whole", 3)


def test_a_batch_that_cannot_be_shared_out_is_refused(
    recipe: Recipe, demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = change(recipe, batch_size=6, gradient_accumulation_steps=4)
    with pytest.raises(ConfigError, match="batch_size: expected a multiple of 4: 1 processes and 4 parts in each"):
        train(wrong, demonstrations, tmp_path / "run")


def test_one_process_of_accelerate_launch_is_told_of(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Processes(recipe.training, "cpu")
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    Processes(recipe.training, "cpu")
    assert "accelerate launch has started one process" in capsys.readouterr().err


def test_bfloat16_trains_close_to_float32(recipe: Recipe, demonstrations: Path, tmp_path: Path) -> None:
    train(change(recipe, batch_size=8), demonstrations, tmp_path / "float32")
    train(change(recipe, batch_size=8, mixed_precision="bf16"), demonstrations, tmp_path / "bf16")
    for found, expected in zip(lines(tmp_path / "bf16"), lines(tmp_path / "float32"), strict=True):
        assert found["loss"] != expected["loss"]
        assert found["loss"] == pytest.approx(expected["loss"], rel=0.02)
    state = weights(tmp_path / "bf16", 4)
    assert {value.dtype for value in state.values()} == {torch.float32}
