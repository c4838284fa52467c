"""The runner under both clocks: actions leave at their ticks while plans are made beside them."""

import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

import visuomotor
from visuomotor.deployment.joining import DeadlineMissed, RealtimeConfig
from visuomotor.deployment.limits import Limits
from visuomotor.deployment.realtime import Job, RealClock, RealtimeRunner, VirtualClock, Work
from visuomotor.errors import CheckpointError, ConfigError

from ..simulation.acting import pusht_config, random_policy

STATE = "observation.state"


class TickPolicy:
    """Observes the tick as its state, and plans the tick that each action is for."""

    def __init__(self, seconds: float = 0) -> None:
        self.config = pusht_config((STATE,))
        self.seconds = seconds
        self.threads: set[str] = set()
        self.windows: list[list[float]] = []
        self.error: Exception | None = None

    def plan(self, observation: dict[str, Tensor], noise: None = None, previous: None = None) -> Tensor:
        self.threads.add(threading.current_thread().name)
        self.windows.append(observation[STATE][0, :, 0].tolist())
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        steps = observation[STATE][:, -1:] + torch.arange(-1.0, 15)[None, :, None]
        return steps.expand(-1, 16, 2).clone()


def seen(tick: float) -> dict[str, np.ndarray]:
    return {STATE: np.full(2, tick, np.float32)}


def virtual(policy: object, latency: float, **changes: object) -> RealtimeRunner:
    """Ten ticks a second; every plan takes the same seconds."""
    config = RealtimeConfig(**({"fps": 10, "joining": "switch"} | changes))
    return RealtimeRunner(policy, config, clock=VirtualClock(lambda number: latency))  # ty: ignore[invalid-argument-type]


@pytest.mark.parametrize("warm_start", [1.0, 0.6])
def test_without_latency_it_acts_as_select_action_does(warm_start):
    policy = random_policy(num_inference_steps=5, warm_start=warm_start)
    generator = np.random.default_rng(0)
    shown = [
        {STATE: generator.uniform(0, 512, 2), "observation.environment_state": generator.uniform(0, 512, 16)}
        for _ in range(30)
    ]
    torch.manual_seed(0)
    expected = [
        policy.select_action({name: torch.from_numpy(value)[None] for name, value in one.items()}) for one in shown
    ]
    torch.manual_seed(0)
    runner = virtual(policy, 0)
    for one, action in zip(shown, expected, strict=True):
        np.testing.assert_array_equal(runner.step(one), action[0].numpy())
        runner.wait()
    assert runner.report().counts.missed == 0


@pytest.mark.parametrize(("latency", "first"), [(0, 0), (0.1, 1), (0.15, 2), (0.3, 3), (0.7, 7)])
def test_an_action_leaves_at_its_tick(latency, first):
    policy = TickPolicy()
    runner = virtual(policy, latency)
    sent = []
    for tick in range(60):
        sent.append(runner.step(seen(tick)))
        runner.wait()
    assert all(action is None for action in sent[:first])
    assert [action[0] for action in sent[first:]] == list(range(first, 60))
    report = runner.report()
    assert (report.counts.waited, report.counts.missed, report.counts.overruns) == (first, 0, 0)
    assert report.latency == report.latency_estimate == latency
    assert policy.windows[0] == [0, 0]  # the first observation stands for the past
    second = first + 8 - first  # eight actions of the first chunk, and as many ticks ahead as it takes
    assert policy.windows[1] == [second - 1, second]


def test_the_same_run_twice_is_the_same():
    runs = []
    for _ in range(2):
        drawn = np.random.default_rng(3)
        config = RealtimeConfig(fps=10)
        policy = random_policy((STATE,), num_inference_steps=4)
        torch.manual_seed(0)
        clock = VirtualClock(lambda number, drawn=drawn: float(drawn.uniform(0.1, 0.3)))
        runner = RealtimeRunner(policy, config, Limits(0, 512, 600, 4000), clock=clock)
        sent = []
        for tick in range(40):
            sent.append(runner.step(seen(10 * tick)))
            runner.wait()
        runs.append(np.array(sent[3:]))
        assert runner.report().clipped.keys() == {"position", "speed", "acceleration"}
    np.testing.assert_array_equal(*runs)
    assert np.abs(np.diff(runs[0], axis=0)).max() * 10 <= 600 + 1e-6
    assert np.abs(np.diff(runs[0], 2, axis=0)).max() * 100 <= 4000 + 1e-6


def test_frozen_actions_are_those_that_were_executed():
    policy = random_policy((STATE,), num_inference_steps=4)
    runner = virtual(policy, 0.3, joining="rtc")
    plans = []
    deliver = runner.course.deliver

    def note(request, actions, seconds):
        plans.append((request, actions))
        return deliver(request, actions, seconds)

    runner.course.deliver = note  # ty: ignore[invalid-assignment]
    sent = []
    for tick in range(40):
        sent.append(runner.step(seen(10 * tick)))
        runner.wait()
    assert len(plans) > 3
    for request, actions in plans[1:]:
        assert request.prior.frozen.sum() == 1 + 3  # the action before, and three until the plan is there
        executed = np.stack(sent[request.tick - 1 : request.tick + 3])
        assert np.all(np.abs(actions[:4] - executed) <= 1e-5 * np.maximum(1, np.abs(executed)))


def test_another_episode_begins_with_nothing_but_the_latency():
    policy = TickPolicy()
    runner = virtual(policy, 0.2)
    for tick in range(5):
        runner.step(seen(tick))
        runner.wait()
    runner.step(seen(5))  # a plan may be under way
    runner.reset()
    assert runner.step(seen(100)) is None
    assert policy.windows[-1] == [100, 100]
    assert runner.report().counts.ticks == 1 and runner.report().latency_estimate == 0.2


def test_preparing_measures_and_moves_nothing():
    policy = random_policy((STATE,))
    clock = VirtualClock(lambda number: [5.0, 3.0, 0.2, 0.1][number])
    runner = RealtimeRunner(policy, RealtimeConfig(fps=10), clock=clock)
    runner.prepare(seen(7))
    assert runner.report().latency_estimate == 0.2 and runner.report().counts.ticks == 0  # the slow ones are not kept


def test_periods_that_passed_without_a_call_are_left_out():
    clock = VirtualClock(lambda number: 0.0)
    runner = RealtimeRunner(TickPolicy(), RealtimeConfig(fps=10, joining="switch"), clock=clock)  # ty: ignore[invalid-argument-type]
    assert runner.step(seen(0))[0] == 0
    clock.wait_until(0.35)  # the caller took so long
    runner.wait()
    assert clock.now() == 0.35  # tick 3 is half over: its action leaves now, and the next at its own time
    assert runner.step(seen(3))[0] == 3 and runner.report().counts.overruns == 2
    runner.wait()
    assert clock.now() == pytest.approx(0.4) and runner.step(seen(4))[0] == 4


def test_a_missing_observation_is_told():
    with pytest.raises(CheckpointError, match=r"observation.state: expected an observation of that name"):
        virtual(TickPolicy(), 0).step({"state": np.zeros(2)})


def test_what_a_plan_sees_is_what_was_seen_when_it_was_asked_for():
    """However late its thread begins, and though the caller uses its buffers again."""
    policy, buffer = TickPolicy(), seen(0)
    config = RealtimeConfig(fps=10, joining="switch")
    runner = RealtimeRunner(policy, config, clock=BusyClock(lambda number: 0.2))  # ty: ignore[invalid-argument-type]
    sent = []
    for tick in range(14):
        buffer[STATE][:] = tick
        sent.append(runner.step(buffer))
        buffer[STATE][:] = 99
        runner.wait()
    assert policy.windows == [[0, 0], [7, 8]]
    assert [action[0] for action in sent[2:]] == list(range(2, 14))


class BusyClock(VirtualClock):
    """Plans at the last moment."""

    def begin(self, work: Work) -> Job:
        job = super().begin(lambda: np.zeros(0))
        return BusyJob(job, work)


@dataclass(frozen=True)
class BusyJob:
    job: Job
    work: Work

    def done(self) -> bool:
        return self.job.done()

    def result(self) -> tuple[np.ndarray, float]:
        return self.work(), self.job.result()[1]


def test_inference_runs_beside_a_real_clock():
    """However slow the machine: every action is the one for its tick, and no call waits for a plan."""
    policy, waits, held = TickPolicy(0.15), [], 0
    with RealtimeRunner(policy, RealtimeConfig(fps=20, joining="switch")) as runner:  # ty: ignore[invalid-argument-type]
        for _ in range(40):
            tick, began = runner.course.tick, time.perf_counter()
            action = runner.step(seen(tick))
            waits.append(time.perf_counter() - began)
            if action is not None and runner.report().counts.held == held:
                assert action[0] == tick
            held = runner.report().counts.held
            runner.wait()
        report = runner.report()
    assert report.counts.waited >= 3 and report.counts.joined >= 2
    assert 0.15 <= report.latency <= report.latency_estimate
    assert np.median(waits) < 0.05
    assert len(policy.threads) == 1 and threading.current_thread().name not in policy.threads


def test_what_goes_wrong_beside_is_raised():
    policy = TickPolicy()
    policy.error = ZeroDivisionError("in the policy")
    with (
        pytest.raises(ZeroDivisionError, match="in the policy"),
        RealtimeRunner(policy, RealtimeConfig(fps=50)) as runner,  # ty: ignore[invalid-argument-type]
    ):
        for tick in range(100):
            runner.step(seen(tick))
            runner.wait()


def test_after_an_error_in_the_policy_it_plans_again():
    """In the same episode, or in the next one."""
    policy = TickPolicy()
    policy.error = ZeroDivisionError("once")
    runner = virtual(policy, 0)
    runner.clock = BusyClock(lambda number: 0.0)
    with pytest.raises(ZeroDivisionError):
        runner.step(seen(0))
    policy.error = None
    assert runner.step(seen(0))[0] == 0

    runner.clock = BusyClock(lambda number: 0.1)
    runner.reset()
    policy.error = ZeroDivisionError("once more")
    runner.step(seen(0))  # its plan is under way
    with pytest.raises(ZeroDivisionError):
        runner.reset()
    policy.error = None
    runner.clock = VirtualClock(lambda number: 0.0)
    runner.reset()
    assert runner.step(seen(7))[0] == 7


def test_waiting_comes_after_a_step():
    runner = virtual(TickPolicy(), 0)
    runner.wait()
    assert runner.clock.now() == 0 and runner.step(seen(0))[0] == 0


@pytest.mark.parametrize("limits", [None, Limits(0, 512, 1000, 10_000)])
def test_what_the_caller_does_with_an_action_changes_nothing_here(limits):
    """Nor what it does with the array in which it told what the robot made of it."""
    sent = []
    for careless in (False, True):
        policy = random_policy((STATE,), num_inference_steps=2, warm_start=0.5)
        torch.manual_seed(0)
        clock = VirtualClock(lambda number: 0.2)
        runner = RealtimeRunner(policy, RealtimeConfig(fps=10), limits, clock=clock)
        taken, actions = np.zeros(2), []
        for tick in range(30):
            action = runner.step(seen(10 * tick))
            actions.append(None if action is None else action.copy())
            if action is not None:
                taken[:] = action
                runner.correct(taken)
                if careless:
                    action[:], taken[:] = -1, -2
            runner.wait()
        sent.append(np.stack([action for action in actions if action is not None]))
    np.testing.assert_array_equal(*sent)


@pytest.mark.parametrize("limits", [None, Limits(0, 512)])
@pytest.mark.parametrize("taken", [[np.nan, 1.0], [np.inf, 1.0], [1.0]])
def test_what_the_robot_made_of_an_action_has_to_be_numbers(limits, taken):
    runner = RealtimeRunner(
        TickPolicy(), RealtimeConfig(fps=10, joining="switch"), limits, clock=VirtualClock(lambda _: 0)
    )  # ty: ignore[invalid-argument-type]
    runner.correct(taken)  # nothing has been sent yet
    runner.step(seen(0))
    with pytest.raises(ConfigError, match="correct: expected 2 finite numbers, got "):
        runner.correct(taken)
    runner.wait()
    np.testing.assert_array_equal(runner.step(seen(1)), [1, 1])


def test_stop_is_raised_under_a_real_clock():
    policy = TickPolicy()
    with RealtimeRunner(policy, RealtimeConfig(fps=50, joining="switch", late="stop")) as runner:  # ty: ignore[invalid-argument-type]
        while runner.step(seen(runner.course.tick)) is None:
            runner.wait()
        policy.seconds = 0.8
        with pytest.raises(DeadlineMissed):
            for _ in range(100):
                runner.wait()
                runner.step(seen(runner.course.tick))
        assert runner.report().counts.missed == 1


def test_the_real_clock_waits():
    clock = RealClock()
    until = clock.now() + 0.05
    clock.wait_until(until)
    assert clock.now() >= until
    clock.close()


def test_the_public_names_are_these():
    assert visuomotor.RealtimeRunner is RealtimeRunner
    assert visuomotor.RealtimeConfig is RealtimeConfig and visuomotor.Limits is Limits
    assert visuomotor.DeadlineMissed is DeadlineMissed
