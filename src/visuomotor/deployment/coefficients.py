"""A sampler as numbers: what it makes of noisy actions and the network's prediction at each step.

All samplers here do the same two things at a step: they estimate the clean actions as a weighted sum of x and the
prediction, and clip them; and they go on with a weighted sum of these, of the estimate before, and of fresh noise.
The weights come from the sampler's own code, run with symbols in the place of tensors.
"""

import copy
from typing import Any

from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.policy.samplers import sampler_of

Weights = dict[str, float]


class Sum:
    """A weighted sum of named arrays."""

    def __init__(self, terms: Weights, estimates: list[tuple[Weights, "Sum"]]):
        self.terms, self._estimates = terms, estimates

    def __add__(self, other: "Sum") -> "Sum":
        names = self.terms | other.terms
        return Sum({name: self.terms.get(name, 0.0) + other.terms.get(name, 0.0) for name in names}, self._estimates)

    def __mul__(self, factor: float) -> "Sum":
        return Sum({name: float(factor) * share for name, share in self.terms.items()}, self._estimates)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> "Sum":
        return self * (1 / divisor)

    def __sub__(self, other: "Sum") -> "Sum":
        return self + other * -1.0

    def clamp(self, low: float, high: float) -> "Sum":
        """Only estimates of the clean actions are clipped: this is one, and has a name from here on."""
        estimate = Sum({"clean": 1.0}, self._estimates)
        self._estimates.append((self.terms, estimate))
        return estimate


def sampler_steps(policy: DiffusionPolicy) -> list[dict[str, Weights]]:
    """For each denoising step `clean`, the weights of `x` and `prediction` in the estimate of the clean actions, and
    `next`, those of `x`, `prediction`, `clean` (clipped), `before` (`clean` of the step before) and `noise` (the draw
    after this step's number) in what the step ends with."""
    estimates: list[tuple[Weights, Sum]] = []
    ends: list[Weights] = []
    schedule: Any = copy.copy(policy.schedule)
    schedule.clip = 1.0  # so that every estimate passes through `clamp`; how far is clipped is for the user of this

    def predict(x: Any, step: float) -> Any:
        if estimates:  # the step before is over: what it made is this one's x
            ends.append(dict(x.terms))
            estimates[-1][1].terms = {"before": 1.0}
        x.terms = {"x": 1.0}
        return Sum({"prediction": 1.0}, estimates)

    noise: Any = [Sum({"noise": 1.0}, estimates) for _ in range(policy.noise_draws())]
    last: Any = sampler_of(policy.config)(predict, schedule, noise, policy.denoising_steps())
    ends.append(last.terms)
    zero = {"x": 0.0, "prediction": 0.0}
    return [
        {"clean": zero | estimate, "next": {name: share for name, share in end.items() if share}}
        for (estimate, _), end in zip(estimates, ends, strict=True)
    ]
