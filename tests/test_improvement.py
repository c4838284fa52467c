"""Rounds of self-improvement with a tiny policy: seeds, what is kept, and going on after a kill."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from visuomotor import improvement
from visuomotor.cli import main
from visuomotor.data.dataset import load_dataset
from visuomotor.errors import ConfigError
from visuomotor.evaluation.evaluate import evaluate
from visuomotor.improvement import improve, table
from visuomotor.policy.checkpoint import load_policy, save_policy
from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.presets import IMAGE, preset
from visuomotor.recipe import Recipe
from visuomotor.simulation import gathering, pusht, rollout
from visuomotor.training.loop import train

from .simulation.acting import random_policy

DATA = Path(__file__).parent / "data" / "reference" / "keypoints"  # two episodes of Push-T
SMALL = {
    "preset_name": "debug",
    "rounds": 2,
    "episodes_per_round": 12,
    "attempts": 2,
    "keep": 0.5,
    "steps": 4,
    "max_steps": 16,
    "evaluation_episodes": 3,
    "threads": 1,
    "device": "cpu",
    "progress": False,
}


@pytest.fixture(scope="module", autouse=True)
def easy():
    """A goal so near that some episodes of a policy that moves at random reach it, and small waves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "SUCCESS_COVERAGE", 0.1)
        patch.setattr(gathering, "WAVE", 8)
        yield


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """The folder of such a policy."""
    folder = tmp_path_factory.mktemp("some") / "policy"
    save_policy(random_policy(), folder)
    return folder


@pytest.fixture(scope="module")
def straight(policy, tmp_path_factory):
    """Two rounds without interruption."""
    folder = tmp_path_factory.mktemp("straight") / "out"
    improve(policy, DATA, folder, **SMALL)
    return folder


def contents(folder: Path) -> dict[str, object]:
    """Every file below; of JSON what is not a time or a path."""
    found: dict[str, object] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if "tensorboard" in name or path.name in ("report.html", "lock"):
            continue
        if path.suffix in (".json", ".jsonl"):
            lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            found[name] = [without_times(json.loads(line), str(folder)) for line in lines]
        else:
            found[name] = path.read_bytes()
    return found


def without_times(value, folder: str):
    if isinstance(value, dict):
        return {name: without_times(one, folder) for name, one in value.items() if "second" not in name}
    if isinstance(value, list):
        return [without_times(one, folder) for one in value]
    return value.replace(folder, "") if isinstance(value, str) else value


def test_two_rounds(straight):
    rounds = json.loads((straight / "improvement.json").read_text())["rounds"]
    assert [one["seeds"] for one in rounds] == [[2_000_000, 2_000_011], [2_100_000, 2_100_011]]
    human = load_dataset(DATA)
    frames = [len(human)]
    for number, one in enumerate(rounds, start=1):
        place = straight / f"round_{number:03d}"
        assert sorted(path.name for path in place.iterdir()) == ["episodes.npz", "evaluation", "rollouts.json", "run"]
        kept = load_dataset(place / "episodes.npz")
        seeds = np.load(place / "episodes.npz")["seed"]
        assert len(set(seeds.tolist())) == len(seeds) == one["kept"] == len(kept.episodes)
        assert seeds.min() >= one["seeds"][0] and seeds.max() <= one["seeds"][1]
        assert one["frames"] == len(kept)
        # After the success a window of 7 more frames goes on: the last anchor is the last state before it.
        assert len(kept.anchors(7)) == round(one["mean_length"] * one["kept"]) == len(kept) - 7 * one["kept"]
        frames.append(len(kept))
        told = json.loads((place / "run" / "config.json").read_text())
        assert (told["recipe"]["training"]["steps"], told["recipe"]["training"]["seed"]) == (4, number)
        trained = load_policy(place / "run")
        joined = load_dataset([DATA, *(straight / f"round_{n:03d}/episodes.npz" for n in range(1, number + 1))])
        assert len(joined) == sum(frames)
        np.testing.assert_array_equal(trained.statistics["action"]["max"], joined.statistics["action"]["max"])
        assert json.loads((place / "evaluation" / "eval.json").read_text())["settings"]["seed"] == 500_000
    assert len(table(rounds).splitlines()) == 3


def test_rollouts_measure_the_policy_that_a_round_begins_with(policy, tmp_path):
    (found,) = improve(policy, DATA, tmp_path / "out", **SMALL | {"rounds": 1, "evaluation_episodes": 0})
    measured = evaluate(
        policy, output=tmp_path / "eval", seed=2_000_000, episodes=12, max_steps=16, videos=0, progress=False
    )
    told = json.loads((tmp_path / "out/round_001/rollouts.json").read_text())
    assert told["episodes"] == measured["episodes"]
    for name in ("success_rate", "success_rate_interval", "mean_max_reward"):
        assert found[name] == told[name] == measured[name]
    assert 0 < found["success_rate"] < 1
    assert "evaluation" not in found and "not measured" in table([found])


def test_training_goes_on_from_the_present_weights(policy, tmp_path):
    settings = SMALL | {"rounds": 1, "steps": 1, "evaluation_episodes": 0}
    improve(policy, DATA, tmp_path / "on", **settings)
    improve(policy, DATA, tmp_path / "anew", **settings | {"from_scratch": True})
    before = load_policy(policy).state_dict()
    on, anew = (load_policy(tmp_path / name / "round_001/run").state_dict() for name in ("on", "anew"))
    for name, tensor in before.items():
        assert torch.equal(on[name], tensor), "the first step's rate is 0: nothing has moved yet"
    assert any(not torch.equal(anew[name], tensor) for name, tensor in before.items())


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(policy, straight, tmp_path, monkeypatch):
    real_rollout, real_loss, calls = gathering.rollout, DiffusionPolicy.forward, []

    def fails(function, at):
        def failing(*arguments, **options):
            calls.append(1)
            if len(calls) == at:
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return failing

    for place, name, function, at in (
        (gathering, "rollout", real_rollout, 3),  # in the first round's second attempt
        (DiffusionPolicy, "forward", real_loss, 3),  # in its training
        (gathering, "rollout", real_rollout, 2),
        (DiffusionPolicy, "forward", real_loss, 4),
    ):
        calls.clear()
        with monkeypatch.context() as broken:
            broken.setattr(place, name, fails(function, at))
            with pytest.raises(KeyboardInterrupt):
                improve(policy, DATA, tmp_path / "broken", resume=True, **SMALL)
        torch.manual_seed(len(calls))  # nothing may hang on torch's own generator
    rounds = improve(policy, DATA, tmp_path / "broken", resume=True, **SMALL)
    assert contents(tmp_path / "broken") == contents(straight)
    assert improve(policy, DATA, tmp_path / "broken", resume=True, **SMALL) == rounds  # nothing is left to do


def test_more_rounds_may_be_asked_for_later(policy, straight, tmp_path):
    improve(policy, DATA, tmp_path / "longer", **SMALL | {"rounds": 1})
    improve(policy, DATA, tmp_path / "longer", resume=True, **SMALL)
    assert contents(tmp_path / "longer") == contents(straight)


def test_a_policy_of_chosen_episodes_is_refused(tmp_path):
    """They would choose among the kept episodes too."""
    recipe = preset("debug")
    recipe = replace(recipe, training=replace(recipe.training, episodes=(0,), device="cpu"))
    train(recipe, DATA, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"policy: expected one that was trained on all of its data, got episodes"):
        improve(tmp_path / "run", DATA, tmp_path / "out", **SMALL | {"preset_name": None})
    assert not (tmp_path / "out").exists()


def test_policy_and_data_may_move_but_not_change(policy, tmp_path):
    settings = SMALL | {"rounds": 1, "evaluation_episodes": 0, "episodes_per_round": 8}
    places = [tmp_path / name for name in ("policy", "data", "out")]
    shutil.copytree(policy, places[0])
    shutil.copytree(DATA, places[1])
    improve(*places, **settings)
    moved = [path.rename(path.with_name(f"moved_{path.name}")) for path in places]
    assert len(improve(*moved, resume=True, **settings | {"rounds": 2})) == 2
    with pytest.raises(
        ConfigError, match=r"expected data .*moved_data.*, data_sha256 \w{64}, got data .*episodes\.npz"
    ):
        improve(moved[0], moved[2] / "round_001/episodes.npz", moved[2], resume=True, **settings | {"rounds": 3})


def test_what_would_be_another_improvement_is_refused(policy, tmp_path):
    settings = SMALL | {"rounds": 1, "evaluation_episodes": 0}
    improve(policy, DATA, tmp_path / "out", **settings)
    with pytest.raises(ConfigError, match=r"out: expected a folder without an improvement, got one; pass --resume"):
        improve(policy, DATA, tmp_path / "out", **settings)
    with pytest.raises(ConfigError, match=r"expected attempts 2, keep 0\.5, got attempts 3, keep 1; keep these"):
        improve(policy, DATA, tmp_path / "out", resume=True, **settings | {"attempts": 3, "keep": 1})
    with pytest.raises(ConfigError, match="expected preset debug, got preset demo; keep these"):
        improve(policy, DATA, tmp_path / "out", resume=True, **settings | {"preset_name": "demo"})
    with pytest.raises(
        ConfigError, match=r"expected policy .*policy, weights_sha256 \w{64}, got policy .*run, weights"
    ):
        improve(tmp_path / "out/round_001/run", DATA, tmp_path / "out", resume=True, **settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 999_999}, "seed: expected 1000000 or more, got 999999; those below are for evaluation"),
        ({"rounds": 0}, "rounds: expected 1 or more, got 0"),
        ({"keep": 0}, r"keep: expected a share in \(0, 1\], got 0"),
        ({"attempts": 0}, "attempts: expected 1 or more"),
        ({"episodes_per_round": 100_001}, "episodes_per_round: expected 1 to 100000"),
        (
            {"preset_name": None},
            "policy: preset: expected a training run or a shipped policy, got neither; name the one",
        ),
    ],
)
def test_settings_out_of_range_leave_no_folder(policy, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        improve(policy, DATA, tmp_path / "out", **SMALL | changes)
    assert not (tmp_path / "out").exists()


def test_a_policy_that_never_succeeds_is_given_up(policy, tmp_path, monkeypatch):
    monkeypatch.setattr(rollout, "SUCCESS_COVERAGE", 0.95)
    with pytest.raises(ConfigError, match="policy: expected a success, got none in 24 episodes; begin from a better"):
        improve(policy, DATA, tmp_path / "out", **SMALL)


def test_kept_episodes_teach_an_image_policy(shared, straight, tmp_path, monkeypatch):
    sources = [shared / "lerobot/datasets/pusht_v30_image", straight / "round_001/episodes.npz"]
    parts, joined = [load_dataset(source) for source in sources], load_dataset(sources)
    assert joined.demonstrations.tasks == parts[0].demonstrations.tasks  # one task, in the same words
    frames, first = joined.frames["observation.image"], len(parts[0])
    for part, start in ((parts[0], 0), (parts[1], first)):
        np.testing.assert_array_equal(frames[start : start + 3], part.frames["observation.image"][:3])

    def draw_again(*_):
        raise AssertionError("the frames lie in the store")

    monkeypatch.setattr(pusht, "render_states", draw_again)
    recipe = preset("debug")
    recipe = replace(recipe, training=replace(recipe.training, observations=IMAGE, augmentation="pusht-mirror"))
    trained = load_policy(train(recipe, sources, tmp_path / "run") / "policy")
    for key, value in joined.statistics["observation.image"].items():
        np.testing.assert_allclose(trained.statistics["observation.image"][key], value, rtol=1e-6)


def test_threads_are_those_asked_for_whatever_the_run_had(policy, tmp_path, monkeypatch):
    recipe = preset("debug")
    seen = tuple(load_policy(policy).config.input_features)
    own = replace(recipe.training, observations=seen, threads=2, initial_policy=str(policy))
    before = torch.get_num_threads()
    train(Recipe(load_policy(policy).config, own), DATA, tmp_path / "run")
    torch.set_num_threads(before)
    asked = []

    def note(recipe, *_, **__):
        asked.append((recipe.training.threads, torch.get_num_threads()))
        raise KeyboardInterrupt

    monkeypatch.setattr(improvement, "train", note)
    for threads in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            changed = {"preset_name": None, "threads": threads}
            improve(tmp_path / "run", DATA, tmp_path / str(threads), **SMALL | changed)
    torch.set_num_threads(before)
    assert asked == [(0, before), (1, 1)]


@pytest.mark.parametrize(("flags", "address"), [([], None), (["--ray"], "auto"), (["--ray", "head:6379"], "head:6379")])
def test_ray_is_for_the_rollouts(policy, tmp_path, monkeypatch, flags, address):
    """What it does there: tests/simulation/test_cluster.py."""
    asked = []

    def note(policy, seeds, attempts, folder, *, ray, device, **options):
        asked.append((ray, device))
        return gathering.gather(policy, seeds, attempts, folder, **options)

    monkeypatch.setattr(improvement, "gather", note)
    command = f"improve {policy} --data {DATA} --output {tmp_path / 'out'} --preset debug --rounds 1 --attempts 1 "
    command += "--episodes-per-round 12 --steps 1 --max-steps 16 --evaluation-episodes 0 --device cpu"
    assert main([*command.split(), *flags]) == 0
    assert asked == [(address, "cpu")]
    assert "ray" not in json.loads((tmp_path / "out/improvement.json").read_text())["settings"]


def test_the_command_prints_the_table(policy, straight, capsys):
    flags = (
        "--episodes-per-round 12 --attempts 2 --keep 0.5 --steps 4 --max-steps 16 --evaluation-episodes 3 --rounds 2"
    )
    command = ["improve", str(policy), "--data", str(DATA), "--output", str(straight), "--preset", "debug"]
    assert main([*command, *flags.split(), "--device", "cpu", "--resume"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:-1] == table(json.loads((straight / "improvement.json").read_text())["rounds"]).splitlines()
    assert lines[-1].startswith(f"next:    visuomotor eval {straight}/round_002/run --episodes 500 --output ")


def test_the_command_trains_on_several_sources(straight, tmp_path, capsys):
    kept = straight / "round_001/episodes.npz"
    assert main(["train", "debug", "--data", str(DATA), str(kept), "--output", str(tmp_path / "run")]) == 0
    found, joined = load_policy(tmp_path / "run").statistics["action"], load_dataset([DATA, kept])
    assert found["count"].tolist() == [len(joined)]
