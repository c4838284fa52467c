"""Attempts are kept wave by wave; of each initial state the shortest success is chosen."""

import numpy as np
import pytest

from visuomotor.errors import DatasetError
from visuomotor.simulation import gathering, rollout
from visuomotor.simulation.gathering import gather, select, until_success
from visuomotor.simulation.rollout import Episode

from .acting import ScriptedPolicy

SEEDS = range(1_000_000, 1_000_010)


@pytest.fixture
def easy(monkeypatch):
    """A goal that is soon reached by some, small waves."""
    monkeypatch.setattr(rollout, "SUCCESS_COVERAGE", 0.2)
    monkeypatch.setattr(gathering, "WAVE", 4)


def run(folder, seeds=SEEDS, attempts=2):
    return gather(ScriptedPolicy(), seeds, attempts, folder, steps_after=5, max_steps=24)[0]


def columns(tried):
    return [
        [(one.seed, one.attempt, np.array(one.states), np.array(one.actions), one.coverages) for one in episodes]
        for episodes in tried
    ]


def test_waves_hold_what_one_rollout_gives(easy, tmp_path):
    tried = run(tmp_path)
    for attempt, episodes in enumerate(tried):
        straight = rollout.rollout(ScriptedPolicy(), SEEDS, max_steps=24, attempt=attempt, steps_after=5)
        np.testing.assert_equal(columns([episodes]), columns([straight]))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"attempt_{attempt}_from_{first:06d}.npz" for attempt in range(2) for first in (0, 4, 8)
    ]


def test_finished_waves_are_not_run_again(easy, tmp_path, monkeypatch):
    whole = run(tmp_path / "whole")
    asked = []

    def fail_in_the_third(policy, seeds, **options):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(list(seeds))
        return rollout.rollout(policy, seeds, **options)

    with monkeypatch.context() as broken:
        broken.setattr(gathering, "rollout", fail_in_the_third)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "broken")
    assert asked == [[*SEEDS[:4]], [*SEEDS[4:8]]]
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "broken").iterdir()}
    assert len(done) == 2
    np.testing.assert_equal(columns(run(tmp_path / "broken")), columns(whole))
    assert {path: path.stat().st_mtime_ns for path in done} == done


def test_a_damaged_wave_is_named(easy, tmp_path):
    run(tmp_path, SEEDS[:2], attempts=1)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DatasetError, match=r"attempt_0_from_000000\.npz: expected a wave of episodes, .*; delete it"):
        run(tmp_path, SEEDS[:2], attempts=1)


def episode(seed, steps, attempt=0, solved=True, after=0):
    coverages = [0.5] * (steps - 1) + [0.96 if solved else 0.94] + [0.5] * after
    states, actions = [np.zeros(5)] * (len(coverages) + 1), [np.zeros(2)] * len(coverages)
    return Episode(seed, states, actions, coverages, attempt=attempt)


def test_the_shortest_success_of_each_state_is_chosen():
    first = [
        episode(1, 50),
        episode(2, 90),
        episode(3, 300, solved=False),
        episode(4, 120),
        episode(5, 10, solved=False),
    ]
    second = [episode(seed, steps, 1) for seed, steps in ((1, 60), (2, 80), (3, 200), (4, 120))]
    second.append(episode(5, 300, 1, solved=False))
    chosen = select([first, second], keep=1)
    assert [(one.seed, one.attempt) for one in chosen] == [(1, 0), (2, 1), (4, 0), (3, 1)]
    assert [one.seed for one in select([first, second], keep=0.75)] == [1, 2, 4]
    assert [one.seed for one in select([first, second], keep=0.01)] == [1]
    assert select([[episode(1, 300, solved=False)]], keep=1) == []


def test_steps_after_the_success_do_not_count():
    slow, quick = episode(1, 20), episode(1, 18, 1, after=7)
    assert (quick.success, quick.steps, quick.solved_in) == (True, 25, 18)
    assert select([[slow], [quick]], keep=1) == [quick]
    cut = until_success(quick)
    assert (cut.steps, len(cut.states), cut.success, cut.max_coverage) == (18, 19, True, 0.96)
    lost = episode(1, 30, solved=False)
    assert until_success(lost) is lost
