"""A full disk costs no more than the steps since the last checkpoint."""

import errno
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from visuomotor.errors import CheckpointError, VisuomotorError
from visuomotor.recipe import Recipe
from visuomotor.training import checkpoint
from visuomotor.training.loop import train
from visuomotor.training.metrics import Metrics

from .runs import change, contents, lines, names

STATE = 3_100_000  # bytes that the weights and moments of the recipe need, about


def check_and_go_on(recipe: Recipe, demonstrations: Path, run: Path, straight: Path) -> None:
    assert names(run) == ["step_000002"]
    assert not list(run.glob("checkpoints/.*"))
    resumed = train(recipe, demonstrations, run, resume=True)
    assert contents(resumed) == contents(straight / "checkpoints" / resumed.name)
    assert lines(run) == lines(straight)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_left_while_a_checkpoint_is_written(recipe, demonstrations, tmp_path, monkeypatch, number):
    train(recipe, demonstrations, tmp_path / "straight")
    real = checkpoint.save_tensors

    def save_tensors(tensors, path: Path) -> None:
        real(tensors, path)
        if "step_000004" in str(path):
            path.write_bytes(path.read_bytes()[:1000])
            raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_tensors", save_tensors)
        told = r"run/checkpoints/step_000004: expected room for \d+ MB, got .*; make room and go on with --resume; "
        with pytest.raises(CheckpointError, match=told + r"the last good checkpoint is .*/step_000002"):
            train(recipe, demonstrations, tmp_path / "run")
    check_and_go_on(recipe, demonstrations, tmp_path / "run", tmp_path / "straight")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The kernel refuses to write more than so many bytes into a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_kernel_refuses_to_write(recipe: Recipe, demonstrations: Path, tmp_path: Path) -> None:
    train(recipe, demonstrations, tmp_path / "straight")
    run = tmp_path / "run"
    train(change(recipe, steps=2, scheduler_warmup_steps=1), demonstrations, run)
    told = r"run/checkpoints/step_000004: expected room for \d+ MB, got .*(too large|os error 27)"
    with largest_file(STATE // 2), pytest.raises(CheckpointError, match=told):
        train(recipe, demonstrations, run, resume=True)
    check_and_go_on(recipe, demonstrations, run, tmp_path / "straight")


def test_metrics_that_cannot_be_written(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    told = r"metrics\.jsonl: expected room for a line, got .*No space left.*; make room and go on with --resume"
    with pytest.raises(VisuomotorError, match=told), Metrics(tmp_path, 0, recipe) as metrics:
        metrics.write(1, {"loss": 1.0})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory with room for one checkpoint and not for two."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={2 * STATE}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full(recipe: Recipe, demonstrations: Path, tmp_path: Path, small_disk: Path) -> None:
    train(recipe, demonstrations, tmp_path / "straight")
    run = small_disk / "run"
    with pytest.raises(CheckpointError, match=r"step_000004: expected room for \d+ MB, got .*[Nn]o space left"):
        train(recipe, demonstrations, run)
    subprocess.run(["mount", "-o", f"remount,size={20 * STATE}", str(small_disk)], check=True)
    check_and_go_on(recipe, demonstrations, run, tmp_path / "straight")
