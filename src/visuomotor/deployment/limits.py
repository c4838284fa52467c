"""What stands between policy and robot: limits on position, speed and acceleration, and nothing but numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from visuomotor.errors import ConfigError, mismatch

Values = Sequence[float] | np.ndarray | float | None


@dataclass(frozen=True)
class Limits:
    """Limits of every action dimension, in the data's units; a single number holds for all, None is no limit."""

    low: Values = None
    """Least position."""
    high: Values = None
    """Greatest position."""
    speed: Values = None
    """Units a second, either way."""
    acceleration: Values = None
    """Units a second, a second, either way."""


class Limiter:
    """Changes actions no more than the limits ask for, and counts what it changes.

    Speed and acceleration are reckoned from what was sent before, one control period apart. Where a position limit
    comes near, the action slows down in time: all three limits hold at once. If the robot says (`correct`) that it has
    moved so fast towards a position limit that it cannot stop before it, position comes before acceleration.

    Args:
        limits: What to keep.
        fps: Control periods a second.
        size: Da, numbers in an action.
        start: Where the robot is, (Da,), at rest, in the actions' units. Without it the first action is limited in
            position alone, and counts as at rest.

    Attributes:
        clipped: Of each limit (Da,) how often an action would have broken it. An action that slows down before a
            position limit counts there.
        not_finite: Actions with NaN or infinity: the last action was the aim instead.

    Raises:
        ConfigError: A limit has another size, is not positive, or leaves no room.
    """

    def __init__(self, limits: Limits, fps: float, size: int, start: Sequence[float] | np.ndarray | None = None):
        self.period = 1 / fps
        self.low = _values("low", limits.low, size, -np.inf)
        self.high = _values("high", limits.high, size, np.inf)
        self.speed = _values("speed", limits.speed, size, np.inf)
        self.acceleration = _values("acceleration", limits.acceleration, size, np.inf)
        if (self.low > self.high).any():
            raise ConfigError(mismatch("low", f"at most {self.high.tolist()} (high)", self.low.tolist(), "swap them"))
        for name in ("speed", "acceleration"):
            if (getattr(self, name) <= 0).any():
                advice = "None is no limit"
                raise ConfigError(mismatch(name, "positive numbers", getattr(self, name).tolist(), advice))
        self.clipped = {name: np.zeros(size, int) for name in ("position", "speed", "acceleration")}
        self.not_finite = 0
        self._last = None if start is None else _values("start", start, size, 0.0)
        self._before = self._last

    def apply(self, action: np.ndarray) -> np.ndarray:
        """The nearest action that may be sent, (Da,); it counts as sent.

        Raises:
            ConfigError: The first action is not finite, and there is no `start`: nothing can be sent.
        """
        aim = np.asarray(action)
        if not np.isfinite(aim).all():
            self.not_finite += 1
            if self._last is None:
                raise ConfigError(mismatch("action", "finite numbers", aim.tolist(), "say where the robot is: start"))
            aim = self._last
        if self._last is None:
            self.clipped["position"] += (aim < self.low) | (aim > self.high)
            sent = np.clip(aim, self.low, self.high)
            self._before = sent
        else:
            sent = self._next(aim.astype(np.float64))
            self._before = self._last
        self._last = sent
        return sent

    def correct(self, action: Sequence[float] | np.ndarray) -> None:
        """What the robot has made of the last action, (Da,)."""
        self._last = np.array(action, np.float64)

    def _next(self, aim: np.ndarray) -> np.ndarray:
        last, before, period = self._last, self._before, self.period
        assert last is not None and before is not None
        change, gained = (last - before) / period, self.acceleration * period
        wanted = (aim - last) / period
        low, high = change - gained, change + gained
        outside = (aim < self.low) | (aim > self.high)
        too_fast, too_sudden = np.abs(wanted) > self.speed, (wanted < low) | (wanted > high)
        speed = np.clip(np.clip(wanted, low, high), -self.speed, self.speed)
        braked = np.clip(speed, -self._stoppable(last - self.low), self._stoppable(self.high - last))
        self.clipped["position"] += outside | (braked != speed)
        self.clipped["speed"] += too_fast
        self.clipped["acceleration"] += too_sudden
        sent = np.where(braked == wanted, aim, last + braked * period)
        inside = (last >= self.low) & (last <= self.high)  # not so where the robot started, or was found, outside
        return np.where(inside, np.clip(sent, self.low, self.high), sent)

    def _stoppable(self, gap: np.ndarray) -> np.ndarray:
        """The greatest speed towards a limit, so far away, from which one can still stop before it.

        Stopping from v takes v, v - a, v - 2 a, ... a period each, a being what one period takes off: with n periods
        under way, n v - a n (n - 1) / 2 of distance, for v from (n - 1) a to n a.
        """
        distance = np.maximum(gap, 0) / self.period
        loss = self.acceleration * self.period
        limited = np.isfinite(loss) & np.isfinite(distance)
        a, d = np.where(limited, loss, 1), np.where(limited, distance, 0)
        n = np.maximum(np.ceil((np.sqrt(1 + 8 * d / a) - 1) / 2), 1)
        return np.where(limited, d / n + a * (n - 1) / 2, distance)


def _values(name: str, given: Values, size: int, default: float) -> np.ndarray:
    """(Da,) float64."""
    values = np.asarray(default if given is None else given, np.float64)
    if values.ndim > 1 or (values.ndim == 1 and len(values) != size) or np.isnan(values).any():
        advice = "one number holds for all"
        raise ConfigError(mismatch(name, f"{size} numbers, one for each of the action's", values.tolist(), advice))
    return np.broadcast_to(values, (size,)).copy()
