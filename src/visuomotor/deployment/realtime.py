"""A policy that acts at a fixed rate while it plans: observations in, actions out, inference beside it."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from visuomotor.deployment.guidance import plan
from visuomotor.deployment.joining import Counts, Course, Latency, Prior, RealtimeConfig, Request
from visuomotor.deployment.limits import Limiter, Limits
from visuomotor.errors import CheckpointError, mismatch
from visuomotor.policy.diffusion import DiffusionPolicy, moved_on

Work = Callable[[], np.ndarray]


class Job(Protocol):
    """A plan under way."""

    def done(self) -> bool:
        """Whether it is there."""
        ...

    def result(self) -> tuple[np.ndarray, float]:
        """Waits for it: the plan, and the seconds it took. Raises what went wrong."""
        ...


class Clock(Protocol):
    """Time, and what goes on beside it."""

    def now(self) -> float:
        """Seconds since some moment."""
        ...

    def wait_until(self, moment: float) -> None:
        """Returns at this moment, at once if it has passed."""
        ...

    def begin(self, work: Work) -> Job:
        """Starts to plan."""
        ...

    def close(self) -> None:
        """Ends what it has begun."""
        ...


class RealClock:
    """The time of day, and one thread that plans."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="visuomotor-plan")

    def now(self) -> float:
        return time.perf_counter()

    def wait_until(self, moment: float) -> None:
        while (left := moment - self.now()) > 0:
            time.sleep(left)

    def begin(self, work: Work) -> Job:
        began = self.now()

        def timed() -> tuple[np.ndarray, float]:
            found = work()
            return found, self.now() - began

        return self._thread.submit(timed)

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)


class VirtualClock:
    """Time that passes only in `wait_until`: the same every time, for tests and simulators.

    Args:
        latency: Seconds that the n-th plan takes, n from 0 on.
    """

    def __init__(self, latency: Callable[[int], float]):
        self.latency = latency
        self._now, self._begun = 0.0, 0

    def now(self) -> float:
        return self._now

    def wait_until(self, moment: float) -> None:
        self._now = max(self._now, moment)

    def begin(self, work: Work) -> Job:
        seconds = self.latency(self._begun)
        self._begun += 1
        return _VirtualJob(self, work(), seconds, self._now + seconds)

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class _VirtualJob:
    clock: VirtualClock
    plan: np.ndarray
    seconds: float
    due: float

    def done(self) -> bool:
        return self.clock.now() >= self.due - 1e-9  # rounding: 0.1 s after tick 2 at 10 Hz is tick 3

    def result(self) -> tuple[np.ndarray, float]:
        return self.plan, self.seconds


@dataclass(frozen=True)
class RealtimeReport:
    """What has happened in an episode so far."""

    counts: Counts
    """Ticks, chunks, missed deadlines and the like."""
    latency: float | None
    """Median of the last plans, in seconds."""
    latency_estimate: float
    """What the next one is reckoned to take, in seconds."""
    clipped: Mapping[str, Sequence[int]]
    """Of each limit, by action dimension, how many actions it changed; empty without limits."""


class RealtimeRunner:
    """Acts with a policy at a fixed rate, planning the next chunk beside it and joining it to the present one.

        with RealtimeRunner(policy, RealtimeConfig(fps=30), Limits(speed=90)) as runner:
            while robot.is_running():
                action = runner.step(robot.observe())
                if action is not None:
                    robot.move_to(action)
                runner.wait()

    Args:
        policy: What acts. Only one thread uses it, but not the one that calls: leave it alone meanwhile.
        config: How to act.
        limits: Of what is sent; None lets everything pass.
        start: Where the robot is, (Da,) in the actions' units: speed is then limited from the first action on.
        clock: None for the real one.

    Raises:
        ConfigError: A limit does not fit the policy's actions.
    """

    def __init__(
        self,
        policy: DiffusionPolicy,
        config: RealtimeConfig,
        limits: Limits | None = None,
        start: Sequence[float] | np.ndarray | None = None,
        clock: Clock | None = None,
    ):
        self.policy, self.config, self.limits = policy, config, limits
        self.clock: Clock = clock or RealClock()
        self._job: tuple[Request, Job] | None = None
        self._latency = Latency(config.latency_quantile, config.latency_window)
        self.reset(start)

    def __enter__(self) -> "RealtimeRunner":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits for a plan under way and ends the thread."""
        self.clock.close()

    def reset(self, start: Sequence[float] | np.ndarray | None = None) -> None:
        """Begins another episode; what plans have taken so far is remembered. Raises what a plan under way raises."""
        job, self._job = self._job, None
        if job is not None:
            job[1].result()  # one thread, one plan: the next would wait for it in any case
        policy = self.policy.config
        size = policy.output_features["action"].shape[0]
        self._limiter = None if self.limits is None else Limiter(self.limits, self.config.fps, size, start)
        self.course = Course(
            self.config,
            horizon=policy.horizon,
            n_obs_steps=policy.n_obs_steps,
            n_action_steps=policy.n_action_steps,
            latency=self._latency,
            limiter=self._limiter,
        )
        self._observations: deque[dict[str, Tensor]] = deque(maxlen=policy.n_obs_steps)
        self._last: tuple[int, Tensor] | None = None  # tick and plan, for a warm start
        self._began: float | None = None

    def prepare(self, observation: Mapping[str, Any]) -> None:
        """Plans twice before anything moves: the first plan of a process is slow, the second is what to reckon with.

        Args:
            observation: As for `step`; nothing of it is kept.
        """
        shown = self._tensors(observation)
        window = deque([shown] * self.policy.config.n_obs_steps)
        first = self.clock.begin(lambda: self._plan(window, None)).result()[0]
        prior = None
        if self.config.joining == "rtc":  # guided plans take longer
            rows = len(first)
            prior = Prior(first, np.ones(rows, np.float32), np.zeros(rows, bool))
            self.clock.begin(lambda: self._plan(window, prior)).result()
        _, seconds = self.clock.begin(lambda: self._plan(window, prior)).result()
        self._latency.seconds.append(seconds)

    def step(self, observation: Mapping[str, Any]) -> np.ndarray | None:
        """Once a control period: what the robot sees now, and what it is to do now. Does not wait for a plan.

        Args:
            observation: The present step only, tensors or arrays: images (C, H, W), states (D,), in data units.

        Returns:
            (Da,) in data units, always finite; None while the first plan is awaited.

        Raises:
            CheckpointError: An observation is missing.
            DeadlineMissed: With `late="stop"`.
            Exception: What the policy raised while it planned. The next call plans anew.
        """
        if self._began is None:
            self._began = self.clock.now()
        shown = self._tensors(observation)
        self._observations.extend([shown] * (1 if self._observations else self.policy.config.n_obs_steps))
        self._collect()
        request = self.course.request()
        if request is not None:
            window = self._observations.copy()
            previous = None
            if self._last is not None and self.policy.config.warm_start < 1:
                tick, actions = self._last
                previous = moved_on(actions, min(request.tick - tick, self.policy.config.horizon))
            self._job = request, self.clock.begin(lambda: self._plan(window, request.prior, previous))
            self._collect()  # under a virtual clock it may be there already
        return self.course.act().action

    def correct(self, action: Sequence[float] | np.ndarray) -> None:
        """Says what the robot has made of the last action, (Da,), where it limits actions itself.

        Raises:
            ConfigError: It has another shape, or NaN or infinity in it.
        """
        self.course.correct(np.asarray(action))

    def wait(self) -> None:
        """Waits for the next control period; periods that have passed by then are counted as overruns.

        Before the first `step` of an episode it returns at once: that step begins the first period.
        """
        if self._began is None:
            return
        period = 1 / self.config.fps
        behind = self.clock.now() - (self._began + self.course.tick * period)
        if behind >= period:
            self.course.skip(int(behind / period))
        self.clock.wait_until(self._began + self.course.tick * period)

    def report(self) -> RealtimeReport:
        """What has happened in this episode so far."""
        clipped = {} if self._limiter is None else self._limiter.clipped
        listed = {name: values.tolist() for name, values in clipped.items()}
        return RealtimeReport(self.course.counts, self._latency.median(), self._latency.estimate(), listed)

    def _collect(self) -> None:
        if self._job is not None and self._job[1].done():
            request, job = self._job
            self._job = None
            try:
                actions, seconds = job.result()
            except BaseException:
                self.course.abandon()
                raise
            if self.course.deliver(request, actions, seconds):
                self._last = request.tick, torch.from_numpy(actions)[None]

    def _plan(
        self, window: deque[dict[str, Tensor]], prior: Prior | None, previous: Tensor | None = None
    ) -> np.ndarray:
        stacked = {name: torch.stack([shown[name] for shown in window])[None] for name in window[0]}
        return plan(self.policy, stacked, [prior], self.config, previous=previous)[0]

    def _tensors(self, observation: Mapping[str, Any]) -> dict[str, Tensor]:
        """Copies of what the policy looks at: the caller may use its buffers again."""
        for name in self.policy.config.input_features:
            if name not in observation:
                found, advice = sorted(observation), "rename it or add it"
                raise CheckpointError(mismatch(name, "an observation of that name", found, advice))
        return {name: torch.as_tensor(observation[name]).detach().clone() for name in self.policy.config.input_features}
