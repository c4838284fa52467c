"""What a run needs to go on exactly where it stopped, in safetensors and JSON.

RUN/config.json                             the recipe, the data's source and what they were
RUN/metrics.jsonl                           one line every `log_every` steps
RUN/checkpoints/step_000050/policy/         the averaged weights: what acts, and what `load_policy` opens
RUN/checkpoints/step_000050/training/       the weights themselves, the optimizer's moments, the step, the loss so far
RUN/checkpoints/step_000050/hashes.json     length and SHA-256 of each of these files

Everything random in step k (the windows, crops, noise) comes from the seed and k alone. So the seed and the step are
the whole state of the random numbers and of the data's order.
"""

import errno
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from visuomotor.config import from_json, to_json
from visuomotor.errors import CheckpointError, ConfigError, mismatch
from visuomotor.files import atomic_folder, write_hashes, write_json
from visuomotor.policy.checkpoint import checkpoints, load_weights, read_json, read_tensors, save_policy, save_tensors
from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.recipe import Recipe, TrainingConfig
from visuomotor.training.average import WeightAverage
from visuomotor.training.schedule import decay_start

FORMAT_VERSION = 1
FREE = (
    "steps",
    "scheduler_decay_steps",
    "nonfinite_loss",
    "validate_every",
    "save_every",
    "keep_checkpoints",
    "log_every",
    "evaluate_every",
    "evaluate_episodes",
    "wandb_project",
    "gradient_accumulation_steps",
    "compile",
    "threads",
    "device",
)
"""Fields that may change on resume; what a change of the first two means for the learning rate, `open_run` says."""


@dataclass(frozen=True)
class Run:
    """What RUN/config.json holds."""

    recipe: Recipe
    source: str | list[str]
    data: dict[str, Any] | None = None
    """What the demonstrations were, by `fingerprint`; None in a run from before that was noted."""


def write_run(folder: Path, run: Run) -> None:
    """Notes what a run trains, and on what."""
    content = {"format_version": FORMAT_VERSION, "source": run.source, "data": run.data, "recipe": to_json(run.recipe)}
    write_json(folder / "config.json", content, durable=True)


def read_run(folder: str | Path) -> Run:
    """What a run trains, and on what.

    Raises:
        CheckpointError: The folder holds no run, or one of another format.
    """
    path = Path(folder) / "config.json"
    content = read_json(path)
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION or not {"source", "recipe"} <= content.keys():
        advice = "this is not the folder of a run, or it is from another version"
        raise CheckpointError(mismatch(f"{path}: format_version", FORMAT_VERSION, version, advice))
    return Run(from_json(Recipe, content["recipe"], str(path)), content["source"], content.get("data"))


def check_same(asked: Recipe, before: Recipe, folder: Path) -> None:
    """Refuses to resume what would no longer be the same run.

    Raises:
        ConfigError: A field that shapes the result has changed; all such fields are named.
    """
    changed = {}
    for part in ("policy", "training"):
        new, old = to_json(getattr(asked, part)), to_json(getattr(before, part))
        changed |= {name: (old[name], new[name]) for name in old if new[name] != old[name] and name not in FREE}
    if changed:
        expected = ", ".join(f"{name} {old}" for name, (old, _) in changed.items())
        found = ", ".join(f"{name} {new}" for name, (_, new) in changed.items())
        raise ConfigError(mismatch(f"--resume of {folder}", expected, found, "keep these, or begin in a new folder"))


def save_checkpoint(
    run: Path,
    step: int,
    policy: DiffusionPolicy,
    average: WeightAverage,
    optimizer: torch.optim.Optimizer,
    losses: Mapping[str, Any],
    config: TrainingConfig,
) -> Path:
    """Writes the state after `step` steps; it appears whole, on the disk, or not at all.

    Only the newest `keep_checkpoints` stay, and the one from which a run can be extended exactly (`decay_start`).

    Args:
        run: The run's folder.
        step: Steps done.
        policy: What is trained.
        average: Its average.
        optimizer: With its moments.
        losses: `Losses.state()`.
        config: What to keep.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: A number is not finite, or the disk is full. The checkpoint before stays as it was.
    """
    target = run / "checkpoints" / f"step_{step:06d}"
    tensors = {f"weights.{name}": tensor for name, tensor in policy.state_dict().items()}
    for name, parameter in policy.named_parameters():
        for moment, value in optimizer.state[parameter].items():
            tensors[f"{moment}.{name}"] = value
    averages = {f"average.{name}": tensor for name, tensor in average.policy.state_dict().items()}
    _check_finite(run, step, tensors | averages)
    try:
        with atomic_folder(target) as draft:
            save_policy(average.policy, draft / "policy")
            (draft / "training").mkdir()
            on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_tensors(on_cpu, draft / "training" / "state.safetensors")
            state = {"format_version": FORMAT_VERSION, "step": step, "losses": dict(losses)}
            write_json(draft / "training" / "state.json", state)
            write_hashes(draft)
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise
        size = sum(tensor.nbytes for tensor in (tensors | averages).values()) / 1e6
        advice = f"make room and go on with --resume; {last_good(run)}"
        raise CheckpointError(mismatch(str(target), f"room for {size:,.0f} MB", str(error), advice)) from error
    kept = [path for path in checkpoints(run) if path.name != f"step_{decay_start(config) or -1:06d}"]
    for old in kept[config.keep_checkpoints :]:
        shutil.rmtree(old.rename(old.with_name(f".{old.name}.old")))  # hidden first: killed now, no half of it counts
    return target


def last_good(run: Path) -> str:
    """Half a sentence for errors: where the last checkpoint is."""
    last = next(iter(checkpoints(run)), None)
    return f"the last good checkpoint is {last}" if last else "there is no earlier checkpoint"


def load_checkpoint(
    folder: Path, policy: DiffusionPolicy, average: WeightAverage, optimizer: torch.optim.Optimizer
) -> tuple[int, dict[str, Any] | None]:
    """Puts a checkpoint back into a fresh policy, average and optimizer.

    Returns:
        The step to go on with, and what `Losses.state` gave; None from a checkpoint from before that was noted.

    Raises:
        CheckpointError: A file is missing, damaged or of another policy.
    """
    state = read_json(folder / "training" / "state.json")
    if state.get("format_version") != FORMAT_VERSION:
        found = state.get("format_version")
        raise CheckpointError(mismatch(f"{folder}: format_version", FORMAT_VERSION, found, "use the same version"))
    tensors = read_tensors(folder / "training" / "state.safetensors")
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        group, _, name = key.partition(".")
        groups.setdefault(group, {})[name] = tensor
    own = policy.state_dict()
    weights = groups.pop("weights", {})
    if weights.keys() != own.keys() or any(weights[name].shape != own[name].shape for name in own):
        advice = "the checkpoint and RUN/config.json do not belong together"
        raise CheckpointError(mismatch(f"{folder}/training", f"{len(own)} tensors", f"{len(weights)} others", advice))
    policy.load_state_dict(weights)
    load_weights(average.policy, folder / "policy" / "model.safetensors")
    for name, parameter in policy.named_parameters():
        moments = {moment: values[name] for moment, values in groups.items() if name in values}
        # Fused optimizers count their steps on the device, others on the processor; and they take it that moments lie
        # in memory as their parameter does, which in a kernel of images is channels last.
        count_device = parameter.device if optimizer.defaults["fused"] else "cpu"
        optimizer.state[parameter] = {
            moment: value.to(count_device) if moment == "step" else torch.empty_like(parameter).copy_(value)
            for moment, value in moments.items()
        }
    return int(state["step"]), state.get("losses")


def _check_finite(run: Path, step: int, tensors: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        # In one pass, without a mask as large as the tensor.
        if tensor.numel() and not all(math.isfinite(end) for end in torch.stack(torch.aminmax(tensor)).tolist()):
            advice = f"lower optimizer_lr; nothing is saved of step {step}, and {last_good(run)}"
            raise CheckpointError(mismatch(f"{name} after step {step}", "finite numbers", "others", advice))
