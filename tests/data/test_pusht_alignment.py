"""Demonstrations moved onto the target: rigidly, each by what its block missed, and still what the physics allow."""

import numpy as np
import pytest

from visuomotor.cli import main
from visuomotor.data import bundled
from visuomotor.data.dataset import load_dataset
from visuomotor.data.pusht_alignment import align, recorded
from visuomotor.data.pusht_geometry import GOAL, block_keypoints
from visuomotor.errors import DatasetError

GOAL_CORNERS = block_keypoints(GOAL[None])[0]


@pytest.fixture
def source(tmp_path):
    """Two episodes, of 40 and 30 frames, that end some pixels and degrees beside the target."""
    random = np.random.default_rng(0)
    states, ends = np.empty((70, 5)), np.array([40, 70])
    states[:, :2] = random.uniform(100, 400, (70, 2))
    states[:, 2:] = GOAL + np.linspace(1, 0, 70)[:, None] * [80, -60, 2]
    states[39, 2:], states[69, 2:] = np.add(GOAL, [4, -3, 0.1]), np.add(GOAL, [-6, 8, 2 * np.pi - 0.2])
    bundled.write(tmp_path / "recorded.npz", states, states[:, :2] + 5, ends)
    return tmp_path / "recorded.npz"


def replay(states: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The state and the coverage after each action, from the first state on."""
    from visuomotor.simulation.pusht import PushT

    environment = PushT()
    environment.start(states[0])
    reached, coverages = zip(*map(environment.step, actions), strict=True)
    return np.array(reached), np.array(coverages)


def test_each_episode_ends_on_the_target(source, tmp_path):
    missed = align(source, tmp_path / "aligned.npz")
    np.testing.assert_allclose(missed, [[4, -3, 0.1], [-6, 8, -0.2]], atol=1e-4)
    found = load_dataset(tmp_path / "aligned.npz")
    corners = found.arrays["observation.environment_state"]
    np.testing.assert_allclose(corners[found.episode_ends - 1], [GOAL_CORNERS] * 2, atol=1e-3)
    assert np.load(tmp_path / "aligned.npz")["episode"].tolist() == [0, 1]


def test_what_was_recorded_is_moved_as_a_whole(source, tmp_path):
    align(source, tmp_path / "aligned.npz", episodes=[1])
    before, after = load_dataset(source, episodes=[1]), load_dataset(tmp_path / "aligned.npz")
    names = ("observation.state", "action", "observation.environment_state")
    points, moved = (np.concatenate([one.arrays[name].reshape(-1, 2) for name in names]) for one in (before, after))
    distances, moved_distances = (np.linalg.norm(p[:, None] - p[None], axis=-1) for p in (points, moved))
    np.testing.assert_allclose(moved_distances, distances, atol=1e-3)  # of every point to every other, in all frames
    # ... and not reflected: the block turns the way it did.
    turns = [np.unwrap(recorded(one.demonstrations)[0][:, 4]) for one in (before, after)]
    np.testing.assert_allclose(np.diff(turns[1]), np.diff(turns[0]), atol=1e-4)
    assert np.abs(moved - points).max() > 5


def test_what_lies_on_the_target_stays(source, tmp_path):
    align(source, tmp_path / "once.npz")
    missed = align(tmp_path / "once.npz", tmp_path / "twice.npz")
    np.testing.assert_allclose(missed, 0, atol=1e-4)
    once, twice = np.load(tmp_path / "once.npz"), np.load(tmp_path / "twice.npz")
    np.testing.assert_allclose(twice["action"], once["action"], atol=1e-3)


def test_the_physics_allow_it(tmp_path):
    """Actions that were moved move the block as it was moved, to a thousandth of a pixel."""
    pytest.importorskip("gym_pusht")
    original = recorded(load_dataset(bundled.NAME, episodes=[0]).demonstrations)
    reached = replay(*original)[0]
    assert np.abs(reached[-1, 2:] - original[0][0, 2:]).max() > 20, "the block is pushed"
    states = np.concatenate([original[0][:1], reached[:-1]])
    bundled.write(tmp_path / "recorded.npz", states, original[1], np.array([len(states)]))
    align(tmp_path / "recorded.npz", tmp_path / "aligned.npz")
    aligned = recorded(load_dataset(tmp_path / "aligned.npz").demonstrations)
    np.testing.assert_allclose(replay(*aligned)[0][:-1, :4], aligned[0][1:, :4], atol=1e-3)


def test_human_demonstrations_solve_the_task_when_they_are_moved(shared, tmp_path):
    pytest.importorskip("gym_pusht")
    from visuomotor.simulation.pusht import SUCCESS_COVERAGE

    align(shared / "pusht/lerobot_v30_keypoints", tmp_path / "aligned.npz", episodes=range(20))
    for source, episodes, expected in (
        (shared / "pusht/lerobot_v30_keypoints", range(20), range(3)),
        (tmp_path / "aligned.npz", None, range(19, 21)),
    ):
        demonstrations = load_dataset(source, episodes=episodes).demonstrations
        ends = np.cumsum(demonstrations.lengths)[:-1]
        episodes_of = zip(*(np.split(part, ends) for part in recorded(demonstrations)), strict=True)
        assert sum(max(replay(*one)[1]) > SUCCESS_COVERAGE for one in episodes_of) in expected


def test_what_is_not_pusht_with_corners_is_refused(source, tmp_path, shared):
    with pytest.raises(
        DatasetError, match=r"pusht_v30_image: observation\.environment_state: expected \(16,\), got none"
    ):
        align(shared / "lerobot/datasets/pusht_v30_image", tmp_path / "aligned.npz")
    with pytest.raises(DatasetError, match=r"aligned: expected a name that ends in \.npz"):
        align(source, tmp_path / "aligned")
    assert list(tmp_path.iterdir()) == [source]


def test_the_verb(source, tmp_path, capsys):
    assert main(["align", str(source), str(tmp_path / "aligned.npz"), "--episodes", "1"]) == 0
    assert "aligned: 1 episodes, moved by 10.0 pixels and 11.5 degrees (medians)" in capsys.readouterr().out
    assert load_dataset(tmp_path / "aligned.npz").episode_ends.tolist() == [30]
