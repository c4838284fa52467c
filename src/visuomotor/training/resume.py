"""What a run's folder is opened for: to begin, or to go on with just what began there."""

import hashlib
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from visuomotor.config import DiffusionConfig
from visuomotor.data.dataset import Dataset
from visuomotor.errors import ConfigError, DatasetError, mismatch
from visuomotor.files import find_damage
from visuomotor.policy.checkpoint import checkpoints, newest_checkpoint
from visuomotor.policy.normalization import Statistics
from visuomotor.policy.vision import find_pretrained
from visuomotor.recipe import Recipe, TrainingConfig
from visuomotor.training.boards import import_wandb
from visuomotor.training.checkpoint import Run, check_same, named_weights, read_run, write_run
from visuomotor.training.evaluations import check_simulated
from visuomotor.training.lock import lock
from visuomotor.training.metrics import cut_lines
from visuomotor.training.schedule import decay_start, first_difference


def check_run(run: Path, recipe: Recipe, resume: bool) -> None:
    """Says at once what would be said after the frames have been decoded, without changing anything.

    Args:
        run: The folder, which need not be there.
        recipe: With the features filled.
        resume: Whether to go on.

    Raises:
        ConfigError: Another process trains there, there is a run and `resume` is False, or the recipe has changed; or
            evaluations during training, or Weights & Biases, are asked for and cannot be had.
        CheckpointError: The run's config is damaged, or weights to begin with cannot be had.
    """
    if recipe.training.evaluate_every:
        check_simulated("evaluate_every", recipe.policy)
    if recipe.training.wandb_project is not None:
        import_wandb()
    if (run / "lock").exists():
        with lock(run):
            pass
    if _begun(run, resume):
        check_same(recipe, read_run(run), run)
    elif (
        recipe.policy.image_features
        and recipe.policy.pretrained_backbone_weights
        and not recipe.training.initial_policy
    ):
        find_pretrained(recipe.policy.pretrained_backbone_weights)


def open_run(run: Path, asked: Run, resume: bool) -> Path | None:
    """Begins a run in a folder that is locked, or opens the one that is there.

    Checkpoints that are damaged, or lie beyond the one to go on from, are kept under another name. Lines of steps that
    will be taken again are cut.

    Args:
        run: The folder.
        asked: What is to be trained.
        resume: Whether to go on.

    Returns:
        The checkpoint to go on from; None to begin.

    Raises:
        ConfigError: There is a run and `resume` is False, or the recipe has changed.
        DatasetError: The demonstrations have changed.
        CheckpointError: The run is damaged beyond its last checkpoint.
    """
    found = _begun(run, resume)
    newest = newest_checkpoint(run)
    if newest:
        before = read_run(run)
        check_same(asked.recipe, before, run)
        _check_data(asked, before, run)
        newest, exact_until = _extend(run, newest, before, asked.recipe.training)
        asked = replace(asked, exact_until=exact_until, weights=before.weights)
        for later in found[: found.index(newest)]:
            _set_aside(later)
    else:
        asked = replace(asked, weights=named_weights(asked.recipe.training))
    for draft in run.glob("checkpoints/.step_*"):  # of a process that was killed
        shutil.rmtree(draft)
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        cut_lines(run / name, _step(newest) if newest else 0)
    write_run(run, asked)
    return newest


def _begun(run: Path, resume: bool) -> list[Path]:
    """The checkpoints of a run that is gone on with; none of one that begins."""
    found = checkpoints(run)
    if found and not resume:
        advice = "pass --resume to go on with it, or choose another --output"
        raise ConfigError(mismatch(str(run), "a folder without checkpoints", found[0].name, advice))
    return found


def fingerprint(dataset: Dataset, recipe: Recipe, windows: int, statistics: Statistics) -> dict[str, Any]:
    """What must be found again when a run is resumed.

    Args:
        dataset: The demonstrations.
        recipe: With the features filled.
        windows: How many are trained on.
        statistics: What features are normalised by.

    Returns:
        For JSON: counts, the SHA-256 of the low-dimensional columns in use, and the statistics. Pixels are left out:
        reading all of them would take longer than what it guards against is likely.
    """
    return {
        "episodes": len(dataset.episodes),
        "frames": len(dataset),
        "windows": windows,
        "fps": dataset.fps,
        "sha256": columns_sha256(dataset, recipe.policy),
        "statistics": {
            name: {key: np.asarray(value, np.float64).tolist() for key, value in values.items() if key in _COMPARED}
            for name, values in statistics.items()
        },
    }


def columns_sha256(dataset: Dataset, policy: DiffusionConfig) -> str:
    """Tells the numbers that a policy is trained on from any others, but for pixels."""
    digest = hashlib.sha256((dataset.episode_ends - dataset.episode_starts).astype("<i8").tobytes())
    for name, feature in (policy.input_features | policy.output_features).items():
        digest.update(f"{name} {feature.shape}".encode())
        if feature.type != "VISUAL":
            digest.update(np.ascontiguousarray(dataset.arrays[name], "<f4").tobytes())
    return digest.hexdigest()


_COMPARED = ("min", "max", "mean", "std")


def _check_data(asked: Run, before: Run, run: Path) -> None:
    if asked.data is None or before.data is None:
        return
    counts = {name: (before.data[name], asked.data[name]) for name in ("episodes", "frames", "windows", "fps")}
    changed = {name: pair for name, pair in counts.items() if pair[0] != pair[1]}
    if not changed and asked.data["sha256"] != before.data["sha256"]:
        changed = {"numbers in the columns": ("those of then", "others")}
    for name, values in before.data["statistics"].items():
        for key, value in values.items():
            now = asked.data["statistics"].get(name, {}).get(key)
            if not changed and (now is None or not np.allclose(now, value, rtol=1e-4, atol=1e-6)):
                changed = {f"{name}: {key}": (value, now)}
    if changed:
        expected = ", ".join(f"{name} {old}" for name, (old, _) in changed.items())
        found = ", ".join(f"{name} {new}" for name, (_, new) in changed.items())
        advice = f"{run} was begun with other data: pass those, or begin in a new folder"
        raise DatasetError(mismatch(str(asked.source), expected, found, advice))


def _extend(run: Path, newest: Path, noted: Run, now: TrainingConfig) -> tuple[Path, int | None]:
    """Says what another number of steps means for the learning rate.

    Returns:
        The checkpoint to go on from, and `Run.exact_until`.
    """
    before = noted.recipe.training
    if (before.steps, before.scheduler_decay_steps) == (now.steps, now.scheduler_decay_steps):
        return newest, noted.exact_until
    done, end = _step(newest), f"the run now ends at step {now.steps}"
    if now.steps < done:
        advice = "the run is longer already: use that checkpoint, or begin in a new folder"
        raise ConfigError(mismatch("steps", f"{done} or more, which {newest} has done", now.steps, advice))
    same = first_difference(before, now, done)
    same = same if noted.exact_until is None else min(same, noted.exact_until)
    exact_until = None if same == done else same
    if same == done:
        told = f"the learning rate has been the same so far: the result is exactly that of one run of {now.steps}"
    elif now.scheduler_name == "cosine":
        told = f"the learning rate's cosine now ends at step {now.steps}: the result is not that of one run of "
        told += f"{now.steps} (scheduler_name warmup-stable-decay can be extended exactly)"
    else:
        good = (path for path in checkpoints(run) if _step(path) <= same and find_damage(path) is None)
        earlier = next(good, None)
        told = f"its learning rate began to fall at step {decay_start(before)}, and {done} steps are done: "
        if earlier is None:
            told += f"no checkpoint from before is left, so the result is not that of one run of {now.steps}"
        else:
            told += f"going back to {earlier.name}, so that the result is exactly that of one run of {now.steps}"
            newest, exact_until = earlier, None
    print(f"{end}; {told}", file=sys.stderr)
    return newest, exact_until


def _set_aside(checkpoint: Path) -> None:
    aside = checkpoint.with_name(f"set_aside_{checkpoint.name}")
    if aside.exists():
        shutil.rmtree(aside)
    checkpoint.rename(aside)
    print(f"{checkpoint.name} is now {aside}; delete it when you do not need it", file=sys.stderr)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))
