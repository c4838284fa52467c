"""Intervals and comparisons against published numbers."""

import math

import pytest

from visuomotor.errors import ConfigError
from visuomotor.evaluation.intervals import compare, wilson_interval


@pytest.mark.parametrize(
    ("successes", "episodes", "expected"),
    [
        (81, 263, (0.2553, 0.3662)),  # Newcombe 1998, table I, method 3
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilson_is_newcombes_table(successes, episodes, expected):
    assert tuple(round(end, 4) for end in wilson_interval(successes, episodes)) == expected


def test_wilson_ends_solve_their_equation():
    """Each end is a rate that lies 1.96 of its own standard errors from what was measured."""
    for end in wilson_interval(362, 500):
        assert abs(362 / 500 - end) == pytest.approx(1.959963984540054 * math.sqrt(end * (1 - end) / 500), rel=1e-12)


def test_wilson_is_symmetric_and_stays_inside():
    low, high = wilson_interval(3, 50)
    assert wilson_interval(47, 50) == pytest.approx((1 - high, 1 - low), abs=1e-15)
    assert wilson_interval(0, 1)[0] == 0.0 and wilson_interval(1, 1)[1] == 1.0
    assert wilson_interval(0, 1)[1] == pytest.approx(3.841458820694124 / 4.841458820694124)  # z^2 / (1 + z^2)


def test_confidence_widens():
    low, high = wilson_interval(30, 100, confidence=0.99)
    assert low < wilson_interval(30, 100)[0] < wilson_interval(30, 100)[1] < high


def evaluation(successes: dict[int, bool]) -> dict:
    return {"episodes": [{"seed": seed, "success": success} for seed, success in successes.items()]}


def test_compare_counts_flips():
    first = evaluation({1: True, 2: False, 3: False, 4: True, 5: False, 6: False, 7: False, 8: True})
    second = evaluation({1: True, 2: True, 3: True, 4: False, 5: True, 6: True, 7: True, 8: True})
    comparison = compare(first, second)
    assert (comparison.gained, comparison.lost) == ([2, 3, 5, 6, 7], [4])
    assert comparison.difference == 0.5
    assert comparison.p_value == 2 * (1 + 6) / 64  # both tails of 6 fair coins with 0 or 1 heads


def test_compare_finds_no_difference_between_equals():
    one = evaluation({1: True, 2: False})
    assert compare(one, one).p_value == 1.0
    assert compare(one, evaluation({1: False, 2: True})).p_value == 1.0


def test_compare_refuses_other_seeds():
    with pytest.raises(ConfigError, match="episodes: expected the same seeds in both, got 2 seeds"):
        compare(evaluation({1: True, 2: False}), evaluation({1: True, 3: False}))


def flips(gained: int, lost: int, episodes: int) -> tuple[dict, dict]:
    """Two evaluations of which the second solves `gained` seeds more, and `lost` seeds less."""
    first = {seed: gained <= seed < gained + lost for seed in range(episodes)}
    return evaluation(first), evaluation({seed: seed < gained for seed in range(episodes)})


def test_interval_of_the_difference_by_hand():
    """30 gained, 10 lost of 98: 31 and 11 of 100, so 0.2 +- 1.96 sqrt((0.42 - 0.04) / 100)."""
    comparison = compare(*flips(30, 10, 98))
    half = 1.959963984540054 * 0.38**0.5 / 10
    assert comparison.interval == pytest.approx((0.2 - half, 0.2 + half), abs=1e-12)
    assert comparison.difference == pytest.approx(20 / 98)


def test_no_flip_seen_is_not_no_difference():
    low, high = compare(*flips(0, 0, 500)).interval
    assert low == -high
    assert 0.004 < high < 0.007
    assert compare(*flips(1, 0, 1)).interval[1] == 1.0


@pytest.mark.parametrize(("gain", "loss"), [(0.0, 0.0), (0.02, 0.02), (0.1, 0.05), (0.3, 0.1), (0.25, 0.25)])
def test_the_interval_holds_the_true_difference_as_often_as_it_says(gain, loss):
    """Over every outcome of 60 episodes, with its probability."""
    held = 0.0
    for gained in range(61):
        for lost in range(61 - gained):
            ways = math.comb(60, gained) * math.comb(60 - gained, lost)
            low, high = compare(*flips(gained, lost, 60)).interval
            if low <= gain - loss <= high:
                held += ways * gain**gained * loss**lost * (1 - gain - loss) ** (60 - gained - lost)
    assert held > 0.94
