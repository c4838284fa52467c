"""Recorded demonstrations: successes only, replayable, from seeds far from the evaluation's."""

import numpy as np
import pytest

from visuomotor.errors import ConfigError
from visuomotor.simulation import demonstrations
from visuomotor.simulation.demonstrations import FIRST_SEED, record
from visuomotor.simulation.pusht import PushT

from .acting import ScriptedPolicy


@pytest.fixture
def easy(monkeypatch):
    """A goal that any touch of the block's reaches, small waves: some seeds succeed within seconds."""
    from visuomotor.simulation import rollout

    monkeypatch.setattr(rollout, "SUCCESS_COVERAGE", 0.2)
    monkeypatch.setattr(demonstrations, "WAVE", 8)
    monkeypatch.setattr(demonstrations, "MAX_STEPS", 24)


def test_rows_are_states_before_actions(tmp_path, easy):
    file = record(ScriptedPolicy(), 3, FIRST_SEED, tmp_path / "made" / "some.npz")
    with np.load(file, allow_pickle=False) as content:
        agent, block, action, ends, seeds = (content[k] for k in ("agent", "block", "action", "episode_ends", "seed"))
    assert (agent.dtype, block.dtype, action.dtype) == (np.float32,) * 3
    assert (ends.dtype, seeds.dtype) == (np.int64,) * 2
    assert len(ends) == len(seeds) == 3 and len(agent) == len(block) == len(action) == ends[-1]
    assert (np.diff(seeds) > 0).all() and seeds[0] >= FIRST_SEED
    environment = PushT()
    for first, end, seed in zip([0, *ends], ends, seeds, strict=False):  # its actions from its seed, once more
        state, coverage = environment.reset(int(seed)), 0.0
        for row in range(first, end):
            assert coverage <= 0.2
            np.testing.assert_array_equal(agent[row], state[:2].astype(np.float32))
            np.testing.assert_array_equal(block[row], state[2:].astype(np.float32))
            state, coverage = environment.step(action[row])
        assert coverage > 0.2  # the last action solved it
    assert [path.name for path in file.parent.iterdir()] == ["some.npz"]


def test_the_same_again_is_the_same_file(tmp_path, easy):
    first = record(ScriptedPolicy(), 2, FIRST_SEED, tmp_path / "a.npz")
    second = record(ScriptedPolicy(), 2, FIRST_SEED, tmp_path / "b.npz")
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("seed", [0, 100_000, FIRST_SEED - 1])
def test_seeds_of_the_evaluation_are_refused(tmp_path, seed):
    with pytest.raises(ConfigError, match=r"seed: expected 1000000 or more, .*evaluation"):
        record(ScriptedPolicy(), 1, seed, tmp_path / "some.npz")
    assert not list(tmp_path.iterdir())


def test_a_policy_that_never_succeeds_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(demonstrations, "WAVE", 2)
    monkeypatch.setattr(demonstrations, "MAX_STEPS", 8)
    monkeypatch.setattr(demonstrations, "PATIENCE", 1)
    with pytest.raises(ConfigError, match="policy: expected 2 successes, got 0 in 2 attempts"):
        record(ScriptedPolicy(), 2, FIRST_SEED, tmp_path / "some.npz")
    assert not list(tmp_path.iterdir())
