"""From a policy's folder to a folder of figures."""

import json
import subprocess
import sys

import av
import pytest
import torch

from visuomotor.errors import CheckpointError, ConfigError
from visuomotor.evaluation import evaluate as module
from visuomotor.evaluation.evaluate import evaluate
from visuomotor.policy.checkpoint import save_policy
from visuomotor.simulation.rollout import rollout

from ..simulation.acting import random_policy
from .episodes import made_up


@pytest.fixture
def run(tmp_path):
    """A run's folder with one checkpoint of a random policy."""
    save_policy(random_policy(), tmp_path / "run" / "checkpoints" / "step_000010" / "policy")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 5, "loss": 1.0}\n{"step": 10, "loss": 0.5}\n')
    return tmp_path / "run"


def test_the_folder(run, tmp_path):
    result = evaluate(run, output=tmp_path / "out", episodes=3, max_steps=16, policy_batch=4, progress=False)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["eval.json", "report.html", "videos"]
    assert json.loads((tmp_path / "out" / "eval.json").read_text()) == result
    assert list(result) == [
        "success_rate",
        "success_rate_interval",
        "mean_max_coverage",
        "mean_max_reward",
        "episodes",
        "settings",
        "versions",
        "seconds",
    ]
    expected = rollout(random_policy(), range(100_000, 100_003), max_steps=16, policy_batch=4)
    assert result["episodes"] == [
        {
            "seed": episode.seed,
            "success": episode.success,
            "max_coverage": episode.max_coverage,
            "max_reward": episode.max_reward,
            "steps": episode.steps,
        }
        for episode in expected
    ]
    assert (
        result["settings"] | {"policy": str(run), "noise_scheduler_type": "DDIM", "seed": 100_000} == result["settings"]
    )
    assert result["settings"]["num_inference_steps"] == 2 and len(result["settings"]["weights_sha256"]) == 64
    assert result["settings"]["checkpoint"] == "step_000010"
    assert result["versions"]["gym-pusht"] == "0.1.8" and result["versions"]["torch"] == torch.__version__
    assert "Training loss" in (tmp_path / "out" / "report.html").read_text()
    videos = sorted((tmp_path / "out" / "videos").iterdir())
    assert [path.name for path in videos] == [f"failure_{seed}.mp4" for seed in (100_000, 100_001, 100_002)]
    with av.open(videos[0]) as container:
        assert sum(1 for _ in container.decode(video=0)) == 16 + 10


def test_figures_of_known_episodes(run, tmp_path, monkeypatch):
    results = [made_up(5, 30, 0.96), made_up(6, 300, 0.475), made_up(7, 300, 0.95), made_up(8, 90, 0.951)]
    monkeypatch.setattr(module, "rollout", lambda *_, **__: results)
    result = evaluate(run, output=tmp_path / "out", episodes=4, videos=1, progress=False)
    assert result["success_rate"] == 0.5
    assert result["success_rate_interval"] == pytest.approx([0.1500, 0.8500], abs=1e-4)
    assert result["mean_max_coverage"] == pytest.approx((0.96 + 0.475 + 0.95 + 0.951) / 4)
    assert result["mean_max_reward"] == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert [episode["success"] for episode in result["episodes"]] == [True, False, False, True]
    videos = sorted(path.name for path in (tmp_path / "out" / "videos").iterdir())
    assert videos == ["failure_6.mp4", "success_5.mp4"]


def test_another_sampler_is_used_and_told(run, tmp_path, monkeypatch):
    seen = []

    def spy(policy, seeds, **_):
        seen.append(
            (policy.config.noise_scheduler_type, policy.config.num_inference_steps, policy.config.n_action_steps)
        )
        return [made_up(seed, 8, 0.1) for seed in seeds]

    monkeypatch.setattr(module, "rollout", spy)
    options = {"noise_scheduler_type": "DDPM", "num_inference_steps": 5, "n_action_steps": 3}
    result = evaluate(run, output=tmp_path / "out", episodes=1, videos=0, progress=False, **options)
    assert seen == [("DDPM", 5, 3)]
    assert result["settings"] | options == result["settings"]
    html = (tmp_path / "out" / "report.html").read_text()
    command = "--episodes 1 --seed 100000 --noise-scheduler-type DDPM --num-inference-steps 5 --n-action-steps 3"
    assert f"visuomotor eval {run} {command} --output {tmp_path / 'out'}" in html


def test_noise_and_warm_start_are_used_and_told(run, tmp_path, monkeypatch):
    seen = []

    def spy(policy, seeds, **_):
        seen.append((policy.config.ddim_eta, policy.config.warm_start))
        return [made_up(seed, 8, 0.1) for seed in seeds]

    monkeypatch.setattr(module, "rollout", spy)
    options = {"ddim_eta": 0.5, "warm_start": 0.3}
    result = evaluate(run, output=tmp_path / "out", episodes=1, videos=0, progress=False, **options)
    assert seen == [(0.5, 0.3)]
    assert result["settings"] | options == result["settings"]
    assert "--ddim-eta 0.5 --warm-start 0.3 " in (tmp_path / "out" / "report.html").read_text()


def test_an_earlier_evaluation_is_replaced_whole(run, tmp_path):
    options = {"output": tmp_path / "out", "max_steps": 8, "policy_batch": 2, "progress": False}
    evaluate(run, episodes=2, **options)
    evaluate(run, episodes=1, **options)
    assert len(list((tmp_path / "out" / "videos").iterdir())) == 1
    assert len(json.loads((tmp_path / "out" / "eval.json").read_text())["episodes"]) == 1


def test_nothing_else_is_replaced(run, tmp_path):
    for target in (run, run / "metrics.jsonl"):
        with pytest.raises(ConfigError, match=f"{target}: expected a new folder or an earlier evaluation"):
            evaluate(run, output=target, episodes=1)
    assert (run / "checkpoints").is_dir()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"episodes": 0}, "episodes: expected 1 or more, got 0"),
        ({"seed": -1}, "seed: expected 0 or more, got -1"),
        ({"max_steps": 0}, "max_steps: expected 1 or more"),
        ({"videos": -1}, "videos: expected 0 or more"),
        ({"environments": 0}, "environments: expected 1 or more"),
        ({"policy_batch": 0}, "policy_batch: expected 1 or more"),
        ({"env": "push-t"}, "env: expected one of .*, got 'push-t'; did you mean pusht?"),
        ({"num_inference_steps": 101}, "num_inference_steps: expected 1 to num_train_timesteps = 100, got 101"),
        ({"n_action_steps": 16}, "n_action_steps: expected 1 to 15"),
        ({"device": "cdua"}, "device: expected one of"),
    ],
)
def test_bad_settings_are_named_and_leave_nothing(run, tmp_path, wrong, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(run, output=tmp_path / "out", progress=False, **({"episodes": 1} | wrong))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_missing_policy_is_told_before_anything_is_written(tmp_path):
    with pytest.raises(CheckpointError):
        evaluate(tmp_path / "nowhere", output=tmp_path / "out", episodes=1)
    assert not list(tmp_path.iterdir())


def test_a_failure_midway_leaves_nothing(run, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(module, "write_video", fail)
    with pytest.raises(OSError, match="disk full"):
        evaluate(run, output=tmp_path / "out", episodes=1, max_steps=8, policy_batch=1, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_importing_takes_no_simulator():
    heavy = ("pygame", "pymunk", "cv2", "av")
    code = f"import sys, visuomotor.evaluation.evaluate; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
