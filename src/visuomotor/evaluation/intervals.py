"""How far a measured success rate can be trusted, and whether two policies differ."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from visuomotor.errors import ConfigError, mismatch


def wilson_interval(successes: int, episodes: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of success rates under which the count is not surprising (Wilson 1927).

    Unlike the mean plus and minus 1.96 standard errors it stays inside [0, 1] and is right for few episodes.

    Args:
        successes: 0 to `episodes`.
        episodes: 1 or more.
        confidence: How often the interval holds the true rate.

    Returns:
        Its ends.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rate = successes / episodes
    scale = 1 + z**2 / episodes
    centre = (rate + z**2 / (2 * episodes)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / episodes + z**2 / (4 * episodes**2))
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class Comparison:
    """Two evaluations of the same seeds."""

    gained: list[int]
    """Seeds that only the second policy solved."""
    lost: list[int]
    """Seeds that only the first policy solved."""
    difference: float
    """Second success rate minus the first."""
    interval: tuple[float, float]
    """Of the difference, 95 % (Bonett and Price 2012, for paired outcomes)."""
    p_value: float
    """How often equally good policies would differ this much or more (McNemar's exact test)."""


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> Comparison:
    """Compares two contents of `eval.json`, seed by seed.

    The same seeds start from the same states, so only those that flipped speak for either policy; this tells
    policies apart with fewer episodes than two intervals do.

    Raises:
        ConfigError: The evaluations are of different seeds.
    """
    before, after = ({episode["seed"]: episode["success"] for episode in one["episodes"]} for one in (first, second))
    if before.keys() != after.keys():
        found = f"{len(before.keys() ^ after.keys())} seeds in only one of them"
        raise ConfigError(mismatch("episodes", "the same seeds in both", found, "evaluate with one --seed, --episodes"))
    gained = [seed for seed in before if after[seed] and not before[seed]]
    lost = [seed for seed in before if before[seed] and not after[seed]]
    flips = len(gained) + len(lost)
    tail = sum(math.comb(flips, k) for k in range(min(len(gained), len(lost)) + 1)) / 2**flips
    difference = (len(gained) - len(lost)) / len(before)
    interval = _paired_interval(len(gained), len(lost), len(before))
    return Comparison(gained, lost, difference, interval, min(1.0, 2 * tail))


def _paired_interval(gained: int, lost: int, episodes: int) -> tuple[float, float]:
    """One more flip in each direction keeps it honest where few or none were seen (Bonett and Price's adjustment)."""
    gain, loss = (gained + 1) / (episodes + 2), (lost + 1) / (episodes + 2)
    half = NormalDist().inv_cdf(0.975) * math.sqrt((gain + loss - (gain - loss) ** 2) / (episodes + 2))
    return max(-1.0, gain - loss - half), min(1.0, gain - loss + half)
