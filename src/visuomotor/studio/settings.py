"""What a page may ask of a rollout: its settings and what a hand does, checked before anything happens."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from visuomotor.config import STRICT, check_rules
from visuomotor.errors import ConfigError, mismatch
from visuomotor.serialization import from_json
from visuomotor.studio.table import Thing

SPEEDS = (0.25, 0.5, 1.0, 2.0, 0.0)
MOST_SEEDS = 25
MOST_FUTURES = 32


@dataclass(frozen=True)
class Settings:
    """How a rollout is run. A policy's own choice holds where nothing is said."""

    __pydantic_config__ = STRICT

    policy: str = ""
    """Name of one of the policies that the studio was started with; empty is the first."""
    seed: int = 0
    """Decides the initial state and the noise; of several episodes the first one's."""
    episodes: int = 1
    """Episodes side by side, from seeds one after the other."""
    noise_scheduler_type: str | None = None
    """The sampler."""
    num_inference_steps: int | None = None
    """Denoising steps."""
    n_action_steps: int | None = None
    """Executed actions of each plan."""
    futures: int = 1
    """Plans drawn from the same observation, each from other noise; the first is executed."""
    speed: float = 1.0
    """Times real time, 10 steps a second; 0 goes as fast as the machine can."""

    def __post_init__(self) -> None:
        check_rules(
            [
                (0 <= self.seed < 2**32, "seed", "0 to 4294967295", self.seed, "choose another"),
                (1 <= self.episodes <= MOST_SEEDS, "episodes", f"1 to {MOST_SEEDS}", self.episodes, "take fewer"),
                (1 <= self.futures <= MOST_FUTURES, "futures", f"1 to {MOST_FUTURES}", self.futures, "take fewer"),
                (self.speed in SPEEDS, "speed", f"one of {SPEEDS}", self.speed, "1 is real time"),
            ]
        )

    def changed(self, content: Mapping[str, Any]) -> "Settings":
        """The same with some fields from plain JSON values.

        Raises:
            ConfigError: A field is unknown, of a wrong type, or out of range.
        """
        return from_json(Settings, dataclasses.asdict(self) | dict(content), "settings")


@dataclass(frozen=True)
class Hand:
    """What a hand does on the table."""

    __pydantic_config__ = STRICT

    do: Literal["take", "drag", "release", "turn", "nudge"]
    """`take` at (x, y), `drag` to (x, y), `turn` by `angle`, `nudge` by (x, y), or `release`."""
    thing: Thing = "block"
    """What is taken or nudged."""
    x: float = 0.0
    """Pixels of the table, as y."""
    y: float = 0.0
    angle: float = 0.0
    """Radians."""

    def __post_init__(self) -> None:
        for name, value, most in (("x", self.x, 10_000), ("y", self.y, 10_000), ("angle", self.angle, 10)):
            if not math.isfinite(value) or abs(value) > most:
                raise ConfigError(mismatch(f"hand: {name}", f"-{most} to {most}", value, "stay near the table"))
