"""Demonstrations recorded from a policy: its successes, as agent position, block pose and action."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from visuomotor.data.bundled import write
from visuomotor.errors import ConfigError, mismatch
from visuomotor.simulation.pusht import MAX_STEPS
from visuomotor.simulation.rollout import ChunkPolicy, Episode, rollout

FIRST_SEED = 1_000_000
"""Evaluations count from 100,000; a policy must not be measured on states that it was taught from."""
WAVE = 128  # seeds tried at a time
PATIENCE = 20  # attempts for each episode wanted, before giving up


def record(
    policy: ChunkPolicy, episodes: int, seed: int, output: str | Path, *, policy_batch: int = 64, progress: bool = False
) -> Path:
    """Rolls a policy out until `episodes` have succeeded, and writes those.

    Args:
        policy: Whose successes become demonstrations.
        episodes: How many to keep; the first in the order of their seeds.
        seed: The first to try, 1,000,000 or more.
        output: An npz file: `agent` (N, 2), `block` (N, 3) x, y, angle, `action` (N, 2), all float32, with the state
            before the action in each row; `episode_ends` (E,) and `seed` (E,) int64. An episode ends with the action
            that solved it.
        policy_batch: As for `rollout`.
        progress: Show a bar.

    Returns:
        `output`.

    Raises:
        ConfigError: The seed is one of the evaluation's, or the policy hardly ever succeeds.
    """
    if seed < FIRST_SEED:
        advice = "seeds from 100000 on are for evaluation: a policy must not be taught from what it is measured on"
        raise ConfigError(mismatch("seed", f"{FIRST_SEED} or more", seed, advice))
    if episodes < 1:
        raise ConfigError(mismatch("episodes", "1 or more", episodes, "ask for some"))
    kept: list[Episode] = []
    first = seed
    while len(kept) < episodes:
        if first - seed >= PATIENCE * max(episodes, WAVE):
            found = f"{len(kept)} in {first - seed} attempts"
            raise ConfigError(mismatch("policy", f"{episodes} successes", found, "record from a better policy"))
        wave = rollout(
            policy, range(first, first + WAVE), max_steps=MAX_STEPS, policy_batch=policy_batch, progress=progress
        )
        kept += [episode for episode in wave if episode.success]
        first += WAVE
    write_demonstrations(Path(output), kept[:episodes])
    return Path(output)


def write_demonstrations(output: Path, episodes: Sequence[Episode]) -> None:
    """Writes episodes to an npz file as `record` describes it, which `load_dataset` reads."""
    write(
        output,
        states=np.concatenate([episode.states[:-1] for episode in episodes]),
        action=np.concatenate([episode.actions for episode in episodes]),
        episode_ends=np.cumsum([episode.steps for episode in episodes]),
        seed=np.array([episode.seed for episode in episodes], np.int64),
    )
