import json
import time
from pathlib import Path

import pytest

from visuomotor.errors import ConfigError
from visuomotor.recipe import Recipe
from visuomotor.training import boards
from visuomotor.training.loop import train

from .runs import change, contents, lines


def test_tensorboard_shows_what_metrics_hold(recipe: Recipe, demonstrations: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = tmp_path / "run"
    train(change(recipe, validation_episodes=1), demonstrations, run)
    events = accumulator.EventAccumulator(str(run / "tensorboard")).Reload()
    for name in ("loss", "validation_loss"):
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        written = [(line["step"], line[name]) for line in lines(run) if name in line]
        assert shown == [(step, pytest.approx(value)) for step, value in written]


def test_weights_and_biases_without_a_network(
    recipe: Recipe, demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    plain = train(recipe, demonstrations, tmp_path / "plain")
    run = tmp_path / "run"
    watched = change(recipe, wandb_project="tests")
    train(change(watched, steps=2, scheduler_warmup_steps=1), demonstrations, run)
    name = (run / "wandb_run_id").read_text()
    resumed = train(watched, demonstrations, run, resume=True)
    assert contents(resumed) == contents(plain)
    folders = sorted((run / "wandb").glob("offline-run-*"))
    assert len(folders) == 2 and all(folder.name.endswith(name) for folder in folders)
    logs = [log for folder in folders for log in folder.glob("*.wandb")]
    deadline = time.monotonic() + 60
    while not all(b"gradient_norm" in log.read_bytes() for log in logs):  # wandb's own process writes them
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert len(logs) == 2


def test_without_the_extra_it_is_one_error(recipe, demonstrations, tmp_path, monkeypatch):
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(boards, "import_module", missing)
    with pytest.raises(ConfigError, match=r"wandb_project: expected the package wandb, got none; pip install 'visuo"):
        train(change(recipe, wandb_project="tests"), demonstrations, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [OSError, RuntimeError])  # what W&B raises is not always of the system's
def test_a_board_that_fails_does_not_end_the_training(recipe, demonstrations, tmp_path, monkeypatch, capsys, error):
    class Broken:
        def write(self, step: int, values: dict) -> None:
            json.dumps(values)
            raise error("no space left")

        def close(self) -> None:
            raise error("no space left")

    monkeypatch.setattr("visuomotor.training.metrics.open_boards", lambda *_: [Broken()])
    train(recipe, demonstrations, tmp_path / "run")
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2, 3, 4]
    assert "Broken: no space left" in capsys.readouterr().err
