"""A course under a clock of ticks, with plans whose actions say which plan and which tick they are for."""

from collections.abc import Callable

import numpy as np

from visuomotor.deployment.joining import Course, RealtimeConfig, Request, Sent
from visuomotor.deployment.limits import Limiter

SIZES = {"horizon": 8, "n_obs_steps": 2, "n_action_steps": 3}  # actions of t - 1 to t + 6, three of them used


def config(**changes: object) -> RealtimeConfig:
    """Ten ticks a second, plain switching."""
    return RealtimeConfig(**({"fps": 10, "joining": "switch"} | changes))


def numbered(request: Request) -> np.ndarray:
    """(8, 1): 1000 for each plan before, plus the tick that the action is for."""
    return (1000 * request.number + request.tick - 1 + np.arange(8.0))[:, None]


class Drive:
    """Runs a course for some ticks; the n-th plan takes `latencies[n]` ticks, the last of them again and again."""

    def __init__(
        self,
        latencies: list[float],
        plan: Callable[[Request], np.ndarray] = numbered,
        limiter: Limiter | None = None,
        **changes: object,
    ):
        self.course = Course(config(**changes), **SIZES, limiter=limiter)
        self.latencies, self.plan = latencies, plan
        self.requests: list[Request] = []
        self.sent: list[Sent] = []
        self._coming: tuple[float, Request, float] | None = None

    def run(self, ticks: int) -> "Drive":
        for _ in range(ticks):
            self._collect()
            request = self.course.request()
            if request is not None:
                assert self._coming is None, "two plans at once"
                ticks_taken = self.latencies[min(len(self.requests), len(self.latencies) - 1)]
                self.requests.append(request)
                self._coming = request.tick + ticks_taken, request, ticks_taken / 10
                self._collect()
            self.sent.append(self.course.act())
        return self

    def _collect(self) -> None:
        if self._coming is not None and self._coming[0] <= self.course.tick + 1e-9:
            _, request, seconds = self._coming
            self._coming = None
            self.course.deliver(request, self.plan(request), seconds)

    @property
    def values(self) -> list[float | None]:
        """What left, a number a tick."""
        return [None if sent.action is None else float(sent.action[0]) for sent in self.sent]

    @property
    def sources(self) -> str:
        """The first letters of where it came from."""
        return "".join(sent.source[0] for sent in self.sent)

    @property
    def asked(self) -> list[int]:
        """Ticks of the requests."""
        return [request.tick for request in self.requests]
