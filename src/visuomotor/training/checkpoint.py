"""What a run needs to go on exactly where it stopped, in safetensors and JSON.

RUN/config.json                             the recipe, the data's source and what they were
RUN/metrics.jsonl                           one line every `log_every` steps
RUN/checkpoints/step_000050/policy/         the averaged weights: what acts, and what `load_policy` opens
RUN/checkpoints/step_000050/training/       the weights themselves, the optimizer's moments, the step, the loss so far
RUN/checkpoints/step_000050/hashes.json     length and SHA-256 of each of these files

With sharded_checkpoints each process has written its part of training/state.safetensors: state_1_of_2.safetensors, ...

Everything random in step k (the windows, crops, noise) comes from the seed and k alone. So the seed and the step are
the whole state of the random numbers and of the data's order.
"""

import errno
import math
import shutil
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from visuomotor.errors import CheckpointError, ConfigError, mismatch
from visuomotor.files import atomic_folder, write_hashes, write_json
from visuomotor.policy.checkpoint import (
    checkpoints,
    find_policy,
    read_json,
    save_policy,
    save_tensors,
    weights_sha256,
)
from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.recipe import Recipe, TrainingConfig
from visuomotor.serialization import from_json, to_json
from visuomotor.training.average import WeightAverage
from visuomotor.training.parts import Parts, write_parts
from visuomotor.training.processes import Processes
from visuomotor.training.schedule import decay_start
from visuomotor.training.sharding import gather, held

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
    "sharding",
    "sharded_checkpoints",
    "compile",
    "cuda_graph",
    "data_device",
    "threads",
    "device",
)
"""Fields that may change on resume; what a change of the first two means for the learning rate, `open_run` says."""
POLICIES = ("initial_policy", "teacher")
"""Fields that name another policy: it may have moved, but not changed."""


@dataclass(frozen=True)
class Run:
    """What RUN/config.json holds."""

    recipe: Recipe
    source: str | list[str]
    data: dict[str, Any] | None = None
    """What the demonstrations were, by `fingerprint`; None in a run from before that was noted."""
    exact_until: int | None = None
    """Steps that have had the rate which `recipe` asks for; None if it has never been extended otherwise."""
    weights: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the weights of the policies that `recipe` names, by field; none in a run from before it was noted."""


def write_run(folder: Path, run: Run) -> None:
    """Notes what a run trains, and on what."""
    content = {"format_version": FORMAT_VERSION, "source": run.source, "data": run.data, "recipe": to_json(run.recipe)}
    if run.weights:
        content["weights"] = run.weights
    if run.exact_until is not None:
        content["exact_until"] = run.exact_until
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
    recipe = from_json(Recipe, content["recipe"], str(path))
    return Run(recipe, content["source"], content.get("data"), content.get("exact_until"), content.get("weights", {}))


def named_weights(training: TrainingConfig) -> dict[str, str]:
    """`Run.weights` of a recipe."""
    named = {name: getattr(training, name) for name in POLICIES}
    return {name: weights_sha256(find_policy(policy)) for name, policy in named.items() if policy is not None}


def check_same(asked: Recipe, before: Run, folder: Path) -> None:
    """Refuses to resume what would no longer be the same run.

    Raises:
        ConfigError: A field that shapes the result has changed; all such fields are named.
        CheckpointError: A policy that the recipe names elsewhere than before, or its teacher, is not there.
    """
    changed, free = {}, set(FREE)
    if not asked.policy.use_group_norm:  # BatchNorm takes the statistics of each part
        free.remove("gradient_accumulation_steps")
    for part in ("policy", "training"):
        new, old = to_json(getattr(asked, part)), to_json(getattr(before.recipe, part))
        changed |= {name: (old[name], new[name]) for name in old if new[name] != old[name] and name not in free}
    for name in POLICIES:
        policy, noted = getattr(asked.training, name), before.weights.get(name)
        if policy is None or noted is None or (name not in changed and name != "teacher"):
            continue  # what a run began with is in its own weights by now, and need not be there any more
        if (found := weights_sha256(find_policy(policy))) == noted:
            changed.pop(name, None)
        else:
            changed[name] = (f"with weights {noted[:12]}", f"{policy} with {found[:12]}")
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
    processes: Processes | None = None,
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
        config: What to keep, and whether in parts.
        processes: Those that train together; None for one alone. If the policy is sharded, each of them must call this.

    Returns:
        The checkpoint's folder. If the policy is sharded, only the main process knows it to be there.

    Raises:
        CheckpointError: A number is not finite, or the disk is full. The checkpoint before stays as it was.
    """
    target = run / "checkpoints" / f"step_{step:06d}"
    several = processes if processes and processes.sharded else None
    tensors = {f"weights.{name}": tensor for name, tensor in policy.state_dict().items()}
    for name, parameter in policy.named_parameters():
        for moment, value in optimizer.state[parameter].items():
            tensors[f"{moment}.{name}"] = value
    averages = {f"average.{name}": tensor for name, tensor in average.policy.state_dict().items()}
    _check_finite(run, step, tensors | averages, several)
    size = sum(tensor.nbytes for tensor in (tensors | averages).values()) / 1e6
    acting = average.gathered()
    writers = several if config.sharded_checkpoints else None
    if not writers:
        tensors = gather(tensors)
    if acting or writers:
        with _written(target, size, writers) as draft:
            if acting:
                save_policy(acting, draft / "policy")
                state = {"format_version": FORMAT_VERSION, "step": step, "losses": dict(losses)}
                write_json(draft / "training" / "state.json", state)
            if writers:
                name = f"state_{writers.rank + 1}_of_{writers.count}.safetensors"
                write_parts(tensors, draft / "training" / name, writers.main)
            else:
                save_tensors(tensors, draft / "training" / "state.safetensors")
    if acting:
        kept = [path for path in checkpoints(run) if path.name != f"step_{decay_start(config) or -1:06d}"]
        for old in kept[config.keep_checkpoints :]:
            shutil.rmtree(old.rename(old.with_name(f".{old.name}.old")))  # hidden first: killed now, no half counts
    return target


@contextmanager
def _written(target: Path, size: float, writers: Processes | None) -> Generator[Path]:
    """Yields the folder in which a checkpoint of so many MB is written: by one process, or by all into the same one."""
    advice = f"make room and go on with --resume; {last_good(target.parent.parent)}"
    expected, failed = f"room for {size:,.0f} MB", None
    try:
        with ExitStack() as stack:
            draft = stack.enter_context(atomic_folder(target)) if not writers or writers.main else None
            if draft:
                (draft / "training").mkdir()
            shared = writers.from_main(lambda: draft) if writers else draft
            assert shared is not None
            try:
                yield shared
            except (OSError, SafetensorError) as error:
                failed = error
                if not writers:
                    raise
            if writers and (told := writers.first(str(failed) if failed else None)):
                raise CheckpointError(mismatch(str(target), expected, told, advice)) from failed
            if draft:
                write_hashes(draft)
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise
        raise CheckpointError(mismatch(str(target), expected, str(error), advice)) from error


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
    parts = Parts(sorted((folder / "training").glob("state*.safetensors")))
    own = {f"weights.{name}": tensor for name, tensor in policy.state_dict().items()}
    found = {name for name in parts.shapes if name.startswith("weights.")}
    if found != own.keys():
        advice = "the checkpoint and RUN/config.json do not belong together"
        raise CheckpointError(mismatch(f"{folder}/training", f"{len(own)} tensors", f"{len(found)} others", advice))
    for name, tensor in own.items():
        parts.fill(name, tensor)
    averages = Parts([folder / "policy" / "model.safetensors"])
    for name, tensor in average.policy.state_dict().items():
        averages.fill(name, tensor)
    moments = {name.partition(".")[0] for name in parts.shapes.keys() - own.keys()}
    for name, parameter in policy.named_parameters():
        # Fused optimizers count their steps on the device, others on the processor; and they take it that moments lie
        # in memory as their parameter does, which in a kernel of images is channels last.
        count_device = parameter.device if optimizer.defaults["fused"] else "cpu"
        state_of = optimizer.state[parameter]
        for moment in sorted(moments):
            if f"{moment}.{name}" in parts.shapes:
                counts = moment == "step"
                state_of[moment] = torch.zeros((), device=count_device) if counts else torch.empty_like(parameter)
                parts.fill(f"{moment}.{name}", state_of[moment])
    return int(state["step"]), state.get("losses")


def _check_finite(run: Path, step: int, tensors: Mapping[str, torch.Tensor], several: Processes | None) -> None:
    infinite = next((name for name, tensor in tensors.items() if not _is_finite(held(tensor))), None)
    if several:
        infinite = several.first(infinite)
    if infinite:
        advice = f"begin in a new folder with a lower optimizer_lr; step {step} is not saved, and {last_good(run)}"
        raise CheckpointError(mismatch(f"{infinite} after step {step}", "finite numbers", "others", advice))


def _is_finite(tensor: torch.Tensor) -> bool:
    # In one pass, without a mask as large as the tensor.
    return not tensor.numel() or all(math.isfinite(end) for end in torch.stack(torch.aminmax(tensor)).tolist())
