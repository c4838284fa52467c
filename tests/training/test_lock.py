import os
from pathlib import Path

import pytest

from visuomotor.errors import ConfigError
from visuomotor.recipe import Recipe
from visuomotor.training.lock import lock
from visuomotor.training.loop import train

from .runs import lines, start, wait_for_line


def test_a_second_run_in_the_same_folder_is_refused(recipe: Recipe, demonstrations: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = start(run, demonstrations, "--steps", "100000", "--save-every", "100000")
    try:
        wait_for_line(run, first, 2)
        config = (run / "config.json").read_bytes()
        second = start(run, demonstrations, "--steps", "5", "--resume")
        _, said = second.communicate(timeout=60)
        assert second.returncode == 2
        expected = (
            f"error: {run}: expected a folder that no other run writes to, got process {first.pid} at work there; "
        )
        assert said.startswith(expected) and "Traceback" not in said
        with pytest.raises(ConfigError, match=f"process {first.pid} at work there"):
            train(recipe, demonstrations, run)
        assert (run / "config.json").read_bytes() == config
    finally:
        first.kill()
        first.wait()
    train(recipe, demonstrations, run, resume=True)  # the kernel has let go of it
    assert [line["step"] for line in lines(run)] == [1, 2, 3, 4]


def test_the_lock_is_let_go_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), lock(tmp_path / "run"):
        raise RuntimeError
    with lock(tmp_path / "run"):
        assert (tmp_path / "run" / "lock").read_text() == f"{os.getpid()}\n"
        with pytest.raises(ConfigError, match=f"process {os.getpid()} at work there"), lock(tmp_path / "run"):
            pass
