"""Push-T as gym-pusht has it: initial states, steps, observations, and pictures to the pixel."""

import sys
from itertools import pairwise

import numpy as np
import pytest

from visuomotor.config import Feature
from visuomotor.errors import ConfigError
from visuomotor.simulation import pusht
from visuomotor.simulation.pusht import PushT, observe, render_states

SEEDS = (0, 7, 100_000, 1_234_567)


@pytest.fixture(scope="module")
def theirs():
    """gym-pusht's own environment; the kind of observation is set by each test."""
    PushT()  # hushes pygame and needs no screen
    from gym_pusht.envs.pusht import PushTEnv

    return PushTEnv()


@pytest.fixture(scope="module")
def actions() -> np.ndarray:
    """A walk through the middle of the table, where the block is."""
    return np.random.default_rng(0).uniform(120, 400, (60, 2)).astype(np.float32)


def test_initial_states_are_gym_pushts(theirs):
    theirs.obs_type = "state"
    environment = PushT()
    for seed in (*SEEDS, *reversed(SEEDS)):  # in any order, and again
        np.testing.assert_array_equal(environment.reset(seed), theirs.reset(seed=seed)[0])


def test_steps_are_gym_pushts(theirs, actions):
    theirs.obs_type = "state"
    environment = PushT()
    for seed in SEEDS:
        environment.reset(seed)
        theirs.reset(seed=seed)
        for action in actions:
            state, coverage = environment.step(action)
            expected, _, _, _, info = theirs.step(action)
            np.testing.assert_array_equal(state, expected)
            assert coverage == pytest.approx(info["coverage"], rel=1e-12)  # its own last bits vary from run to run


def test_a_reset_forgets_what_was_before(actions):
    environment = PushT()
    runs = []
    for seed in (3, 4, 3):
        state = environment.reset(seed)
        runs.append([(*state, 0.0), *((*state, coverage) for state, coverage in map(environment.step, actions))])
    assert runs[0] == runs[2] != runs[1]
    assert all(before != after for before, after in pairwise(runs[0]))


@pytest.mark.parametrize("size", [96, 512])
def test_pictures_are_the_live_environments(theirs, size):
    """Also where agent, block and wall touch, which gym-pusht marks in red."""
    theirs.obs_type = "pixels"
    theirs.observation_width = theirs.observation_height = size
    random = np.random.default_rng(0)
    environment, states, expected = PushT(), [], []
    for seed in SEEDS:
        states.append(environment.reset(seed))
        expected.append(theirs.reset(seed=seed)[0])
        for _ in range(20):
            action = states[-1][2:4] + random.uniform(-60, 60, 2)  # into the block
            states.append(environment.step(action)[0])
            expected.append(theirs.step(action)[0])
    pictures = render_states(np.array(states), size)
    assert pictures.dtype == np.uint8
    assert (pictures == np.array(expected)).all()
    if size == 512:  # nothing is mixed by scaling
        assert (pictures == (231, 76, 60)).all(-1).any((1, 2)).sum() > 10


def test_a_drawn_pose_does_not_depend_on_the_one_before():
    states = np.array([[100, 100, 300, 200, 1.0], [50, 400, 150, 350, 4.0]])
    np.testing.assert_array_equal(render_states(states), render_states(states[::-1])[::-1])


def test_pictures_are_those_of_the_human_demonstrations(shared):
    zarr = pytest.importorskip("zarr")
    with zarr.storage.ZipStore(shared / "pusht" / "pusht_cchi_v7_replay.zarr.zip", mode="r") as store:
        data = zarr.open_group(store, mode="r", path="pusht_cchi_v7_replay.zarr/data")
        drawn = render_states(np.asarray(data["state"][:100]))
        assert np.abs(drawn - np.asarray(data["img"][:100])).mean() < 0.1


def test_observations_are_gym_pushts(theirs):
    features = {
        "observation.image": Feature("VISUAL", (3, 96, 96)),
        "observation.state": Feature("STATE", (2,)),
        "observation.environment_state": Feature("ENV", (16,)),
    }
    states = np.stack([PushT().reset(seed) for seed in SEEDS]).reshape(2, 2, 5)
    observation = observe(states, features)
    assert {name: (values.shape, str(values.dtype)) for name, values in observation.items()} == {
        "observation.image": ((2, 2, 3, 96, 96), "uint8"),
        "observation.state": ((2, 2, 2), "float32"),
        "observation.environment_state": ((2, 2, 16), "float32"),
    }
    for row, seed in enumerate(SEEDS):
        at = divmod(row, 2)
        theirs.obs_type = "environment_state_agent_pos"
        expected = theirs.reset(seed=seed)[0]
        np.testing.assert_array_equal(observation["observation.state"][at], expected["agent_pos"].astype(np.float32))
        corners = expected["environment_state"].astype(np.float32)
        np.testing.assert_allclose(observation["observation.environment_state"][at], corners, rtol=0, atol=1e-4)
        theirs.obs_type, theirs.observation_width, theirs.observation_height = "pixels", 96, 96
        image = theirs.reset(seed=seed)[0]
        np.testing.assert_array_equal(observation["observation.image"][at].transpose(1, 2, 0), image)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("observation.images.top", (3, 96, 96)), ("observation.state", (7,)), ("observation.image", (96, 96, 3))],
)
def test_a_policy_of_another_task_is_refused(name, shape):
    with pytest.raises(ConfigError, match=rf"{name}: expected .*, got .*; evaluate a policy trained on Push-T"):
        observe(np.zeros((1, 5)), {name: Feature("STATE", shape)})


def test_without_gym_pusht_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gym_pusht.envs", None)
    with pytest.raises(ConfigError, match=r"pip install 'visuomotor\[pusht\]'"):
        PushT()


def test_pymunk_7_is_refused(monkeypatch):
    import pymunk

    monkeypatch.setattr(pymunk, "version", "7.0.1")
    with pytest.raises(ConfigError, match=r"pymunk: expected a version below 7, got 7\.0\.1"):
        PushT()


def test_success_is_gym_pushts(theirs):
    assert theirs.success_threshold == pusht.SUCCESS_COVERAGE
    assert theirs.metadata["render_fps"] == pusht.FPS
