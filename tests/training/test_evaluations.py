import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from visuomotor.config import Feature
from visuomotor.errors import ConfigError
from visuomotor.recipe import Recipe
from visuomotor.training import evaluations
from visuomotor.training.evaluations import FIRST_SEED, Evaluations
from visuomotor.training.loop import train

from .runs import change, contents, lines


def results(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_success_is_measured_in_the_background(recipe, demonstrations, tmp_path, capsys):
    plain = train(recipe, demonstrations, tmp_path / "plain")
    run = tmp_path / "run"
    measured = train(change(recipe, evaluate_every=2, evaluate_episodes=2), demonstrations, run)
    assert "waiting for the evaluation of step 4" in capsys.readouterr().err
    assert contents(measured) == contents(plain)
    assert lines(run) == lines(tmp_path / "plain")
    assert sorted(path.name for path in (run / "evaluations").iterdir()) == ["step_000002", "step_000004"]
    for line, step in zip(results(run), (2, 4), strict=True):
        found = json.loads((run / f"evaluations/step_{step:06d}/eval.json").read_text())
        assert line == {
            "step": step,
            "success_rate": found["success_rate"],
            "success_rate_interval": found["success_rate_interval"],
            "mean_max_reward": found["mean_max_reward"],
            "episodes": 2,
        }
        assert [episode["seed"] for episode in found["episodes"]] == [FIRST_SEED, FIRST_SEED + 1]
        weights = (run / f"checkpoints/step_{step:06d}/policy/model.safetensors").read_bytes()
        assert found["settings"]["weights_sha256"] == hashlib.sha256(weights).hexdigest()


def test_what_was_due_when_the_run_was_stopped_is_measured_when_it_goes_on(
    recipe, demonstrations, tmp_path, monkeypatch
):
    run, evaluated = tmp_path / "run", change(recipe, evaluate_every=2, evaluate_episodes=1)
    asked = []
    monkeypatch.setattr(Evaluations, "step", lambda self, done, policy: asked.append(done))
    monkeypatch.setattr(Evaluations, "finish", lambda self, stop: None)
    for resume in (False, True):
        train(evaluated, demonstrations, run, resume=resume)
    assert asked == [1, 2, 3, 4, 4]
    (run / "evaluations.jsonl").write_text('{"step": 4}\n')
    train(evaluated, demonstrations, run, resume=True)
    assert asked == [1, 2, 3, 4, 4]  # measured by now


def replace_command(monkeypatch: pytest.MonkeyPatch, code: str) -> list[subprocess.Popen]:
    real, started = subprocess.Popen, []

    def popen(command: list[str], **options: object) -> subprocess.Popen:
        started.append(real([sys.executable, "-c", code], **options))
        return started[-1]

    monkeypatch.setattr(evaluations.subprocess, "Popen", popen)
    return started


def test_a_failure_does_not_end_the_training(recipe, demonstrations, tmp_path, capsys, monkeypatch):
    started = replace_command(monkeypatch, "import sys; sys.exit('error: no simulator today')")
    run = tmp_path / "run"
    train(change(recipe, evaluate_every=4), demonstrations, run)
    assert len(started) == 1
    err = capsys.readouterr().err
    assert "the evaluation of step 4 failed, training goes on: error: no simulator today (status 1, " in err
    assert not (run / "evaluations.jsonl").exists() and not list(run.glob("evaluations/.*"))


def test_a_run_that_is_stopped_does_not_wait(recipe, tmp_path, capsys, monkeypatch):
    started = replace_command(monkeypatch, "import time; time.sleep(60)")
    monkeypatch.setattr(evaluations, "save_policy", lambda policy, folder: folder.mkdir(parents=True))
    full = replace(recipe, policy=replace(recipe.policy, output_features={"action": Feature("ACTION", (2,))}))
    with Evaluations(tmp_path, change(full, evaluate_every=5), lambda *_: None) as background:
        for done in range(5, 16):
            background.step(done, None)
        background.finish([15])
    assert [process.returncode for process in started] == [-9]
    err = capsys.readouterr().err
    assert "step 10 is not evaluated: that of step 5 is still under way" in err
    assert "the evaluation of step 5 was stopped" in err
    assert not list(tmp_path.glob("evaluations/.*"))


def test_only_push_t_can_be_evaluated(recipe: Recipe, tmp_path: Path) -> None:
    full = replace(recipe, policy=replace(recipe.policy, output_features={"action": Feature("ACTION", (6,))}))
    with pytest.raises(
        ConfigError, match=r"evaluate_every: expected a policy for Push-T, with actions \(2,\), got \(6,\)"
    ):
        Evaluations(tmp_path, change(full, evaluate_every=5), lambda *_: None)
    Evaluations(tmp_path, full, lambda *_: None)
