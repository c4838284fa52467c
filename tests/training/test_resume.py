"""A run goes on as what it was, or says what is wrong."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from visuomotor.errors import CheckpointError, ConfigError, DatasetError
from visuomotor.policy.checkpoint import load_policy
from visuomotor.recipe import Recipe
from visuomotor.training.loop import train

from .runs import change, contents, lines, names

STATE = "training/state.safetensors"


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


DAMAGES = [
    (STATE, shorten, "training/state.safetensors has 1000 bytes of"),
    (STATE, flip_a_bit, "training/state.safetensors has been altered (SHA-256"),
    ("policy/model.safetensors", flip_a_bit, "policy/model.safetensors has been altered (SHA-256"),
    ("training/state.json", Path.unlink, "training/state.json is missing"),
    ("hashes.json", lambda path: path.write_bytes(path.read_bytes()[:100]), "hashes.json is damaged"),
    ("hashes.json", lambda path: path.write_bytes(b"\xff[]"), "hashes.json is damaged"),
]


@pytest.fixture(scope="module")
def straight(recipe: Recipe, demonstrations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps that nothing has happened to."""
    run = tmp_path_factory.mktemp("straight") / "run"
    train(change(recipe, steps=6), demonstrations, run)
    return run


@pytest.mark.parametrize(("name", "damage", "said"), DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_nothing_is_lost(
    recipe, demonstrations, straight, tmp_path, capsys, name, damage, said
):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    damage(run / "checkpoints/step_000006" / name)
    resumed = train(change(recipe, steps=6), demonstrations, run, resume=True)
    err = capsys.readouterr().err
    assert f"{run}/checkpoints/step_000006: {said}" in err and "step_000004 is used in its place" in err
    assert contents(resumed) == contents(straight / "checkpoints" / "step_000006")
    assert lines(run) == lines(straight)
    assert names(run) == ["set_aside_step_000006", "step_000004", "step_000006"]


def test_without_a_good_checkpoint_there_is_one_error(recipe: Recipe, demonstrations: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(recipe, demonstrations, run)
    shorten(run / "checkpoints/step_000004" / STATE)
    flip_a_bit(run / "checkpoints/step_000002" / STATE)
    before = contents(run)
    told = r"run/checkpoints: expected one that is as it was written, got step_000004: training/state.safetensors has "
    with pytest.raises(CheckpointError, match=told + r"1000 bytes of \d+; step_000002: .* has been altered"):
        train(recipe, demonstrations, run, resume=True)
    assert contents(run) == before


def test_a_run_acts_with_its_newest_good_policy(recipe, demonstrations, tmp_path, capsys):
    run = tmp_path / "run"
    train(recipe, demonstrations, run)
    good = load_policy(run / "checkpoints/step_000002/policy").state_dict()
    flip_a_bit(run / "checkpoints/step_000004" / STATE)  # no concern of who acts
    assert capsys.readouterr().err.count("in its place") == 0
    load_policy(run)
    flip_a_bit(run / "checkpoints/step_000004/policy/model.safetensors")
    policy = load_policy(run).state_dict()
    assert "step_000004: policy/model.safetensors has been altered" in capsys.readouterr().err
    assert all((policy[name] == good[name]).all() for name in good)


def test_checkpoints_without_hashes_are_taken_as_they_are(recipe: Recipe, demonstrations: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(recipe, demonstrations, run)
    (run / "checkpoints/step_000004/hashes.json").unlink()
    config = json.loads((run / "config.json").read_text())
    del config["data"]
    (run / "config.json").write_text(json.dumps(config))
    train(change(recipe, steps=6), demonstrations, run, resume=True)
    assert lines(run)[-1]["step"] == 6 and names(run) == ["step_000004", "step_000006"]


def test_what_a_killed_process_left_is_swept(recipe: Recipe, demonstrations: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(recipe, demonstrations, run)
    (run / "checkpoints/.step_000006.0123abcd.tmp/policy").mkdir(parents=True)
    (run / "checkpoints/.step_000002.old").mkdir()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 1.0}\n{"step": 6, "lo')
    train(recipe, demonstrations, run, resume=True)
    assert names(run) == ["step_000002", "step_000004"]
    assert [line["step"] for line in lines(run)] == [1, 2, 3, 4]


# What may change


def test_resume_names_what_changed(recipe: Recipe, demonstrations: Path, tmp_path: Path) -> None:
    train(recipe, demonstrations, tmp_path / "run")
    other = replace(change(recipe, batch_size=5), policy=replace(recipe.policy, n_action_steps=3))
    with pytest.raises(
        ConfigError, match=r"expected n_action_steps 8, batch_size 4, got n_action_steps 3, batch_size 5"
    ):
        train(other, demonstrations, tmp_path / "run", resume=True)


def test_the_policy_that_a_run_began_with_may_move(recipe: Recipe, demonstrations: Path, tmp_path: Path) -> None:
    first = train(recipe, demonstrations, tmp_path / "first") / "policy"
    begun = change(recipe, initial_policy=str(first))
    run = tmp_path / "run"
    train(begun, demonstrations, run)
    moved = tmp_path / "moved"
    shutil.copytree(first, moved)
    train(change(begun, initial_policy=str(moved), steps=6), demonstrations, run, resume=True)
    assert lines(run)[-1]["step"] == 6
    train(change(recipe, seed=1), demonstrations, tmp_path / "other")
    other = change(begun, initial_policy=str(tmp_path / "other"))
    told = r"expected initial_policy with weights \w{12}, got initial_policy .*other with \w{12}; keep these"
    with pytest.raises(ConfigError, match=told):
        train(other, demonstrations, run, resume=True)
    shutil.rmtree(moved)  # by now it is in the run's own weights
    train(change(begun, initial_policy=str(moved), steps=8), demonstrations, run, resume=True)
    assert lines(run)[-1]["step"] == 8


def test_a_teacher_that_has_learned_on_is_another(recipe: Recipe, demonstrations: Path, tmp_path: Path) -> None:
    """Its place is the same: a run's folder, whose newest checkpoint teaches."""
    teacher, run = tmp_path / "teacher", tmp_path / "run"
    train(recipe, demonstrations, teacher)
    taught = change(recipe, teacher=str(teacher))
    taught = replace(
        taught, policy=replace(taught.policy, num_inference_steps=1, timesteps=(50,), prediction_type="v_prediction")
    )
    train(taught, demonstrations, run)
    longer = change(taught, steps=6)
    train(longer, demonstrations, run, resume=True)
    train(change(recipe, steps=6), demonstrations, teacher, resume=True)
    with pytest.raises(ConfigError, match=r"expected teacher with weights \w{12}, got teacher .*teacher with \w{12}"):
        train(change(longer, steps=8), demonstrations, run, resume=True)


def test_with_batch_norm_parts_of_a_batch_are_another_run(recipe: Recipe, demonstrations: Path, tmp_path: Path) -> None:
    norm = replace(recipe, policy=replace(recipe.policy, use_group_norm=False))
    train(norm, demonstrations, tmp_path / "run")
    with pytest.raises(ConfigError, match="expected gradient_accumulation_steps 1, got gradient_accumulation_steps 2"):
        train(change(norm, gradient_accumulation_steps=2), demonstrations, tmp_path / "run", resume=True)


def copy_of(demonstrations: Path, folder: Path, change_column=None, episodes=2) -> Path:
    """The same demonstrations written anew, with something changed."""
    from visuomotor.data.dataset import read
    from visuomotor.data.writer import DatasetWriter

    found = read(demonstrations)
    columns = [name for name in found.arrays if name.startswith("observation.") or name == "action"]
    features = {name: {"dtype": "float32", "shape": found.arrays[name].shape[1:], "names": None} for name in columns}
    row = 0
    with DatasetWriter.create(folder, fps=found.fps, features=features) as writer:
        for number in range(episodes):
            length = int(found.lengths[number % 2])
            for frame in range(length):
                values = {name: found.arrays[name][(row + frame) % len(found.arrays["action"])] for name in columns}
                if change_column:
                    change_column(number, frame, values)
                writer.add_frame(values, task="push")
            writer.save_episode()
            row += length
    return folder


def test_data_that_have_grown_are_refused(recipe: Recipe, demonstrations: Path, tmp_path: Path) -> None:
    first = copy_of(demonstrations, tmp_path / "first")
    run = tmp_path / "run"
    train(recipe, first, run)
    before = contents(run)
    grown = copy_of(demonstrations, tmp_path / "grown", episodes=3)
    told = r"grown: expected episodes 2, frames \d+, windows \d+, got episodes 3, frames \d+, windows \d+; "
    with pytest.raises(DatasetError, match=told + "[^ ]*run was begun with other data"):
        train(change(recipe, steps=6), grown, run, resume=True)
    assert contents(run) == before
    moved = shutil.copytree(first, tmp_path / "moved")
    train(change(recipe, steps=6), moved, run, resume=True)  # the same data elsewhere are the same


def test_data_with_another_number_are_refused(recipe: Recipe, demonstrations: Path, tmp_path: Path) -> None:
    def nudge(number: int, frame: int, values: dict[str, np.ndarray]) -> None:
        if (number, frame) == (1, 5):
            values["action"] = values["action"] + np.float32(0.5)

    train(recipe, copy_of(demonstrations, tmp_path / "first"), tmp_path / "run")
    other = copy_of(demonstrations, tmp_path / "other", nudge)
    with pytest.raises(DatasetError, match=r"expected numbers in the columns those of then, got .* others"):
        train(change(recipe, steps=6), other, tmp_path / "run", resume=True)


# More steps


def test_a_longer_run_says_that_the_cosine_moves(recipe, demonstrations, tmp_path, capsys):
    train(recipe, demonstrations, tmp_path / "run")
    train(change(recipe, steps=6), demonstrations, tmp_path / "run", resume=True)
    assert "cosine now ends at step 6: the result is not that of one run of 6" in capsys.readouterr().err
    assert lines(tmp_path / "run")[-1]["step"] == 6


@pytest.fixture
def stable(recipe: Recipe) -> Recipe:
    """Falls in its last three steps; the checkpoint from before is not one of `save_every`."""
    return change(recipe, scheduler_name="warmup-stable-decay", scheduler_decay_steps=3, save_every=5, log_every=5)


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """SIGTERM in the middle of a step."""
    import os
    import signal

    from visuomotor.policy.diffusion import DiffusionPolicy

    real, calls = DiffusionPolicy.forward, []

    def forward(self, *arguments):
        calls.append(1)
        if len(calls) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *arguments)

    monkeypatch.setattr(DiffusionPolicy, "forward", forward)


def test_a_stable_run_stopped_before_its_decay_is_extended_exactly(
    stable, demonstrations, tmp_path, monkeypatch, capsys
):
    straight = train(change(stable, steps=13), demonstrations, tmp_path / "straight")
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(SystemExit) as left:
            train(change(stable, steps=8), demonstrations, tmp_path / "run")
    assert left.value.code == 143 and names(tmp_path / "run") == ["step_000004"]
    resumed = train(change(stable, steps=13), demonstrations, tmp_path / "run", resume=True)
    assert "the result is exactly that of one run of 13" in capsys.readouterr().err
    assert contents(resumed) == contents(straight)
    assert lines(tmp_path / "run") == lines(tmp_path / "straight")


def test_a_stable_run_that_has_ended_goes_back_to_before_its_decay(stable, demonstrations, tmp_path, capsys):
    straight = train(change(stable, steps=13), demonstrations, tmp_path / "straight")
    run = tmp_path / "run"
    train(change(stable, steps=9, keep_checkpoints=1), demonstrations, run)
    assert names(run) == ["step_000006", "step_000009"]  # the one before the decay is kept beyond keep_checkpoints
    resumed = train(change(stable, steps=13), demonstrations, run, resume=True)
    told = "began to fall at step 6, and 9 steps are done: going back to step_000006, so that the result is exactly"
    assert told in capsys.readouterr().err
    assert contents(resumed) == contents(straight)
    assert lines(run) == lines(tmp_path / "straight")
    assert names(run) == ["set_aside_step_000009", "step_000006", "step_000010", "step_000013"]
    load_policy(run / "checkpoints/set_aside_step_000009/policy")


def test_a_stable_run_without_a_checkpoint_before_its_decay_says_so(stable, demonstrations, tmp_path, capsys):
    run = tmp_path / "run"
    train(change(stable, steps=9), demonstrations, run)
    for early in ("step_000005", "step_000006"):
        shutil.rmtree(run / "checkpoints" / early)
    train(change(stable, steps=13), demonstrations, run, resume=True)
    told = "no checkpoint from before is left, so the result is not that of one run of 13"
    assert told in capsys.readouterr().err
    assert lines(run)[-1]["step"] == 13


def test_what_was_extended_inexactly_stays_inexact(stable, demonstrations, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    train(change(stable, steps=9), demonstrations, run)
    for early in ("step_000005", "step_000006"):
        shutil.rmtree(run / "checkpoints" / early)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)  # of the extension: at step 11, with the rate of the longer run
        with pytest.raises(SystemExit):
            train(change(stable, steps=15), demonstrations, run, resume=True)
    train(change(stable, steps=15, log_every=1), demonstrations, run, resume=True)  # unchanged: nothing is said of it
    capsys.readouterr()
    train(change(stable, steps=20), demonstrations, run, resume=True)
    told = capsys.readouterr().err
    assert "is not that of one run of 20" in told and "exactly" not in told


def test_fewer_steps_than_are_done_are_refused(recipe, demonstrations, tmp_path):
    run = tmp_path / "run"
    train(recipe, demonstrations, run)
    before = (run / "config.json").read_bytes()
    with pytest.raises(ConfigError, match=r"steps: expected 4 or more, which .*step_000004 has done, got 3; the run"):
        train(change(recipe, steps=3), demonstrations, run, resume=True)
    assert (run / "config.json").read_bytes() == before


def test_a_checkpoint_is_loaded_by_the_name_that_train_returns(recipe, demonstrations, tmp_path):
    checkpoint = train(recipe, demonstrations, tmp_path / "run")
    assert load_policy(checkpoint).state_dict().keys() == load_policy(tmp_path / "run").state_dict().keys()


def test_a_run_that_is_stopped_and_resumed_writes_the_lines_of_one_that_was_not(
    recipe, demonstrations, tmp_path, monkeypatch
):
    longer = change(recipe, steps=12, log_every=5, save_every=100)
    straight = train(longer, demonstrations, tmp_path / "straight")
    for stop in (3, 4):
        with monkeypatch.context() as patch:
            stop_after(patch, stop)
            with pytest.raises(SystemExit):
                train(longer, demonstrations, tmp_path / "run", resume=True)
    resumed = train(longer, demonstrations, tmp_path / "run", resume=True)
    assert contents(resumed) == contents(straight)
    assert [line["step"] for line in lines(tmp_path / "run")] == [5, 10, 12]
    assert lines(tmp_path / "run") == lines(tmp_path / "straight")
