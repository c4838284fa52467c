"""Stages of distillation with a tiny policy: what each one learns, and going on after a kill."""

import json
from pathlib import Path

import pytest
import torch

from visuomotor.cli import main
from visuomotor.distillation import distill, table
from visuomotor.errors import ConfigError
from visuomotor.policy.checkpoint import load_policy, save_policy
from visuomotor.policy.distillation import Halving
from visuomotor.recipe import TrainingConfig

from .simulation.acting import random_policy
from .test_improvement import DATA, contents

SMALL = {
    "preset_name": "debug",
    "inference_steps": 1,
    "halvings": 2,
    "steps": 4,
    "evaluation_episodes": 0,
    "threads": 1,
    "device": "cpu",
    "progress": False,
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A teacher's folder."""
    folder = tmp_path_factory.mktemp("some") / "policy"
    save_policy(random_policy(noise_scheduler_type="DDPM", num_inference_steps=None), folder)
    return folder


@pytest.fixture(scope="module")
def straight(policy, tmp_path_factory):
    """Two stages without interruption."""
    folder = tmp_path_factory.mktemp("straight") / "out"
    distill(policy, DATA, folder, **SMALL)
    return folder


def test_each_stage_takes_every_other_step_of_its_teacher(straight):
    stages = json.loads((straight / "distillation.json").read_text())["stages"]
    assert [stage["inference_steps"] for stage in stages] == [2, 1]
    assert load_policy(straight / "teacher").denoising_steps() == [75, 50, 25, 0]
    for name, steps in (("stage_02", [75, 25]), ("stage_01", [75])):
        student = load_policy(straight / name / "run")
        assert student.denoising_steps() == steps
        assert (student.config.noise_scheduler_type, student.config.prediction_type) == ("DDIM", "v_prediction")
        assert student.with_sampler(num_inference_steps=5).denoising_steps() == [80, 60, 40, 20, 0]
    told = json.loads((straight / "stage_01/run/config.json").read_text())
    assert "stage_02/run" in told["recipe"]["training"]["teacher"]
    assert len(table(stages).splitlines()) == 3


def test_a_stage_begins_with_its_teachers_weights(policy, tmp_path):
    distill(policy, DATA, tmp_path / "out", **SMALL | {"halvings": 1, "steps": 1})
    before, after = load_policy(policy).state_dict(), load_policy(tmp_path / "out/stage_01/run").state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before), "the first step's rate is 0"


def test_a_run_that_is_killed_ends_with_the_same_bits(policy, straight, tmp_path, monkeypatch):
    real, calls = Halving.forward, []

    def fails(*arguments):
        calls.append(1)
        if len(calls) == 6:  # in the second stage
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as broken:
        broken.setattr(Halving, "forward", fails)
        with pytest.raises(KeyboardInterrupt):
            distill(policy, DATA, tmp_path / "broken", **SMALL)
    torch.manual_seed(5)  # nothing may hang on torch's own generator
    distill(policy, DATA, tmp_path / "broken", resume=True, **SMALL)
    assert contents(tmp_path / "broken") == contents(straight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inference_steps": 0}, "inference_steps: expected 1 or more, got 0"),
        ({"halvings": 0}, "halvings: expected 1 or more, got 0"),
        ({"halvings": 7}, r"inference_steps \* 2 \*\* halvings: expected at most 100, got 128"),
        ({"preset_name": None}, "preset: expected a training run or a shipped policy, got neither"),
    ],
)
def test_settings_out_of_range_leave_no_folder(policy, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        distill(policy, DATA, tmp_path / "out", **SMALL | changes)
    assert not (tmp_path / "out").exists()


def test_what_would_be_another_distillation_is_refused(policy, straight):
    with pytest.raises(ConfigError, match="expected a folder without a distillation, got one; pass --resume"):
        distill(policy, DATA, straight, **SMALL)
    with pytest.raises(ConfigError, match="expected steps 4, got steps 5; keep these"):
        distill(policy, DATA, straight, resume=True, **SMALL | {"steps": 5})


def test_a_teacher_and_sharding_do_not_go_together():
    with pytest.raises(ConfigError, match="sharding: expected none with a teacher, got fsdp"):
        TrainingConfig(teacher="some", sharding="fsdp")


def test_the_command(policy, tmp_path, capsys):
    flags = ["--preset", "debug", "--inference-steps", "1", "--halvings", "1", "--steps", "2", "--threads", "1"]
    out = tmp_path / "out"
    arguments = [
        "distill",
        str(policy),
        "--data",
        str(DATA),
        "--output",
        str(out),
        *flags,
        "--evaluation-episodes",
        "0",
    ]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "not measured" in said and f"next:    visuomotor eval {Path(out)}/stage_01/run" in said
