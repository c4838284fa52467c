"""Episodes of a report rolled out once more: reports keep outcomes, not what happened on the way."""

import shlex
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import torch

from visuomotor.config import FLOW, DiffusionConfig
from visuomotor.errors import CheckpointError, ConfigError, mismatch
from visuomotor.policy.checkpoint import find_policy, load_policy, weights_sha256
from visuomotor.policy.device import choose_device
from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.simulation.pusht import MAX_STEPS
from visuomotor.simulation.rollout import Episode, rollout
from visuomotor.studio.reports import Acting, Report

KEPT = 64
"""Episodes that are remembered."""
LOADED = 2
"""Policies that are."""
SAMPLER = ("noise_scheduler_type", "num_inference_steps", "n_action_steps", "ddim_eta", "warm_start")
Kept = TypeVar("Kept")


class Stopped(Exception):
    """Nobody waits for the episode any more."""


class Replays:
    """Rolls out what a report tells of, one episode at a time: the same policy, sampler, seed and shape of batch.

    On the machine that measured, the episode is the same to the last bit; elsewhere sums may be rounded otherwise.

    Args:
        device: For policies that were measured on one that is not here.
    """

    def __init__(self, device: str = "auto"):
        self._device = choose_device(device)
        self._lock = Lock()
        self._policies: dict[tuple[str, str], DiffusionPolicy] = {}
        self._episodes: dict[tuple[Acting, int], Episode] = {}

    def episode(self, report: Report, seed: int, stopped: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        """The states of an episode, and whether it ended as the report says.

        Args:
            report: Whose episode.
            seed: One of its seeds.
            stopped: Asked before each plan; when true, the rollout is given up.

        Returns:
            `states` (steps + 1, 5), `actions` (steps, 2), `coverages` after each action, `chunk_starts`, `success`,
            `steps`, `max_coverage`, and `as_reported`.

        Raises:
            ConfigError: The report has no such seed, or does not tell enough.
            CheckpointError: The policy is not there any more, or has other weights.
            Stopped: `stopped` was true.
        """
        outcome, acting = report.outcome(seed), report.evaluation.settings
        with self._lock:
            key = (acting, seed)
            if stopped():  # while another one was rolled out
                raise Stopped
            if key not in self._episodes:
                policy = _Stoppable(self._policy(acting, report.folder), stopped)
                (rolled,) = rollout(policy, [seed], max_steps=acting.max_steps, policy_batch=acting.policy_batch)
                _keep(self._episodes, key, rolled, KEPT)
            episode = self._episodes[key]
        same = (episode.success, episode.steps) == (outcome.success, outcome.steps)
        return {
            "states": np.round(episode.states, 2).tolist(),
            "actions": np.round(np.array(episode.actions, np.float64), 2).tolist(),
            "coverages": np.round(episode.coverages, 5).tolist(),
            "chunk_starts": episode.chunk_starts,
            "success": episode.success,
            "steps": episode.steps,
            "max_coverage": episode.max_coverage,
            "as_reported": same and abs(episode.max_coverage - outcome.max_coverage) < 1e-9,
        }

    def _policy(self, acting: Acting, folder: Path) -> DiffusionPolicy:
        """The policy that was measured, acting as it did then."""
        source, digest = acting.policy, acting.weights_sha256
        name = f"{folder}: policy"
        if source is None or digest is None:
            raise ConfigError(mismatch(name, "its name and the hash of its weights", "none", "evaluate it again"))
        key = (digest, self._place(acting))
        if key not in self._policies:
            if source.count("/") == 1 and not Path(source).is_dir():
                advice = "nothing is fetched to watch it; evaluate it again"
                raise CheckpointError(mismatch(name, "a folder on this machine", repr(source), advice))
            found = find_policy(source)
            if weights_sha256(found) != digest:
                advice = "it was trained on since, or replaced; evaluate it again"
                raise CheckpointError(mismatch(name, f"the weights {digest[:12]}...", f"others in {found}", advice))
            _keep(self._policies, key, load_policy(found, key[1]), LOADED)
        policy = self._policies[key]
        own = _own(policy.config)
        asked: dict[str, Any] = {n: getattr(acting, n) for n in SAMPLER if getattr(acting, n) != own[n]}
        if acting.timesteps is None and policy.config.timesteps is not None:
            asked["num_inference_steps"] = acting.num_inference_steps  # any steps but its own are evenly spaced
        return policy.with_sampler(**asked)

    def _place(self, acting: Acting) -> str:
        try:
            return choose_device(acting.device or self._device)
        except ConfigError:
            return self._device


def command(report: Report, seed: int) -> str:
    """What to type for a video of one episode."""
    acting = report.evaluation.settings
    words = ["visuomotor", "eval"]
    if acting.server is None:
        words += [acting.policy or "POLICY", "--device", acting.device or "cpu"]
        flow = acting.noise_scheduler_type == FLOW  # such a policy knows no other, and the command names none
        for name in SAMPLER[flow:] if acting.timesteps is None else ():
            if getattr(acting, name) is not None:
                words += [f"--{name.replace('_', '-')}", str(getattr(acting, name))]
    else:
        words += ["--server", acting.server]
    words += ["--episodes", "1", "--seed", str(seed)]
    words += [] if acting.max_steps == MAX_STEPS else ["--max-steps", str(acting.max_steps)]
    words += [] if acting.policy_batch == 64 else ["--policy-batch", str(acting.policy_batch)]
    return shlex.join([*words, "--output", f"outputs/seed-{seed}"])


class _Stoppable:
    """A policy that asks before each plan whether anybody still waits."""

    def __init__(self, policy: DiffusionPolicy, stopped: Callable[[], bool]):
        self._policy, self._stopped = policy, stopped
        self.config = policy.config

    def noise_draws(self) -> int:
        return self._policy.noise_draws()

    def predict_action_chunk(self, observation: dict[str, torch.Tensor], noise: torch.Tensor) -> torch.Tensor:
        self._ask()
        return self._policy.predict_action_chunk(observation, noise=noise)

    def plan(
        self, observation: dict[str, torch.Tensor], noise: torch.Tensor, *, previous: torch.Tensor | None
    ) -> torch.Tensor:
        self._ask()
        return self._policy.plan(observation, noise, previous=previous)

    def _ask(self) -> None:
        if self._stopped():
            raise Stopped


def _own(config: DiffusionConfig) -> dict[str, Any]:
    """A policy's own way of acting, as reports tell it."""
    steps = config.num_inference_steps or config.num_train_timesteps
    return {name: getattr(config, name) for name in SAMPLER} | {"num_inference_steps": steps}


def _keep(kept: dict[Any, Kept], key: Any, value: Kept, most: int) -> None:
    """Remembers, and forgets the oldest beyond `most`."""
    kept[key] = value
    while len(kept) > most:
        del kept[next(iter(kept))]
