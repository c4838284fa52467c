"""A rollout that is watched: what one tab of the browser shows, without the browser, clock or threads."""

import dataclasses
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from visuomotor.errors import ConfigError, mismatch
from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.serialization import from_json
from visuomotor.simulation.pusht import FPS, SUCCESS_COVERAGE
from visuomotor.studio.plans import Plans, make_plans
from visuomotor.studio.policies import Policies
from visuomotor.studio.settings import Hand, Settings
from visuomotor.studio.table import Table

Message = dict[str, Any]
"""What a page is told, as JSON takes it but for arrays; `type` says what it is about."""


class Episode:
    """One table, the policy's plan for it, and how well it goes.

    Attributes:
        table: The simulator.
        seed: Of the initial state and the noise.
        steps: Taken so far.
        coverage: Now.
        best: The best coverage so far.
        action: What the agent was last told, (2,); None before the first step.
    """

    def __init__(self, seed: int, observed: int):
        self.table, self.seed = Table(), seed
        self.states: deque[np.ndarray] = deque([self.table.reset(seed)] * observed, maxlen=observed)
        self.chunk: deque[np.ndarray] = deque()
        self.chunks = self.steps = 0
        self.coverage = self.best = self.table.coverage()
        self.action: np.ndarray | None = None

    @property
    def solved(self) -> bool:
        """Whether the block covers the goal now: the episode waits there until somebody moves the block."""
        return self.coverage > SUCCESS_COVERAGE and self.table.held is None

    def step(self) -> None:
        """Executes the next action of the plan."""
        self.action = self.chunk.popleft()
        state, self.coverage = self.table.step(self.action)
        self.states.append(state)
        self.steps += 1
        self.best = max(self.best, self.coverage)

    def touched(self) -> None:
        """Somebody has moved something: what is seen next is what is there now."""
        self.states[-1] = self.table.state()
        self.coverage = self.table.coverage()


class Session:
    """Episodes under way, in lock-step.

    Attributes:
        settings: How they are run.
        running: Whether they go on by themselves.
        episodes: The first one is the one that is looked at in detail.

    Args:
        policies: To choose from.
    """

    def __init__(self, policies: Policies):
        self._policies = policies
        self.settings = Settings()
        self.running = False
        self.episodes: list[Episode] = []
        self._policy: DiffusionPolicy | None = None

    @property
    def period(self) -> float:
        """Seconds from one step to the next; 0 is as fast as the machine can."""
        return 1 / (FPS * self.settings.speed) if self.settings.speed else 0.0

    @property
    def waiting(self) -> bool:
        """Whether `advance` has something to do."""
        return self.running and not self.over

    @property
    def over(self) -> bool:
        """Whether every episode is solved."""
        return all(episode.solved for episode in self.episodes)

    def handle(self, message: Mapping[str, Any]) -> Iterator[Message]:
        """Does what the page asks, and gives what it is to be told then.

        Raises:
            ConfigError: It asks for something that there is not.
            CheckpointError: The policy cannot be loaded.
        """
        kind, content = message.get("type"), {name: value for name, value in message.items() if name != "type"}
        if kind == "settings":
            yield from self._set(content)
        elif kind == "reset":
            yield from self._begin()
        elif kind in ("run", "pause"):
            self.running = kind == "run"
        elif kind == "step":
            self.running = False
            yield from self.advance()
            return
        elif kind == "hand":
            self._touch(from_json(Hand, content, "hand"))
        else:
            expected = "one of settings, reset, run, pause, step, hand"
            raise ConfigError(mismatch("type", expected, repr(kind), "load the page again"))
        yield self.frame()

    def advance(self) -> Iterator[Message]:
        """One step of a tenth of a second in every episode that is not solved; plans where one has no plan left."""
        policy = self._ready()
        under_way = [episode for episode in self.episodes if not episode.solved]
        if any(not episode.chunk for episode in under_way):
            yield from self._plan(policy)
        for episode in under_way:
            episode.step()
        yield self.frame()

    def frame(self) -> Message:
        """What is to be seen now."""
        episodes = [
            {
                "seed": episode.seed,
                "state": np.round(episode.table.state(), 3),
                "action": episode.action,
                "coverage": episode.coverage,
                "best": episode.best,
                "steps": episode.steps,
                "solved": episode.solved,
                "executed": self._executed - len(episode.chunk) if episode.chunks else 0,
            }
            for episode in self.episodes
        ]
        held = self.episodes[0].table.held if self.episodes else None
        return {"type": "frame", "running": self.running, "over": self.over, "held": held, "episodes": episodes}

    @property
    def _executed(self) -> int:
        return self._ready().config.n_action_steps

    def _set(self, content: Mapping[str, Any]) -> Iterator[Message]:
        settings = self.settings.changed(content)
        same = dataclasses.replace(self.settings, speed=settings.speed, futures=settings.futures) == settings
        if same and self._policy is not None:
            self.settings = settings
            yield self._told()
            return
        named = settings.policy or self._policies.names[0]
        policy = self._policies.open(named).with_sampler(
            settings.noise_scheduler_type, settings.num_inference_steps, settings.n_action_steps, warm_start=1.0
        )
        if policy.config.output_features["action"].shape != (2,):
            found = policy.config.output_features["action"].shape
            raise ConfigError(mismatch(f"{named}: action", (2,), found, "take a policy trained on Push-T"))
        self.settings, self._policy = dataclasses.replace(settings, policy=named), policy
        yield self._told()
        yield from self._begin()

    def _told(self) -> Message:
        """The settings in force, and what the policy is."""
        config = self._ready().config
        about = {
            "noise_scheduler_type": config.noise_scheduler_type,
            "num_inference_steps": config.num_inference_steps or config.num_train_timesteps,
            "n_action_steps": config.n_action_steps,
            "n_obs_steps": config.n_obs_steps,
            "horizon": config.horizon,
            "num_train_timesteps": config.num_train_timesteps,
            "observes": list(config.input_features),
            "cameras": list(config.image_features),
        }
        return {"type": "settings", **dataclasses.asdict(self.settings), "policy_config": about}

    def _begin(self) -> Iterator[Message]:
        policy, first = self._ready(), self.settings.seed
        observed = policy.config.n_obs_steps
        self.episodes = [Episode(first + number, observed) for number in range(self.settings.episodes)]
        yield {"type": "begin"}

    def _plan(self, policy: DiffusionPolicy) -> Iterator[Message]:
        """Plans for all, whether they need one or not: the shape of the batch stays, and with it every last bit."""
        now, executed = policy.config.n_obs_steps - 1, policy.config.n_action_steps
        states = np.array([episode.states for episode in self.episodes])
        seeds = [episode.seed for episode in self.episodes]
        chunks = [episode.chunks for episode in self.episodes]
        with self._policies.lock:
            plans = make_plans(policy, states, seeds, chunks, self.settings.futures - 1)
        for episode, actions in zip(self.episodes, plans.actions, strict=True):
            if not episode.solved and not episode.chunk:
                episode.chunk.extend(actions[now : now + executed])
                episode.chunks += 1
        yield self._plan_message(plans)

    def _plan_message(self, plans: Plans) -> Message:
        first = self.episodes[0]
        message: Message = {
            "type": "plan",
            "step": first.steps,
            "state": first.table.state(),
            "seconds": plans.seconds,
            "actions": plans.actions[0],
            "steps": plans.steps,
            "noisy": plans.noisy,
            "clean": plans.clean,
            "futures": plans.futures,
        }
        return message | {"views": {name: dataclasses.asdict(view) for name, view in plans.views.items()}}

    def _touch(self, hand: Hand) -> None:
        if len(self.episodes) != 1:
            raise ConfigError(mismatch("hand", "one episode", len(self.episodes), "look at one seed alone"))
        (episode,) = self.episodes
        table = episode.table
        if hand.do == "take":
            table.take(hand.thing, hand.x, hand.y)
        elif hand.do == "drag":
            table.drag(hand.x, hand.y)
        elif hand.do == "turn":
            table.turn(hand.angle)
        elif hand.do == "nudge":
            table.nudge(hand.thing, hand.x, hand.y)
        else:
            table.release()
        episode.touched()

    def _ready(self) -> DiffusionPolicy:
        if self._policy is None:
            raise ConfigError(mismatch("settings", "a policy to be chosen first", "none", "send settings first"))
        return self._policy
