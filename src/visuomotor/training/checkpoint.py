"""What a run needs to go on exactly where it stopped, in safetensors and JSON.

RUN/config.json                             the recipe and the data's source
RUN/metrics.jsonl                           one line every `log_every` steps
RUN/checkpoints/step_000050/policy/         the averaged weights: what acts, and what `load_policy` opens
RUN/checkpoints/step_000050/training/       the weights themselves, the optimizer's moments, the step

Everything random in step k (the windows, crops, noise) comes from the seed and k alone. So the seed and the step are
the whole state of the random numbers and of the data's order.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from visuomotor.config import Recipe, from_json, to_json
from visuomotor.errors import CheckpointError, ConfigError, mismatch
from visuomotor.files import atomic_folder, write_json
from visuomotor.policy.checkpoint import load_weights, read_json, read_tensors, save_policy, save_tensors
from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.training.average import WeightAverage

FORMAT_VERSION = 1
FREE = ("steps", "save_every", "keep_checkpoints", "log_every", "compile", "threads", "device")


@dataclass(frozen=True)
class Run:
    """What RUN/config.json holds."""

    recipe: Recipe
    source: str


def write_run(folder: Path, run: Run) -> None:
    """Notes what a run trains, and on what."""
    content = {"format_version": FORMAT_VERSION, "source": run.source, "recipe": to_json(run.recipe)}
    write_json(folder / "config.json", content)


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
    return Run(from_json(Recipe, content["recipe"], str(path)), content["source"])


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
    run: Path, step: int, policy: DiffusionPolicy, average: WeightAverage, optimizer: torch.optim.Optimizer, keep: int
) -> Path:
    """Writes the state after `step` steps; it appears whole or not at all. Only the newest `keep` stay.

    Returns:
        The checkpoint's folder.
    """
    target = run / "checkpoints" / f"step_{step:06d}"
    tensors = {f"weights.{name}": tensor for name, tensor in policy.state_dict().items()}
    for name, parameter in policy.named_parameters():
        for moment, value in optimizer.state[parameter].items():
            tensors[f"{moment}.{name}"] = value
    with atomic_folder(target) as draft:
        save_policy(average.policy, draft / "policy")
        (draft / "training").mkdir()
        on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_tensors(on_cpu, draft / "training" / "state.safetensors")
        write_json(draft / "training" / "state.json", {"format_version": FORMAT_VERSION, "step": step})
    for old in sorted((run / "checkpoints").glob("step_*"))[:-keep]:
        shutil.rmtree(old)
    return target


def load_checkpoint(
    folder: Path, policy: DiffusionPolicy, average: WeightAverage, optimizer: torch.optim.Optimizer
) -> int:
    """Puts a checkpoint back into a fresh policy, average and optimizer.

    Returns:
        The step to go on with.

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
        on_device = {m: v.clone() if m == "step" else v.to(parameter.device) for m, v in moments.items()}
        optimizer.state[parameter] = on_device
    return int(state["step"])


def cut_metrics(path: Path, step: int) -> None:
    """Drops the lines of steps that a resumed run will take again."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines() if _step(line) <= step]
        draft = path.with_suffix(".tmp")
        draft.write_text("".join(f"{line}\n" for line in lines))
        draft.replace(path)


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")  # a line that was cut short when the run was killed
