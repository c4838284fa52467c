"""When to plan, and how a new chunk of actions follows the old one: one episode, without clock, thread or network.

Time is counted in ticks, the robot's control periods: at tick k the observation of k arrives, and the action of k
leaves. A plan asked for at tick k holds the actions of k - To + 1 to k + Tp - To, and arrives some ticks later: of
those it is joined at what comes then. Each chunk is good for n_action_steps actions from the tick at which it is
joined; that is the deadline of the next one. What the horizon holds beyond it bridges a delay.
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np

from visuomotor.config import check_choices, check_rules
from visuomotor.deployment.limits import Limiter
from visuomotor.errors import ConfigError, mismatch

Source = Literal["wait", "plan", "continue", "hold"]


class DeadlineMissed(RuntimeError):
    """With `late="stop"`: no new chunk is there, and the last usable action is gone. Nothing has been sent."""


@dataclass(frozen=True)
class RealtimeConfig:
    """How a policy acts in real time."""

    fps: float
    """Control periods a second: the rate of the demonstrations."""
    joining: Literal["switch", "blend", "rtc"] = "rtc"
    """How a chunk follows the one before: at once; faded over what both hold; or planned as its continuation (real-time
    chunking: what will have been executed is frozen, the rest is drawn towards the chunk before)."""
    late: Literal["hold", "continue", "stop"] = "continue"
    """After a missed deadline: repeat the last action, go on along the old chunk to its horizon's end and then hold, or
    raise `DeadlineMissed`."""
    latency_quantile: float = 0.95
    """Which of the last latencies is reckoned with, 0 to 1."""
    latency_window: int = 50
    """How many of them are remembered."""
    max_guidance: float = 100.0
    """Greatest weight of the pull towards the chunk before, for `rtc` (beta in the paper)."""
    plan_spread: float = 0.04
    """Deviation of plans for one observation, in normalised units, for `rtc`: the smaller, the stronger the pull."""

    def __post_init__(self) -> None:
        check_choices(self)
        guidance, spread = self.max_guidance, self.plan_spread
        check_rules(
            [
                (0 < self.fps < math.inf, "fps", "a positive number", self.fps, "give the rate of the demonstrations"),
                (0 <= self.latency_quantile <= 1, "latency_quantile", "0 to 1", self.latency_quantile, "use 0.95"),
                (self.latency_window >= 1, "latency_window", "1 or more", self.latency_window, "use 50"),
                (0 <= guidance < math.inf, "max_guidance", "0 or more", guidance, "use 100"),
                (0 < spread < math.inf, "plan_spread", "a positive number", spread, "use 0.04"),
            ]
        )


@dataclass(frozen=True)
class Prior:
    """What a new plan has to agree with, a row for each action of its horizon."""

    actions: np.ndarray
    """(Tp, Da) in data units: those executed, then those of the chunk before; 0 where there are none."""
    weights: np.ndarray
    """(Tp,) float32, 0 to 1: how much each counts."""
    frozen: np.ndarray
    """(Tp,) bool: those that have been executed, or will have been when the plan arrives."""


@dataclass(frozen=True)
class Request:
    """Plan now."""

    tick: int
    """Of the newest observation."""
    number: int
    """0, 1, 2, ... in this episode."""
    prior: Prior | None
    """For `rtc`; None for the first plan, and for other ways of joining."""


@dataclass(frozen=True)
class Sent:
    """What left at one tick."""

    action: np.ndarray | None
    """(Da,) in data units; None until the first plan is there: send nothing, the robot stays where it is."""
    source: Source
    """`plan`; `continue` or `hold` after a missed deadline; `wait` for the first plan."""
    joined: bool
    """Whether it is the first of a new chunk that follows another one."""


@dataclass
class Counts:
    """What has happened in an episode so far."""

    ticks: int = 0
    """Control periods."""
    waited: int = 0
    """... before the first plan."""
    joined: int = 0
    """Chunks put to use."""
    missed: int = 0
    """Deadlines missed: the next chunk was not there when the last usable action was gone."""
    late: int = 0
    """Control periods spent after such a deadline."""
    held: int = 0
    """... of them those in which the last action was repeated."""
    not_finite: int = 0
    """Plans with NaN or infinity in them, which were refused."""
    outdated: int = 0
    """Plans that came after their horizon's end."""
    overruns: int = 0
    """Control periods that passed without a call, because the caller's loop was too slow."""


class Latency:
    """How long the last plans took, and how long the next one is reckoned to take."""

    def __init__(self, quantile: float, window: int):
        self.quantile = quantile
        self.seconds: deque[float] = deque(maxlen=window)

    def estimate(self) -> float:
        """A high quantile of the last ones in seconds, one that has occurred; 0 before the first."""
        return float(np.quantile(self.seconds, self.quantile, method="higher")) if self.seconds else 0.0

    def median(self) -> float | None:
        """Of the last ones in seconds; None before the first."""
        return float(np.median(self.seconds)) if self.seconds else None


class Course:
    """The actions of one episode: says when to plan, joins what comes, and gives an action a tick.

    In every tick, in this order: `deliver` for a plan that has come, `request`, `deliver` again if that was computed in
    no time, `act`.

    Args:
        config: How to act.
        horizon: Tp, actions in a plan.
        n_obs_steps: To, observed steps.
        n_action_steps: Ta, actions for which a chunk is good.
        latency: Of an earlier episode, to go on with; None begins anew.
        limiter: What stands between plan and robot; None lets everything pass.
    """

    def __init__(
        self,
        config: RealtimeConfig,
        *,
        horizon: int,
        n_obs_steps: int,
        n_action_steps: int,
        latency: Latency | None = None,
        limiter: Limiter | None = None,
    ):
        self.config, self.horizon, self.n_action_steps = config, horizon, n_action_steps
        self.past = n_obs_steps - 1
        self.latency = latency or Latency(config.latency_quantile, config.latency_window)
        self.limiter = limiter
        self.tick = 0
        self.counts = Counts()
        self._requests = 0
        self._pending: Request | None = None
        self._sent: deque[np.ndarray] = deque(maxlen=max(1, self.past))
        self._actions: np.ndarray | None = None  # what is left of the present chunk from `_first` on
        self._first = self._deadline = 0
        self._joined = self._late = False

    def request(self) -> Request | None:
        """What to plan now, if anything: in time for the deadline, and never two at once."""
        if self._pending is not None or (self._actions is not None and self.tick < self._deadline - self._delay()):
            return None
        self._pending = Request(self.tick, self._requests, self._prior())
        self._requests += 1
        return self._pending

    def deliver(self, request: Request, plan: np.ndarray, seconds: float) -> bool:
        """Joins a plan (Tp, Da) in data units, which took so many seconds.

        Returns:
            Whether it is used: not if it holds anything but numbers, nor if all of its actions lie in the past. Then
            `request` asks for another.
        """
        self._pending = None
        self.latency.seconds.append(seconds)
        age = self.tick - request.tick
        new = plan[self.past + age :]
        if not np.isfinite(plan).all():
            self.counts.not_finite += 1
        elif not len(new):
            self.counts.outdated += 1
        else:
            self._join(new)
            return True
        return False

    def abandon(self) -> None:
        """The plan under way has failed: `request` asks for another."""
        self._pending = None

    def act(self) -> Sent:
        """The action of this tick; the next call is of the next one.

        Raises:
            DeadlineMissed: With `late="stop"`.
        """
        planned, source = self._planned()
        sent = Sent(None, source, False)
        if planned is not None:
            action = planned if self.limiter is None else self.limiter.apply(planned)
            sent = Sent(action.copy(), source, self._joined)  # the caller may write to it
            self._sent.append(action)
        self._joined = False
        self.tick += 1
        self.counts.ticks += 1
        return sent

    def correct(self, action: np.ndarray) -> None:
        """Says what the robot has made of the action sent last, (Da,): limits, and what is frozen, follow from that.

        Raises:
            ConfigError: It has another shape, or NaN or infinity in it: nothing that follows from that may be sent.
        """
        if not self._sent:
            return
        taken, shape = np.array(action), self._sent[-1].shape
        if taken.shape != shape or not np.isfinite(taken).all():
            advice = "pass what the robot really does, in the order of the action"
            raise ConfigError(mismatch("correct", f"{shape[0]} finite numbers", taken.tolist(), advice))
        self._sent[-1] = taken
        if self.limiter is not None:
            self.limiter.correct(taken)

    def skip(self, ticks: int) -> None:
        """Control periods that passed without a call: the robot was told nothing new."""
        self._sent.extend([self._sent[-1]] * ticks if self._sent else [])
        self.tick += ticks
        self.counts.ticks += ticks
        self.counts.overruns += ticks

    def _planned(self) -> tuple[np.ndarray | None, Source]:
        """What this tick is to send, before limits."""
        if self._actions is None:
            self.counts.waited += 1
            return None, "wait"
        place = self.tick - self._first
        if self.tick < self._deadline:
            return self._actions[place], "plan"
        self.counts.missed += not self._late
        self._late = True
        self.counts.late += 1
        if self.config.late == "stop":
            raise DeadlineMissed(
                f"late: expected a new chunk by tick {self._deadline}, got none at tick {self.tick}; "
                f"planning takes {self.latency.estimate():.3f} s: use fewer denoising steps, or late='continue'"
            )
        if self.config.late == "continue" and place < len(self._actions):
            return self._actions[place], "continue"
        self.counts.held += 1
        return self._sent[-1], "hold"

    def _join(self, new: np.ndarray) -> None:
        """`new` are the actions from this tick on."""
        if self._actions is not None and self.config.joining == "blend":
            old = self._ahead()[: len(new)]
            share = ((np.arange(len(old)) + 1) / (len(old) + 1)).astype(new.dtype)[:, None]
            new = np.concatenate([(1 - share) * old + share * new[: len(old)], new[len(old) :]])
        self._joined = self._actions is not None
        self._actions, self._first, self._late = new, self.tick, False
        self._deadline = self.tick + min(self.n_action_steps, len(new))
        self.counts.joined += 1

    def _ahead(self) -> np.ndarray:
        """What would be sent from this tick on if no other chunk came, as far as the present one reaches."""
        assert self._actions is not None
        ahead = self._actions[self.tick - self._first :]
        holding = self._late and self.config.late == "hold"
        return np.broadcast_to(self._sent[-1], ahead.shape) if holding else ahead

    def _delay(self) -> int:
        """Ticks that the next plan is reckoned to take."""
        return math.ceil(self.latency.estimate() * self.config.fps - 1e-6)  # 0.1 s at 10 Hz is 1 tick, not 2

    def _prior(self) -> Prior | None:
        if self.config.joining != "rtc" or self._actions is None:
            return None
        ahead, executed = self._ahead(), list(self._sent)[len(self._sent) - self.past :] if self.past else []
        # A chunk that holds after its deadline is not executed beyond it.
        usable = len(ahead) if self.config.late == "continue" or self._late else self._deadline - self.tick
        committed = max(0, min(self._delay(), usable))
        now, end = self.past, self.past + len(ahead)
        begin = now - len(executed)
        actions = np.zeros((self.horizon, ahead.shape[1]), np.float32)
        weights = np.zeros(self.horizon, np.float32)
        actions[begin:end] = np.reshape([*executed, *ahead], (-1, ahead.shape[1]))
        weights[begin:now] = 1
        weights[now:end] = soft_mask(committed, len(ahead))
        steps = np.arange(self.horizon)
        return Prior(actions, weights, (steps >= begin) & (steps < now + committed))


def soft_mask(committed: int, known: int) -> np.ndarray:
    """How much each action of the chunk before counts: 1 for those committed, then less and less (paper, equation 5).

    Args:
        committed: Actions that will have been executed when the new chunk is there.
        known: Actions of the chunk before from now on, `committed` or more.

    Returns:
        (known,) float32.
    """
    share = (known - np.arange(known)) / (known - committed + 1)
    decaying = share * np.expm1(share) / (math.e - 1)
    return np.where(np.arange(known) < committed, 1, decaying).astype(np.float32)
