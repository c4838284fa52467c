import json
from pathlib import Path

import pytest

from visuomotor.recipe import Recipe
from visuomotor.training.metrics import Metrics, cut_lines

from .runs import change


def test_the_last_line_is_said_with_the_loss_on_held_out_episodes(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Metrics(tmp_path, 0, recipe) as metrics:
        metrics.write(2, {"loss": 0.5, "validation_loss": 0.25})
        metrics.write(4, {"loss": None})
    said = capsys.readouterr().err
    assert said.startswith("step 4/4  loss none  held out 0.2500  ") and "min left" in said


def test_a_pause_does_not_count_as_time_of_training(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("visuomotor.training.metrics.time.monotonic", lambda: now[0])
    with Metrics(tmp_path, 10, change(recipe, batch_size=8, steps=100)) as metrics:
        now[0] += 2
        with metrics.pause():
            now[0] += 50
        metrics.write(15, {"loss": 1.0})
        now[0] += 4
        metrics.write(16, {"loss": 1.0})
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["samples_per_second"] for line in written] == [5 * 8 / 2, 1 * 8 / 4]
    assert [line["seconds"] for line in written] == [52, 56]


def test_a_session_goes_on_counting_seconds(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("visuomotor.training.metrics.time.monotonic", lambda: now[0])
    for first, taken in ((0, 5), (1, 8)):  # the second one's first line comes later in it than the first one's last
        with Metrics(tmp_path, first, change(recipe, steps=100)) as metrics:
            now[0] += taken
            metrics.write(first + 1, {"loss": 1.0})
        now[0] += 1000
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["seconds"] for line in written] == [5, 13]


def test_lines_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n[4]\n{"loss": 1}\n{"ste')
    cut_lines(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    cut_lines(tmp_path / "none.jsonl", 2)
    assert not (tmp_path / "none.jsonl").exists()


def test_what_takes_long_is_told_of_before_the_first_line(recipe, tmp_path, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("visuomotor.training.metrics.time.monotonic", lambda: now[0])
    with Metrics(tmp_path, 10, change(recipe, steps=110)) as metrics:
        for step in (11, 12, 13):
            now[0] += 18
            metrics.tick(step)
    assert capsys.readouterr().err == "step 12/110  29.4 min left\n"
