"""A policy against recorded actions, without a simulator: what it would have done where the demonstrator was."""

import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visuomotor import __version__
from visuomotor.data.dataset import Dataset, Source, load_dataset
from visuomotor.data.selection import load_selection
from visuomotor.errors import CheckpointError, ConfigError, DatasetError, mismatch
from visuomotor.evaluation.open_loop_page import Trace, validation_page
from visuomotor.files import write_bytes, write_json
from visuomotor.policy.checkpoint import EXPORT, find_policy, load_policy, weights_sha256
from visuomotor.policy.device import choose_device
from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.training.checkpoint import read_run
from visuomotor.training.validation import split_windows

BATCH = 16  # chunks in each call of the policy, always: another number may change an action's last bits
HELD_OUT = "held out by the run"
TRAINED_ON = "all that the run was trained on"


@dataclass(frozen=True)
class Replay:
    """Predicted and recorded actions of one episode of T frames, in the data's units."""

    episode: int
    """Its own number."""
    recorded: np.ndarray
    """(T, Da)."""
    predicted: np.ndarray
    """(K, T, Da): the executed steps of each chunk one after the other, once for each of K noises."""
    held: np.ndarray
    """(T, Da): what doing nothing gives, the action before the chunk again and again."""

    def errors(self) -> dict[str, np.ndarray]:
        """(Da,) each; predictions are averaged over the noises after the error is taken, not before."""
        policy, hold = self.predicted - self.recorded, self.held - self.recorded
        return {
            "mean_absolute_error": np.abs(policy).mean((0, 1)),
            "mean_squared_error": (policy**2).mean((0, 1)),
            "hold_mean_absolute_error": np.abs(hold).mean(0),
            "hold_mean_squared_error": (hold**2).mean(0),
        }


def validate(
    policy_source: str | Path,
    data: Source | None = None,
    *,
    output: str | Path,
    episodes: Sequence[int] | None = None,
    draws: int = 4,
    seed: int = 0,
    plots: int = 3,
    device: str = "auto",
) -> dict[str, Any]:
    """Measures how far a policy's actions are from recorded ones, on episodes that it was not trained on.

    At every chunk's first frame the policy sees what was recorded up to there and plans; the steps that it would
    execute are compared with what was done. Low errors do not make a good policy, since it never sees where its own
    errors lead; errors no lower than those of holding still make a bad one.

    Args:
        policy_source: As for `load_policy`: a run's folder, a policy's folder or a name.
        data: Demonstrations, as for `load_dataset`; None takes those of the run.
        output: The folder for `validation.json` and `validation.html`.
        episodes: Numbers of the episodes; None takes those that the run has held out, or else all.
        draws: Noises that each chunk is predicted from.
        seed: Of the noises; each is a pure function of the seed, the episode, the frame and its number.
        plots: Episodes to draw, the first ones.
        device: Where the policy runs: `cpu`, `cuda`, `mps`, or `auto` for the best there is.

    Returns:
        The content of `validation.json`: `joints` with their errors and those of repeating the last action (`hold_`),
        `relative_error` (one by the other, the median of the joints), `episodes`, `settings`, `versions`, `seconds`.

    Raises:
        ConfigError: A setting is out of range, or no data is named and the policy is not that of a run.
        DatasetError: The data is damaged, or is not what the policy was made for.
        CheckpointError: The policy cannot be loaded, or its actions are not finite.
    """
    for name, value, lowest in (("draws", draws, 1), ("seed", seed, 0), ("plots", plots, 0)):
        if value < lowest:
            raise ConfigError(mismatch(name, f"{lowest} or more", value, "choose a larger number"))
    folder, device = find_policy(policy_source), choose_device(device)
    policy = load_policy(folder, device)
    source, numbers, seen = _choose(folder, policy_source, data, episodes)
    resize = None if (folder / EXPORT).is_file() else policy.config.resize_shape  # an export resizes for itself
    dataset = load_dataset(source, episodes=numbers, resize=resize)
    check_features(policy, dataset)
    began = time.perf_counter()
    replays = replay_episodes(policy, dataset, draws, seed)
    seconds = time.perf_counter() - began
    settings = {
        "policy": str(policy_source),
        "weights_sha256": weights_sha256(folder),
        "data": str(source),
        "episodes": seen,
        "frames_per_second": dataset.fps,
        "noise_scheduler_type": policy.config.noise_scheduler_type,
        "num_inference_steps": policy.config.num_inference_steps or policy.config.num_train_timesteps,
        "n_action_steps": policy.config.n_action_steps,
        "draws": draws,
        "seed": seed,
        "device": device,
        "threads": torch.get_num_threads(),
    }
    names = _joint_names(dataset)
    result = summary(replays, names) | {"settings": settings, "versions": _versions(), "seconds": round(seconds, 1)}
    steps = policy.config.n_action_steps
    traces = [Trace(c.episode, c.recorded, c.predicted, steps, dataset.fps) for c in replays[:plots]]
    write_bytes(Path(output) / "validation.html", validation_page(result, traces).encode())
    write_json(Path(output) / "validation.json", result)
    return result


def check_features(policy: DiffusionPolicy, dataset: Dataset) -> None:
    """Refuses data that the policy was not made for.

    Raises:
        DatasetError: An observation, or the action, is missing or of another shape.
    """
    for name, feature in (policy.config.input_features | policy.config.output_features).items():
        found = dataset.features.get(name)
        place = f"{dataset.source}: {name}"
        if found is None:
            advice = "take the data that the policy was trained for, or rename the feature"
            raise DatasetError(mismatch(place, f"a feature of {feature.shape}", sorted(dataset.features), advice))
        if found.shape != feature.shape:
            advice = "the policy was trained for another robot or another size of image"
            raise DatasetError(mismatch(place, feature.shape, found.shape, advice))


def replay_episodes(policy: DiffusionPolicy, dataset: Dataset, draws: int = 4, seed: int = 0) -> list[Replay]:
    """Predictions beside what was recorded, for every episode of a data set.

    Raises:
        CheckpointError: The policy's actions are not finite.
    """
    steps, actions = policy.config.n_action_steps, dataset.arrays["action"].reshape(len(dataset), -1)
    bounds = list(zip(dataset.episode_starts.tolist(), dataset.episode_ends.tolist(), strict=True))
    rows = np.concatenate([np.arange(start, end, steps) for start, end in bounds])
    chunks = _predict(policy, dataset, rows, draws, seed)
    replays = []
    for number, (start, end) in zip(dataset.episodes.tolist(), bounds, strict=True):
        mine = (rows >= start) & (rows < end)
        predicted = chunks[:, mine].reshape(draws, -1, actions.shape[1])[:, : end - start]
        before = np.maximum(rows[mine] - 1, start)  # at the beginning there is none: the first one stands in
        held = np.repeat(actions[before], steps, axis=0)[: end - start]
        replays.append(Replay(number, actions[start:end], predicted, held))
    return replays


def summary(replays: Sequence[Replay], names: Sequence[str]) -> dict[str, Any]:
    """The figures as they stand in `validation.json`; every frame counts the same."""
    frames = np.array([len(replay.recorded) for replay in replays])
    each = [replay.errors() for replay in replays]
    mean = {key: np.average([errors[key] for errors in each], axis=0, weights=frames) for key in each[0]}
    absolute, hold = mean["mean_absolute_error"], mean["hold_mean_absolute_error"]
    joints = [
        {
            "name": name,
            "mean_absolute_error": float(absolute[joint]),
            "root_mean_square_error": float(mean["mean_squared_error"][joint] ** 0.5),
            "hold_mean_absolute_error": float(hold[joint]),
            "hold_root_mean_square_error": float(mean["hold_mean_squared_error"][joint] ** 0.5),
        }
        for joint, name in enumerate(names)
    ]
    ratios = absolute[hold > 0] / hold[hold > 0]
    return {
        "relative_error": float(np.median(ratios)) if len(ratios) else None,
        "joints": joints,
        "episodes": [
            {"episode": c.episode, "frames": int(count), "mean_absolute_error": errors["mean_absolute_error"].tolist()}
            for c, count, errors in zip(replays, frames, each, strict=True)
        ],
    }


def as_text(validation: Mapping[str, Any]) -> str:
    """The errors by joint, as the command prints them."""
    joints = validation["joints"]
    width = max(len(joint["name"]) for joint in joints)
    lines = [f"{'joint':{width}}  mean absolute error  repeating the last action"]
    for joint in joints:
        error, hold = joint["mean_absolute_error"], joint["hold_mean_absolute_error"]
        lines.append(f"{joint['name']:{width}}  {error:19.4g}  {hold:25.4g}")
    relative = validation["relative_error"]
    told = "no joint moves"
    if relative is not None:
        moving = sum(joint["hold_mean_absolute_error"] > 0 for joint in joints)
        told = f"{relative:.2f} of the error of repeating the last action, the median of {moving} joints"
    lines.append(f"overall: {told} in {len(validation['episodes'])} episodes")
    return "\n".join(lines)


def _predict(policy: DiffusionPolicy, dataset: Dataset, rows: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """The actions to execute from each row on, (draws, len(rows), Ta, Da)."""
    config, chunks = policy.config, []
    observed = {name: config.observation_steps for name in config.input_features}
    shape = (policy.noise_draws(), config.horizon, *config.output_features["action"].shape)
    episodes = np.searchsorted(dataset.episode_ends, rows, side="right")
    frames = rows - dataset.episode_starts[episodes]
    began = told = time.monotonic()
    for first in range(0, len(rows), BATCH):
        places = np.minimum(np.arange(first, first + BATCH), len(rows) - 1)  # the last one again and again fills it
        observation = dataset.batch(rows[places], observed)
        drawn = []
        for draw in range(draws):
            keys = [(seed, int(dataset.episodes[episodes[place]]), int(frames[place]), draw) for place in places]
            noise = np.stack([np.random.default_rng(k).standard_normal(shape, dtype=np.float32) for k in keys], axis=1)
            drawn.append(policy.predict_action_chunk(observation, torch.from_numpy(noise)).float().cpu().numpy())
        chunks.append(np.stack(drawn)[:, : len(rows) - first])
        done = first + BATCH
        if done < len(rows) and time.monotonic() - told > 30:
            told = time.monotonic()
            left = (told - began) / done * (len(rows) - done) / 60
            print(f"validating: {done} of {len(rows)} chunks, {left:.1f} min left", file=sys.stderr, flush=True)
    predicted = np.concatenate(chunks, axis=1)
    if not np.isfinite(predicted).all():
        raise CheckpointError(mismatch("action", "finite numbers", "NaN or infinity", "train the policy again"))
    return predicted


def _choose(
    folder: Path, policy_source: str | Path, data: Source | None, episodes: Sequence[int] | None
) -> tuple[Source, Sequence[int] | None, str]:
    """The source, the numbers of the episodes, and what is known of them."""
    if data is not None:
        return data, episodes, "all" if episodes is None else "chosen"
    parents = folder.resolve().parents  # RUN/checkpoints/step_000050/policy
    if len(parents) < 3 or parents[1].name != "checkpoints" or not (parents[2] / "config.json").is_file():
        found, advice = f"the policy {policy_source}", "name the demonstrations to compare with"
        raise ConfigError(mismatch("data", "a SOURCE, or a run that notes its own", found, advice))
    run = read_run(parents[2])
    if episodes is not None:
        return run.source, episodes, "chosen"
    training = run.recipe.training
    dataset = load_selection(run.source, training.episodes, training.tasks)
    _, held_out = split_windows(dataset, run.recipe)
    numbers = dataset.episodes[np.unique(np.searchsorted(dataset.episode_ends, held_out, side="right"))].tolist()
    return run.source, numbers or dataset.episodes.tolist(), HELD_OUT if numbers else TRAINED_ON


def _joint_names(dataset: Dataset) -> list[str]:
    names = dataset.demonstrations.names.get("action")
    return names or [f"action {joint}" for joint in range(dataset.features["action"].shape[0])]


def _versions() -> dict[str, str]:
    versions = {"visuomotor": __version__, "torch": torch.__version__, "numpy": np.__version__}
    return versions | {"python": platform.python_version(), "platform": platform.platform()}
