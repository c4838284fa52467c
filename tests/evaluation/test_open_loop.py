"""Open loop: exact errors on made-up predictions, the same noises every time, and data that does not fit."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from visuomotor.cli import main
from visuomotor.config import Feature
from visuomotor.data.dataset import load_dataset
from visuomotor.data.writer import DatasetWriter
from visuomotor.deployment.export import export
from visuomotor.errors import CheckpointError, ConfigError, DatasetError
from visuomotor.evaluation.open_loop import (
    BATCH,
    HELD_OUT,
    TRAINED_ON,
    Replay,
    as_text,
    replay_episodes,
    summary,
    validate,
)
from visuomotor.evaluation.open_loop_page import validation_page
from visuomotor.policy.checkpoint import save_policy
from visuomotor.policy.diffusion import DiffusionPolicy

from ..policy.small import small_config
from .test_report import Page

JOINTS = ["<b>shoulder</b>", "elbow"]
LENGTHS = (11, 4, 6)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three episodes of an arm without a camera; the action is the frame's number, and minus twice that."""
    features = {
        "observation.state": {"dtype": "float32", "shape": (2,), "names": None},
        "action": {"dtype": "float32", "shape": (2,), "names": JOINTS},
    }
    with DatasetWriter.create(tmp_path / "set", 10, features) as writer:
        for length in LENGTHS:
            for frame in range(length):
                action = np.array([frame, -2 * frame], np.float32)
                writer.add_frame({"observation.state": action + 1, "action": action}, "Count.")
            writer.save_episode()
    return tmp_path / "set"


def make_policy(source: Path, **changes) -> DiffusionPolicy:
    outputs = {"action": Feature("ACTION", (2,))}
    config = small_config(
        output_features=outputs, **({"noise_scheduler_type": "DDIM", "num_inference_steps": 2} | changes)
    )
    torch.manual_seed(0)
    return DiffusionPolicy(config, load_dataset(source).statistics).eval()


class OffByTwo:
    """Plans to stay where the demonstrator is now, and a little to the side: 2 at one noise, -2 at the other."""

    def __init__(self, policy: DiffusionPolicy):
        self.config, self.noise_draws, self.signs, self.calls = policy.config, policy.noise_draws, [2.0, -2.0], 0

    def predict_action_chunk(self, observation, noise):
        side = self.signs[self.calls % 2]
        self.calls += 1
        now = observation["observation.state"][:, -1:] - 1  # (B, 1, 2): the action of this frame
        return now.expand(-1, self.config.n_action_steps, -1) + side


def test_errors_are_exact(source: Path) -> None:
    replay = replay_episodes(OffByTwo(make_policy(source)), load_dataset(source), draws=2)[0]
    steps = np.arange(11) % 4  # frames since the chunk began
    recorded = np.stack([np.arange(11), -2 * np.arange(11)], axis=1)
    np.testing.assert_array_equal(replay.recorded, recorded)
    stays = recorded - np.stack([steps, -2 * steps], axis=1)
    np.testing.assert_allclose(replay.predicted, [stays + 2, stays - 2])
    held = [0, 0, 0, 0, 3, 3, 3, 3, 7, 7, 7]  # the action before each chunk; at the beginning the first one
    np.testing.assert_array_equal(replay.held[:, 0], held)
    errors = replay.errors()
    np.testing.assert_allclose(errors["mean_absolute_error"][0], np.mean([np.abs(2 - steps), 2 + steps]))
    np.testing.assert_allclose(errors["mean_squared_error"][0], np.mean([(2 - steps) ** 2, (2 + steps) ** 2]))
    np.testing.assert_allclose(
        errors["hold_mean_absolute_error"], np.abs(recorded - [[h, -2 * h] for h in held]).mean(0)
    )


def test_every_frame_counts_the_same() -> None:
    def constant(episode: int, frames: int, off: float, hold: float) -> Replay:
        zeros = np.zeros((frames, 2))
        return Replay(episode, zeros, np.stack([zeros + off, zeros - off]), zeros + np.array([hold, 0]))

    result = summary([constant(3, 1, 4.0, 8.0), constant(7, 3, 0.0, 8.0)], ["a", "b"])
    a, b = result["joints"]
    assert (a["name"], a["mean_absolute_error"], a["root_mean_square_error"]) == ("a", 1.0, 2.0)
    assert (a["hold_mean_absolute_error"], a["hold_root_mean_square_error"]) == (8.0, 8.0)
    assert b["hold_mean_absolute_error"] == 0
    assert result["relative_error"] == 1 / 8  # of the joint that holding misses
    assert [(e["episode"], e["frames"], e["mean_absolute_error"][0]) for e in result["episodes"]] == [
        (3, 1, 4),
        (7, 3, 0),
    ]
    assert summary([constant(0, 2, 1.0, 0.0)], ["a", "b"])["relative_error"] is None


def test_a_joint_that_hardly_moves_does_not_decide() -> None:
    recorded, held = np.zeros((2, 4)), np.full((2, 4), [10.0, 5.0, 1e-6, 0.0])
    result = summary([Replay(0, recorded, recorded[None] + 1.0, held)], ["a", "b", "jitters", "fixed"])
    assert result["relative_error"] == pytest.approx(0.2)  # of 0.1, 0.2 and a million
    told = "overall: 0.20 of the error of repeating the last action, the median of 3 joints in 1 episodes"
    assert as_text(result).splitlines()[-1] == told
    settings = {"policy": "p", "data": "d", "episodes": "all", "draws": 1}
    page = Page(validation_page(result | {"settings": settings, "versions": {}}, []))
    assert "2 of 3" in page.texts
    still = summary([Replay(0, recorded, recorded[None], recorded)], ["a", "b", "c", "d"])
    assert as_text(still).splitlines()[-1] == "overall: no joint moves in 1 episodes"


@pytest.mark.parametrize("scheduler", ["DDIM", "DDPM"])
def test_a_chunk_depends_on_seed_episode_and_frame_alone(source: Path, scheduler: str) -> None:
    policy = make_policy(source, noise_scheduler_type=scheduler)
    both = replay_episodes(policy, load_dataset(source), draws=2, seed=5)
    alone = replay_episodes(policy, load_dataset(source, episodes=[2]), draws=3, seed=5)
    assert [replay.episode for replay in both] == [0, 1, 2]
    np.testing.assert_array_equal(both[2].predicted, alone[0].predicted[:2])
    other = replay_episodes(policy, load_dataset(source), draws=2, seed=6)
    assert (both[0].predicted != other[0].predicted).any()
    assert (both[0].predicted[0] != both[0].predicted[1]).any()


def test_it_predicts_what_the_policy_would_do_there(source: Path) -> None:
    """`select_action` on the recorded observations, with the same noise, gives the same actions."""
    policy, dataset = make_policy(source), load_dataset(source)
    (replay,) = replay_episodes(policy, load_dataset(source, episodes=[0]), draws=1, seed=1)
    shape = (policy.noise_draws(), 1, policy.config.horizon, 2)
    for frame in range(LENGTHS[0]):
        noise = np.random.default_rng((1, 0, frame, 0)).standard_normal(shape, dtype=np.float32)
        action = policy.select_action(
            {"observation.state": dataset[frame]["observation.state"][None]}, torch.as_tensor(noise)
        )
        np.testing.assert_allclose(replay.predicted[0, frame], action[0], rtol=1e-5, atol=1e-5)


def test_more_chunks_than_a_batch_holds(source: Path) -> None:
    policy = make_policy(source, n_action_steps=1)
    assert sum(LENGTHS) > BATCH
    whole = replay_episodes(policy, load_dataset(source), draws=1)
    for number, length in enumerate(LENGTHS):
        (alone,) = replay_episodes(policy, load_dataset(source, episodes=[number]), draws=1)
        assert whole[number].predicted.shape == (1, length, 2)
        np.testing.assert_array_equal(whole[number].predicted, alone.predicted)


def test_what_is_written(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_policy(make_policy(source), tmp_path / "policy")
    flags = [
        "--episodes",
        "0",
        "2",
        "--draws",
        "2",
        "--plots",
        "1",
        "--device",
        "cpu",
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(["validate", str(tmp_path / "policy"), "--data", str(source), *flags]) == 0
    out = capsys.readouterr().out.splitlines()
    result = json.loads((tmp_path / "out" / "validation.json").read_text())
    assert [joint["name"] for joint in result["joints"]] == JOINTS
    assert [episode["episode"] for episode in result["episodes"]] == [0, 2]
    assert (result["settings"]["episodes"], result["settings"]["draws"], len(result["settings"]["weights_sha256"])) == (
        "chosen",
        2,
        64,
    )
    assert out[1].split()[:2] == [JOINTS[0], f"{result['joints'][0]['mean_absolute_error']:.4g}"]
    assert out[-2].startswith(f"overall: {result['relative_error']:.2f} of the error of repeating the last action")
    html = (tmp_path / "out" / "validation.html").read_text()
    page, text = Page(html), " ".join(Page(html).texts)
    assert page.open == [] and page.links == [] and "b" not in page.tags
    assert page.tags.count("svg") == 2  # one episode of two joints
    assert html.count('class="truth"') == html.count('class="many"') == 2
    assert "Episode 0" in text and "Episode 2" not in text and JOINTS[0] in text
    (chart,) = {line for line in html.splitlines() if 'class="many"' in line}
    paths = [part.split('"')[0] for part in chart.split('class="many" d="')[1:]]
    assert [path.count("M") for path in paths] == [6, 6]  # 2 noises of 3 chunks


def test_again_is_the_same(source: Path, tmp_path: Path) -> None:
    save_policy(make_policy(source), tmp_path / "policy")
    first, second = (validate(tmp_path / "policy", source, output=tmp_path / name, device="cpu") for name in "ab")
    assert first | {"seconds": 0} == second | {"seconds": 0}
    assert first["settings"]["episodes"] == "all"


def make_run(source: Path, folder: Path, **training) -> Path:
    """The folder of a run as `train` writes it, without training."""
    from dataclasses import replace

    from visuomotor.presets import preset
    from visuomotor.training.checkpoint import Run, write_run

    policy = make_policy(source, drop_n_last_frames=0)
    save_policy(policy, folder / "checkpoints" / "step_000002" / "policy")
    recipe = replace(preset("debug"), policy=policy.config)
    write_run(folder, Run(replace(recipe, training=replace(recipe.training, **training)), str(source)))
    return folder


def test_a_run_is_measured_on_what_it_held_out(source: Path, tmp_path: Path) -> None:
    held_out = validate(make_run(source, tmp_path / "run", validation_episodes=1), output=tmp_path / "a", device="cpu")
    assert held_out["settings"]["episodes"] == HELD_OUT
    (episode,) = held_out["episodes"]
    chosen = np.random.default_rng((0, 0, 1)).permutation(3)[0]  # as training/validation.py chooses
    assert episode["episode"] == chosen

    run = make_run(source, tmp_path / "all")
    assert validate(run, output=tmp_path / "b", device="cpu")["settings"]["episodes"] == TRAINED_ON
    result = validate(run, output=tmp_path / "c", episodes=[1], device="cpu")
    assert [episode["episode"] for episode in result["episodes"]] == [1]


def make_looking_policy(folder: Path, resize: tuple[int, int] | None) -> DiffusionPolicy:
    """Writes `set`, an episode with a camera of 32 x 40, and `policy`, which looks at it."""
    config = small_config(cameras=1, resize_shape=resize, crop_shape=None, num_inference_steps=2)
    features = {"action": {"dtype": "float32", "shape": (3,), "names": None}}
    features["observation.state"] = features["action"] | {"shape": (2,)}
    features[next(iter(config.image_features))] = {"dtype": "image", "shape": (32, 40, 3), "names": None}
    random = np.random.default_rng(0)
    with DatasetWriter.create(folder / "set", 10, features) as writer:
        for _ in range(6):
            values = {name: random.integers(256, size=feature["shape"]) for name, feature in features.items()}
            writer.add_frame({n: v.astype(np.uint8 if v.ndim > 1 else np.float32) for n, v in values.items()}, "Look.")
        writer.save_episode()
    policy = DiffusionPolicy(config, load_dataset(folder / "set").statistics).eval()
    save_policy(policy, folder / "policy")
    return policy


def mean_errors(joints: list[dict]) -> list[float]:
    return [joint["mean_absolute_error"] for joint in joints]


@pytest.mark.parametrize("resize", [(16, 20), None])
def test_frames_are_kept_in_the_size_that_the_policy_sees(
    tmp_path: Path, cache: Path, resize: tuple[int, int] | None
) -> None:
    policy = make_looking_policy(tmp_path, resize)
    found = validate(tmp_path / "policy", tmp_path / "set", output=tmp_path / "out", device="cpu")
    (stored,) = (cache / "frames").glob("*.npy")
    assert np.load(stored).shape == (6, *(resize or (32, 40)), 3)
    whole = summary(replay_episodes(policy, load_dataset(tmp_path / "set")), ["0", "1", "2"])
    tolerance = 0.02 if resize else 0  # whole grey levels
    np.testing.assert_allclose(mean_errors(found["joints"]), mean_errors(whole["joints"]), rtol=tolerance)


@pytest.mark.slow
def test_an_export_sees_frames_as_recorded(tmp_path: Path) -> None:
    policy = make_looking_policy(tmp_path, (16, 20))
    export(tmp_path / "policy", tmp_path / "exported", "torch")
    found = validate(tmp_path / "exported", tmp_path / "set", output=tmp_path / "out", device="cpu")
    whole = summary(replay_episodes(policy, load_dataset(tmp_path / "set")), ["0", "1", "2"])
    np.testing.assert_allclose(mean_errors(found["joints"]), mean_errors(whole["joints"]), rtol=1e-3)


def test_data_that_does_not_fit_is_refused(source: Path, tmp_path: Path) -> None:
    def refused(changes: dict, kind: type[Exception] = DatasetError) -> str:
        policy = make_policy(source)
        config = small_config(**({"output_features": policy.config.output_features} | changes))
        statistics = {
            name: {"min": np.zeros(f.shape), "max": np.ones(f.shape)}
            for name, f in (config.input_features | config.output_features).items()
        }
        save_policy(DiffusionPolicy(config, statistics), tmp_path / "policy")
        with pytest.raises(kind) as caught:
            validate(tmp_path / "policy", source, output=tmp_path / "out", device="cpu")
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    assert refused({"state": 3}).startswith(f"{source}: observation.state: expected (3,), got (2,); ")
    assert refused({"environment": 4}).startswith(
        f"{source}: observation.environment_state: expected a feature of (4,), got ["
    )
    three = {"action": Feature("ACTION", (3,))}
    assert refused({"output_features": three}).startswith(f"{source}: action: expected (3,), got (2,); ")


@pytest.mark.parametrize(("name", "value"), [("draws", 0), ("seed", -1), ("plots", -1)])
def test_settings_out_of_range(source: Path, tmp_path: Path, name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{name}: expected [01] or more, got {value}"):
        validate("nowhere", source, output=tmp_path / "out", **{name: value})


def test_a_policy_alone_knows_no_data(source: Path, tmp_path: Path) -> None:
    save_policy(make_policy(source), tmp_path / "policy")
    with pytest.raises(
        ConfigError, match=r"data: expected a SOURCE, or a run that notes its own, got the policy .*; name"
    ):
        validate(tmp_path / "policy", output=tmp_path / "out")


def test_actions_that_are_no_numbers(source: Path) -> None:
    policy = make_policy(source)
    policy.normalizer.inverse_scale_1.fill_(torch.nan)
    with pytest.raises(CheckpointError, match="action: expected finite numbers"):
        replay_episodes(policy, load_dataset(source), draws=1)
