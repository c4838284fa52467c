"""Position, speed and acceleration hold at once, against what was really sent; nothing but numbers passes."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visuomotor.deployment.limits import Limiter, Limits
from visuomotor.errors import ConfigError

FPS = 10
numbers = st.floats(-1000, 1000)
SLACK = 1e-6  # of rounding, in units of up to 1e5


@settings(deadline=None)
@given(
    st.lists(st.tuples(numbers, numbers), min_size=1, max_size=40),
    st.tuples(st.floats(-50, 50), st.floats(-50, 50)),
    st.floats(0.1, 1e4),
    st.floats(0.1, 1e5),
)
def test_all_limits_hold_at_once(aims, start, speed, acceleration):
    limiter = Limiter(Limits([-50, -50], [50, 50], speed, acceleration), FPS, 2, start)
    sent = [np.array(start), np.array(start)] + [limiter.apply(np.array(aim)) for aim in aims]
    velocities = np.diff(sent, axis=0) * FPS
    assert np.abs(sent).max() <= 50
    assert np.abs(velocities).max() <= speed + SLACK
    assert np.abs(np.diff(velocities, axis=0)).max() * FPS <= acceleration + SLACK * FPS


@settings(deadline=None)
@given(st.lists(numbers, min_size=1, max_size=20))
def test_without_limits_nothing_changes(aims):
    limiter = Limiter(Limits(), FPS, 1, [0.0])
    assert [limiter.apply(np.array([aim], np.float32))[0] for aim in aims] == [np.float32(aim) for aim in aims]
    assert not any(values.any() for values in limiter.clipped.values())


@pytest.mark.parametrize(
    ("limits", "sent", "clipped"),
    [
        (Limits(high=2), [2, 2, 2, -1, 2], "position"),
        (Limits(speed=10), [1, 2, 3, 2, 3], "speed"),
        # Gains 1 a tick and loses 1 a tick: it passes the aim of 3 rather than stop dead.
        (Limits(acceleration=100), [1, 3, 6, 8, 9], "acceleration"),
    ],
)
def test_each_limit_by_itself(limits, sent, clipped):
    limiter = Limiter(limits, FPS, 1, [0.0])
    assert [round(float(limiter.apply(np.array([aim]))[0]), 9) for aim in (9, 9, 9, -1, 9)] == sent
    assert {name for name, values in limiter.clipped.items() if values.any()} == {clipped}


def test_it_slows_down_before_the_end():
    """Gaining and losing 1 unit a tick a tick, 8 units away: it stops on the limit, not beyond it, and not before."""
    limiter = Limiter(Limits(high=8, acceleration=100), FPS, 1, [0.0])
    sent = [float(limiter.apply(np.array([99.0]))[0]) for _ in range(8)]
    # 1 and 2, and the 5 that are left in steps that lose 1 each: 8/3, 5/3, 2/3.
    assert sent == pytest.approx([1, 3, 17 / 3, 22 / 3, 8, 8, 8, 8])
    assert max(sent) <= 8
    assert np.abs(np.diff([0, 0, *sent], 2)).max() <= 1 + 1e-9
    assert np.all(np.diff(sent) >= -1e-9)


def test_counts_are_of_each_dimension():
    limiter = Limiter(Limits(low=[0, -np.inf], speed=[10, 20]), FPS, 2, [5.0, 0.0])
    for action in ([4.5, 1.0], [5.5, 3.0], [6.6, 9.0]):
        limiter.apply(np.array(action))
    assert limiter.clipped["speed"].tolist() == [1, 1]  # of 1.1 and of 6
    assert limiter.clipped["position"].tolist() == [0, 0]


def test_without_a_start_the_first_action_is_limited_in_position_alone():
    limiter = Limiter(Limits(high=50, speed=10, acceleration=100), FPS, 1)
    assert [float(limiter.apply(np.array([aim]))[0]) for aim in (99.0, 0.0, 0.0)] == [50, 49, 48]
    assert limiter.clipped["position"].tolist() == [1]


@pytest.mark.parametrize("wrong", [[math.nan, 1.0], [1.0, math.inf], [-math.inf, math.nan]])
def test_what_is_no_number_never_passes(wrong):
    limiter = Limiter(Limits(), FPS, 2, [3.0, 4.0])
    assert limiter.apply(np.array(wrong)).tolist() == [3, 4]
    assert limiter.not_finite == 1
    limiter = Limiter(Limits(), FPS, 2)
    with pytest.raises(ConfigError, match="action: expected finite numbers"):
        limiter.apply(np.array(wrong))


def test_what_is_no_number_slows_down_within_the_limits():
    limiter = Limiter(Limits(acceleration=100), FPS, 1, [0.0])
    moving = [float(limiter.apply(np.array([aim]))[0]) for aim in (9, 9, math.nan, math.nan, math.nan)]
    assert moving == pytest.approx([1, 3, 4, 4, 4])


def test_a_robot_found_outside_is_led_back_at_its_speed():
    limiter = Limiter(Limits(high=10, speed=10), FPS, 1, [12.0])
    assert [float(limiter.apply(np.array([aim]))[0]) for aim in (99.0, 5.0, 5.0, 5.0)] == [12, 11, 10, 9]


def test_the_robots_word_counts():
    limiter = Limiter(Limits(speed=10), FPS, 1, [0.0])
    limiter.apply(np.array([9.0]))
    limiter.correct([0.2])
    assert limiter.apply(np.array([9.0]))[0] == pytest.approx(1.2)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(low=[0, 0, 0]), "low: expected 2 numbers"),
        (Limits(high=math.nan), "high: expected 2 numbers"),
        (Limits(low=3, high=[2, 4]), r"low: expected at most \[2.0, 4.0\] \(high\), got \[3.0, 3.0\]"),
        (Limits(speed=0), "speed: expected positive numbers"),
        (Limits(acceleration=[1, -1]), "acceleration: expected positive numbers"),
    ],
)
def test_impossible_limits_are_refused(limits, message):
    with pytest.raises(ConfigError, match=message):
        Limiter(limits, FPS, 2)
