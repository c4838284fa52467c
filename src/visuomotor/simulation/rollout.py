"""Many episodes of Push-T at once, with one batched call of the policy a chunk of actions.

What happens in an episode depends on its own seed only, not on how many others run beside it or in which order: the
initial state is gym-pusht's for that seed, the noise is drawn from (seed, number of the chunk), and the policy always
sees one shape of batch, because the order in which a processor sums may change with the shape.
"""

import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, cast

import numpy as np
import torch

from visuomotor.config import DiffusionConfig
from visuomotor.errors import CheckpointError, ConfigError, mismatch
from visuomotor.policy.diffusion import moved_on
from visuomotor.simulation.pusht import MAX_STEPS, SUCCESS_COVERAGE, PushT, observe

SECONDS_BETWEEN_LINES = 30


class ChunkPolicy(Protocol):
    """What a policy has to offer; `visuomotor.DiffusionPolicy` does."""

    @property
    def config(self) -> DiffusionConfig: ...

    def noise_draws(self) -> int: ...

    def predict_action_chunk(self, observation: dict[str, torch.Tensor], noise: torch.Tensor) -> torch.Tensor: ...


class WarmPolicy(ChunkPolicy, Protocol):
    """... and if its config asks for a warm start."""

    def plan(
        self, observation: dict[str, torch.Tensor], noise: torch.Tensor, *, previous: torch.Tensor | None
    ) -> torch.Tensor: ...


@dataclass
class Episode:
    """What happened from one seed."""

    seed: int
    """Decides the initial state and the noise."""
    states: list[np.ndarray] = field(default_factory=list)
    """Steps + 1 states (5,) float64: before every action, and after the last."""
    actions: list[np.ndarray] = field(default_factory=list)
    """An action (2,) float32 for each step."""
    coverages: list[float] = field(default_factory=list)
    """The share of the goal covered after each action."""
    chunk_starts: list[int] = field(default_factory=list)
    """Steps at which the policy planned."""
    attempt: int = 0
    """Decides the noise as well: another attempt from the same initial state."""
    rest: np.ndarray | None = None
    """(Tp, 2) float32, the last plan as it stands for the next one, if that starts from it."""

    @property
    def steps(self) -> int:
        """Actions taken."""
        return len(self.actions)

    @property
    def max_coverage(self) -> float:
        """The best of `coverages`."""
        return max(self.coverages, default=0.0)

    @property
    def max_reward(self) -> float:
        """gym-pusht's reward at best: `clip(coverage / 0.95, 0, 1)`."""
        return min(self.max_coverage / SUCCESS_COVERAGE, 1.0)

    @property
    def success(self) -> bool:
        """Whether the block covered more than 95 % of the goal; the episode ends there, or soon after."""
        return self.max_coverage > SUCCESS_COVERAGE

    @property
    def solved_in(self) -> int:
        """Of a success, the actions up to the one that solved it."""
        return 1 + next(step for step, coverage in enumerate(self.coverages) if coverage > SUCCESS_COVERAGE)


def rollout(
    policy: ChunkPolicy,
    seeds: Sequence[int],
    *,
    max_steps: int = MAX_STEPS,
    environments: int | None = None,
    policy_batch: int = 64,
    progress: bool = False,
    attempt: int = 0,
    steps_after: int = 0,
) -> list[Episode]:
    """Runs one episode a seed, each until it succeeds or `max_steps` are over.

    Args:
        policy: Called with the last To states of `policy_batch` episodes; missing ones are copies, so that the shape
            never changes. Before the first step the initial state counts as all To.
        seeds: 0 or more each.
        max_steps: Steps of a tenth of a second.
        environments: Episodes that run at once; None runs all. Changes memory and time, not the result.
        policy_batch: Episodes a call. Another number may change the last bits of an action, and so an outcome.
        progress: Show a bar with the successes so far and the time left.
        attempt: Another number draws other noise for the same initial states; evaluations take 0.
        steps_after: How long an episode goes on after its success, for demonstrations whose last windows are whole.

    Returns:
        The episodes in the order of `seeds`.

    Raises:
        ConfigError: The policy observes or does something that Push-T does not have.
        CheckpointError: The policy's actions are not finite.
    """
    action = policy.config.output_features["action"].shape
    if action != (2,):
        advice = "take a policy trained on Push-T; without a simulator: visuomotor validate"
        raise ConfigError(mismatch("action", (2,), action, advice))
    episodes = [Episode(int(seed), attempt=attempt) for seed in seeds]
    waiting = list(reversed(episodes))
    running: list[tuple[PushT, Episode]] = []
    with _bar(episodes, max_steps, progress) as show:
        while waiting or running:
            while waiting and len(running) < (environments or len(episodes)):
                running.append(_start(waiting.pop()))
            for group in _groups(running, policy_batch):
                chunks = _plan(policy, [episode for _, episode in group], policy_batch)
                for (environment, episode), chunk in zip(group, chunks, strict=True):
                    _execute(environment, episode, chunk, max_steps, steps_after)
                show()
            running = [pair for pair in running if not _over(pair[1], max_steps, steps_after)]
    return episodes


def chunk_noise(seed: int, chunk: int, shape: tuple[int, ...], attempt: int = 0) -> np.ndarray:
    """The Gaussian noise of an episode's `chunk`-th plan, float32: the same whatever else runs."""
    entropy = (seed, chunk, attempt) if attempt else (seed, chunk)
    return np.random.default_rng(entropy).standard_normal(shape, dtype=np.float32)


def _start(episode: Episode) -> tuple[PushT, Episode]:
    environment = PushT()
    episode.states.append(environment.reset(episode.seed))
    return environment, episode


def _groups(running: list[tuple[PushT, Episode]], size: int) -> Iterator[list[tuple[PushT, Episode]]]:
    """Those that plan in one call: with a warm start, an episode's first plan takes other steps than its later ones."""
    for pairs in ([pair for pair in running if (pair[1].rest is None) is first] for first in (True, False)):
        for begin in range(0, len(pairs), size):
            yield pairs[begin : begin + size]


def _plan(policy: ChunkPolicy, episodes: list[Episode], batch: int) -> np.ndarray:
    """The next actions of each episode, (len(episodes), Ta, 2)."""
    config = policy.config
    states = [
        [episode.states[max(0, episode.steps + step)] for step in config.observation_steps] for episode in episodes
    ]
    shape = (policy.noise_draws(), config.horizon, 2)
    drawn = [chunk_noise(episode.seed, len(episode.chunk_starts), shape, episode.attempt) for episode in episodes]
    noise = np.stack(drawn, axis=1)
    rows = np.minimum(np.arange(batch), len(episodes) - 1)  # the last one again and again fills the batch
    observation = observe(np.array(states), config.input_features)
    given = {name: torch.from_numpy(values[rows]) for name, values in observation.items()}
    start = torch.from_numpy(noise[:, rows])
    if config.warm_start < 1:
        actions = _plan_warm(cast(WarmPolicy, policy), episodes, given, start, rows)
    else:
        actions = policy.predict_action_chunk(given, noise=start)
    if not actions.isfinite().all():
        raise CheckpointError(mismatch("action", "finite numbers", "NaN or infinity", "train the policy again"))
    return actions[: len(episodes)].float().cpu().numpy()


def _plan_warm(
    policy: WarmPolicy, episodes: list[Episode], given: dict[str, torch.Tensor], noise: torch.Tensor, rows: np.ndarray
) -> torch.Tensor:
    """The chunks of episodes that all have a rest of their last plan, or none of them; their next rests are kept."""
    rests = [episode.rest for episode in episodes if episode.rest is not None]
    plans = policy.plan(given, noise, previous=torch.from_numpy(np.stack(rests)[rows]) if rests else None)
    executed = policy.config.n_action_steps
    next_rests = moved_on(plans, executed).float().cpu().numpy()
    for episode, rest in zip(episodes, next_rests[: len(episodes)], strict=True):
        episode.rest = rest
    now = policy.config.n_obs_steps - 1
    return plans[:, now : now + executed]


def _execute(environment: PushT, episode: Episode, chunk: np.ndarray, max_steps: int, steps_after: int) -> None:
    episode.chunk_starts.append(episode.steps)
    for action in chunk:
        state, coverage = environment.step(action)
        episode.states.append(state)
        episode.actions.append(action)
        episode.coverages.append(coverage)
        if _over(episode, max_steps, steps_after):
            break


def _over(episode: Episode, max_steps: int, steps_after: int) -> bool:
    if episode.success:
        return episode.steps >= episode.solved_in + steps_after
    return episode.steps >= max_steps


@contextmanager
def _bar(episodes: list[Episode], max_steps: int, visible: bool) -> Generator[Callable[[], None]]:
    """A function that brings the progress bar up to date; without a terminal, one that now and then prints a line."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = [TextColumn("rolling out"), BarColumn(), TextColumn("{task.fields[said]}"), TimeRemainingColumn()]
    with Progress(*columns, console=console, disable=not (visible and console.is_terminal)) as bar:
        task = bar.add_task("", total=len(episodes) * max_steps, said="")
        printed = time.monotonic()

        def show() -> None:
            nonlocal printed
            over = [episode for episode in episodes if _over(episode, max_steps, 0)]
            saved = sum(max_steps - episode.steps for episode in over)  # steps that early ends have made unnecessary
            done = saved + sum(episode.steps for episode in episodes)
            solved = sum(episode.success for episode in over)
            said = f"{solved} solved of {len(over)} finished, {len(episodes)} in all"
            bar.update(task, completed=done, said=said)
            if visible and not console.is_terminal and time.monotonic() - printed > SECONDS_BETWEEN_LINES:
                printed = time.monotonic()
                share = done / (len(episodes) * max_steps)
                print(f"rolling out, {share:.0%}: {said}", file=sys.stderr, flush=True)

        yield show
