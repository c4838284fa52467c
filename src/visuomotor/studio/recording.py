"""An episode driven by hand: what one tab of the browser records, without the browser, clock or threads."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from visuomotor.config import STRICT, check_rules
from visuomotor.data.pusht_geometry import SIZE
from visuomotor.errors import ConfigError, mismatch
from visuomotor.serialization import from_json
from visuomotor.simulation.demonstrations import FIRST_SEED
from visuomotor.simulation.pusht import FPS
from visuomotor.simulation.rollout import Episode
from visuomotor.studio.recorder import Recorder
from visuomotor.studio.session import Message
from visuomotor.studio.settings import Hand
from visuomotor.studio.table import Table

LONGEST = 1200
"""Steps after which an episode takes no more, two minutes."""
LAST_SEED = 2**31 - 1


@dataclass(frozen=True)
class Beginning:
    """From where an episode begins."""

    __pydantic_config__ = STRICT

    seed: int | None = None
    """Decides the initial state. None takes the one behind as many as the data set has episodes, and behind all that
    were kept or discarded since the studio began."""

    def __post_init__(self) -> None:
        if self.seed is not None:
            expected, advice = f"{FIRST_SEED} to {LAST_SEED}", "seeds from 100000 on are for evaluation"
            check_rules([(FIRST_SEED <= self.seed <= LAST_SEED, "seed", expected, self.seed, advice)])


class Recording:
    """One episode at a time. The hand's place is the action; time runs while the hand has the agent and has moved it.

    Attributes:
        running: Whether time runs.
        episode: The one under way, or the one that waits to be kept, discarded or retried.
        period: Seconds from one step to the next.

    Args:
        recorder: Keeps episodes; taken with the first `begin`.
    """

    period = 1 / FPS

    def __init__(self, recorder: Recorder):
        self._recorder, self._table = recorder, Table()
        self._holds = False
        self._hand: tuple[float, float] | None = None
        self.running = False
        self.episode: Episode | None = None

    @property
    def waiting(self) -> bool:
        """Whether `advance` has something to do."""
        return self.running and not self.over

    @property
    def over(self) -> bool:
        """Whether the episode takes no more steps."""
        return self.episode is not None and (self.episode.success or self.episode.steps >= LONGEST)

    def handle(self, message: Mapping[str, Any]) -> Iterator[Message]:
        """Does what the page asks, and gives what it is to be told then.

        Raises:
            ConfigError: It asks for something that there is not.
            DatasetError: The data set cannot be recorded into.
        """
        kind, content = message.get("type"), {name: value for name, value in message.items() if name != "type"}
        if kind == "begin":
            yield from self._begin(from_json(Beginning, content, "begin").seed)
        elif kind == "hand":
            self._touch(from_json(Hand, content, "hand"))
        elif kind == "keep":
            yield from self._keep()
        elif kind == "discard":
            yield from self._begin(self._next())
        elif kind == "retry":
            yield from self._begin(self._ready().seed)
        else:
            expected = "one of begin, hand, keep, discard, retry"
            raise ConfigError(mismatch("type", expected, repr(kind), "load the page again"))
        yield self.frame()

    def advance(self) -> Iterator[Message]:
        """One step of a tenth of a second, towards the hand."""
        episode = self._ready()
        if self._hand is not None and not self.over:
            action = np.array(self._hand, np.float32)
            state, coverage = self._table.step(action)
            episode.states.append(state)
            episode.actions.append(action)
            episode.coverages.append(coverage)
        if self.over:
            self._let_go()
        yield self.frame()

    def frame(self) -> Message:
        """What is to be seen now."""
        episode = self.episode
        shown: Message = {"type": "frame", "running": self.running, "over": self.over, "episodes": []}
        shown["held"] = None if self._hand is None else "agent"
        if episode is not None:
            coverage = self._table.coverage()
            one: Message = {
                "seed": episode.seed,
                "state": np.round(episode.states[-1], 3),
                "action": episode.actions[-1] if episode.actions else None,
                "coverage": coverage,
                "best": max(episode.max_coverage, coverage),
                "steps": episode.steps,
                "solved": episode.success,
            }
            shown["episodes"] = [one]
        return shown

    def close(self) -> None:
        """Lets others record; the episode under way is lost."""
        if self._holds:
            self._recorder.release()
        self._holds = False

    def _begin(self, seed: int | None) -> Iterator[Message]:
        if not self._holds:
            self._recorder.hold()
            self._holds = True
            yield self._kept_so_far()
        self._let_go()
        if seed is None:
            seed = max(FIRST_SEED + self._recorder.episodes, self._recorder.next_seed)
        self.episode = Episode(seed, states=[self._table.reset(seed)])
        yield {"type": "begin", "seed": seed}

    def _keep(self) -> Iterator[Message]:
        episode = self._ready()
        if not episode.steps:
            raise ConfigError(mismatch("keep", "an episode that was driven", "none", "take the agent and push the T"))
        self._let_go()
        self._recorder.keep(episode)
        kept = {"episode": self._recorder.episodes - 1, "seed": episode.seed, "frames": episode.steps}
        yield {"type": "kept", **kept, "coverage": episode.coverages[-1], "solved": episode.success}
        yield self._kept_so_far()
        yield from self._begin(self._next())

    def _kept_so_far(self) -> Message:
        recorder = self._recorder
        return {
            "type": "recordings",
            "folder": str(recorder.folder),
            "name": recorder.name,
            "source": recorder.source,
            "episodes": recorder.episodes,
            "frames": recorder.frames,
        }

    def _next(self) -> int:
        seed = self._ready().seed
        following = seed + 1 if seed < LAST_SEED else FIRST_SEED
        self._recorder.next_seed = max(self._recorder.next_seed, following)
        return following

    def _touch(self, hand: Hand) -> None:
        self._ready()
        if hand.do == "release":
            self._let_go()
        elif hand.do not in ("take", "drag"):
            raise ConfigError(mismatch("hand", "take, drag or release", hand.do, "only the agent is moved here"))
        elif not self.over and (hand.do == "take" or self._hand is not None):
            x, y = (min(max(place, 0.0), SIZE) for place in (hand.x, hand.y))
            self._hand = (x, y)
            self.running = hand.do == "drag"

    def _let_go(self) -> None:
        self._hand, self.running = None, False

    def _ready(self) -> Episode:
        if self.episode is None:
            raise ConfigError(mismatch("begin", "an episode to begin first", "none", "send begin first"))
        return self.episode
