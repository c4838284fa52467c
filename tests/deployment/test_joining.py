"""Which action leaves at which tick, when a plan is asked for, and what happens when it is late."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visuomotor.deployment.joining import DeadlineMissed, Latency, RealtimeConfig, soft_mask
from visuomotor.deployment.limits import Limiter, Limits
from visuomotor.errors import ConfigError

from .courses import Drive, numbered


def test_without_latency_chunks_follow_each_other():
    drive = Drive([0]).run(9)
    assert drive.values == [0, 1, 2, 1003, 1004, 1005, 2006, 2007, 2008]
    assert drive.asked == [0, 3, 6]
    assert [sent.joined for sent in drive.sent] == [False] * 3 + [True, False, False] * 2


def test_a_plan_is_asked_for_in_time_and_joined_where_it_belongs():
    drive = Drive([2]).run(12)
    assert drive.sources == "wwpppppppppp"
    # Asked for at ticks 0, 3, 6, 9, and there two ticks later; each is good for three actions.
    assert drive.asked == [0, 3, 6, 9]
    assert drive.values == [None, None, 2, 3, 4, 1005, 1006, 1007, 2008, 2009, 2010, 3011]
    assert drive.course.counts.waited == 2 and drive.course.counts.missed == 0


@pytest.mark.parametrize(("ticks", "first"), [(1, 1), (1.001, 2), (0.5, 1), (1.999, 2)])
def test_a_part_of_a_tick_counts_as_a_whole_one(ticks, first):
    drive = Drive([ticks]).run(8)
    assert drive.values[first] == first and drive.values[first - 1] is None
    assert drive.asked[1] == 3  # `first` ticks before the deadline at first + 3


def test_a_plan_that_is_early_is_used_at_once():
    drive = Drive([2, 1, 2]).run(8)
    assert drive.asked[:3] == [0, 3, 5]  # the third again two ticks before the deadline, which is now at 7
    assert drive.values == [None, None, 2, 3, 1004, 1005, 1006, 2007]


@pytest.mark.parametrize(
    ("late", "sources", "values"),
    [
        ("continue", "wpppcccp", [None, 1, 2, 3, 4, 5, 6, 1007]),
        ("hold", "wppphhhp", [None, 1, 2, 3, 3, 3, 3, 1007]),
    ],
)
def test_after_a_missed_deadline(late, sources, values):
    drive = Drive([1, 4], late=late).run(8)
    assert (drive.sources, drive.values) == (sources, values)
    counts = drive.course.counts
    assert (counts.missed, counts.late, counts.held) == (1, 3, 3 if late == "hold" else 0)


def test_beyond_the_horizon_the_last_action_is_repeated():
    drive = Drive([1, 6], late="continue").run(10)
    assert drive.sources == "wpppccchhp"
    assert drive.values == [None, 1, 2, 3, 4, 5, 6, 6, 6, 1009]
    assert (drive.course.counts.missed, drive.course.counts.late, drive.course.counts.held) == (1, 5, 2)


def test_stop_raises_and_sends_nothing():
    drive = Drive([1, 6], late="stop").run(4)
    for _ in range(2):
        with pytest.raises(DeadlineMissed, match="expected a new chunk by tick 4, got none at tick 4"):
            drive.course.act()
    assert (len(drive.sent), drive.course.counts.missed) == (4, 1)


def test_a_plan_older_than_its_horizon_is_not_used():
    drive = Drive([1, 7, 1]).run(13)
    assert drive.course.counts.outdated == 1
    assert drive.asked[:3] == [0, 3, 10]
    assert drive.values[10:12] == [6, 2011]


def test_no_more_than_the_horizon_is_used_of_a_chunk():
    drive = Drive([5]).run(12)  # of seven actions, the five first are over: two are left, not three
    assert drive.values[5:7] == [5, 6]
    assert drive.sources == "wwwwwpphhhpp" and drive.course.counts.missed == 1


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_plan_that_is_not_finite_is_refused(wrong):
    def plan(request):
        actions = numbered(request)
        if request.number in (1, 2):
            actions[5] = wrong
        return actions

    drive = Drive([1], plan).run(9)
    assert drive.course.counts.not_finite == 2
    assert drive.asked == [0, 3, 4, 5, 8]  # as soon as one is refused another is asked for
    assert drive.values == [None, 1, 2, 3, 4, 5, 3006, 3007, 3008]
    assert drive.course.counts.missed == 1


def test_a_policy_that_gives_nothing_finite_never_reaches_the_robot():
    drive = Drive([1], lambda request: np.full((8, 1), np.nan)).run(20)
    assert drive.sources == "w" * 20 and drive.course.counts.not_finite == 19


@settings(deadline=None)
@given(
    st.lists(st.floats(0, 9), min_size=1, max_size=12),
    st.sampled_from(["switch", "rtc"]),
    st.sampled_from(["continue", "hold"]),
)
def test_every_action_is_the_one_for_its_tick(latencies, joining, late):
    drive = Drive(latencies, joining=joining, late=late).run(60)
    previous = None
    for tick, (value, sent) in enumerate(zip(drive.values, drive.sent, strict=True)):
        if sent.source in ("plan", "continue"):
            assert value % 1000 == tick
        elif sent.source == "hold":
            assert value == previous
        previous = value
    counts = drive.course.counts
    assert counts.ticks == 60 and counts.waited == drive.sources.count("w")
    assert counts.late == drive.sources.count("c") + drive.sources.count("h")
    assert counts.joined >= sum(sent.joined for sent in drive.sent)  # two in one tick if one of them comes late


def test_blending_fades_over_all_that_both_chunks_hold():
    def level(request):
        return np.full((8, 1), 60.0 * request.number)

    drive = Drive([0], level, joining="blend").run(10)
    # The old chunk reaches to tick 6, four ticks from tick 3 on: a fifth more of the new one in each.
    first = [12.0, 24.0, 36.0]
    # What is left of that at tick 6, 48 and then all of the new chunk, fades to the next in turn.
    second = [48 + (120 - 48) / 5, 60 + 60 * 2 / 5, 60 + 60 * 3 / 5]
    assert drive.values[:9] == pytest.approx([0, 0, 0, *first, *second])


def test_after_holding_blending_begins_at_what_was_held():
    drive = Drive([1, 3], joining="blend", late="hold").run(7)
    assert drive.values[3:6] == [3, 3, 3]
    assert drive.values[6] == pytest.approx(3 / 2 + 1006 / 2)  # one tick is left of the old horizon


def test_soft_mask_is_the_papers():
    """Equation 5: H = 8 actions, d = 2 committed, s = 3 executed, so that H - s = 5 of the old chunk are left."""
    shares = [(5 - i) / (5 - 2 + 1) for i in (2, 3, 4)]
    expected = [1, 1, *(c * (math.exp(c) - 1) / (math.e - 1) for c in shares)]
    np.testing.assert_allclose(soft_mask(2, 5), expected, rtol=1e-6)
    np.testing.assert_array_equal(soft_mask(3, 3), 1)
    assert len(soft_mask(0, 0)) == 0


def test_the_prior_holds_what_was_and_will_be_executed():
    drive = Drive([2], joining="rtc").run(5)
    assert drive.requests[0].prior is None
    prior = drive.requests[1].prior  # asked for at tick 3, reckoned to be there at tick 5
    assert prior is not None
    # The horizon is of ticks 2 to 9; the old chunk reaches to tick 6.
    np.testing.assert_array_equal(prior.actions[:, 0], [2, 3, 4, 5, 6, 0, 0, 0])
    np.testing.assert_array_equal(prior.frozen, [True, True, True, False, False, False, False, False])
    np.testing.assert_allclose(prior.weights, [1, *soft_mask(2, 4), 0, 0, 0])


def test_at_the_second_tick_there_is_no_past_to_freeze():
    drive = Drive([3, 1, 3], joining="rtc", latency_quantile=1.0).run(4)
    prior = drive.requests[1].prior  # asked for at tick 3, in the tick in which the first action leaves
    assert prior is not None and drive.asked[1] == 3
    np.testing.assert_array_equal(prior.frozen, [False, True, True, True, False, False, False, False])
    assert prior.weights[0] == 0


def test_a_chunk_that_will_be_held_is_frozen_up_to_its_deadline():
    frozen = {}
    for late in ("hold", "continue"):
        drive = Drive([1, 1, 5, 1], joining="rtc", late=late, latency_quantile=1.0).run(30)
        prior = drive.requests[4].prior  # when five ticks are reckoned with, and the deadline is in three
        assert prior is not None
        frozen[late] = int(prior.frozen.sum())
    assert frozen == {"hold": 1 + 3, "continue": 1 + 5}


def test_the_latency_reckoned_with_has_occurred():
    latency = Latency(0.95, 50)
    assert latency.estimate() == 0 and latency.median() is None
    latency.seconds.extend([0.1] * 49 + [0.4])
    assert latency.estimate() == 0.1
    latency.seconds.extend([0.4] * 2)
    assert latency.estimate() == 0.4 and latency.median() == 0.1 and len(latency.seconds) == 50


def test_limits_follow_from_what_was_really_sent():
    drive = Drive([0], lambda request: np.full((8, 1), 10.0), Limiter(Limits(speed=10), 10, 1, [0.0])).run(2)
    assert drive.values == [1, 2]
    drive.course.correct(np.array([1.5]))
    assert drive.run(1).values == [1, 2, 2.5]


def test_what_the_robot_made_of_an_action_is_what_was_executed():
    drive = Drive([0], joining="rtc").run(3)
    drive.course.correct(np.array([7.0]))
    drive.run(1)
    prior = drive.requests[1].prior
    assert prior is not None and prior.actions[0, 0] == 7


def test_ticks_without_a_call_are_counted_and_left_out():
    drive = Drive([0]).run(1)
    drive.course.skip(4)
    assert drive.run(2).values == [0, 1005, 1006]
    assert (drive.course.counts.overruns, drive.course.counts.ticks) == (4, 7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fps": 0}, "fps: expected a positive number, got 0"),
        ({"joining": "blnd"}, "did you mean blend?"),
        ({"late": "halt"}, "late: expected one of"),
        ({"latency_quantile": 95}, "latency_quantile: expected 0 to 1, got 95"),
        ({"latency_window": 0}, "latency_window: expected 1 or more"),
        ({"max_guidance": math.inf}, "max_guidance: expected 0 or more, got inf"),
        ({"plan_spread": 0}, "plan_spread: expected a positive number"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        RealtimeConfig(**({"fps": 10} | changes))
