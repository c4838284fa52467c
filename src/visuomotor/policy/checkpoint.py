"""Policies on disk: a folder of config.json, model.safetensors and statistics.json. Nothing is ever unpickled.

LeRobot's folders open too; `visuomotor.policy.lerobot` reads what they hold. So do exported ones, by
`visuomotor.policy.exported`.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from visuomotor.config import DiffusionConfig, nearest
from visuomotor.errors import CheckpointError, mismatch
from visuomotor.files import HASHES, atomic_folder, find_damage, sha256, write_json
from visuomotor.policy.diffusion import DiffusionModel, DiffusionPolicy
from visuomotor.policy.normalization import Statistics
from visuomotor.serialization import from_json, to_json

FORMAT_VERSION = 1
EXPORT = "export.json"
"""What makes a policy's folder an exported one."""
GRAPHS = ("encoder", "condition", "steps", "denoiser")
"""The files of one, less what each engine appends to their names."""
ASSETS = Path(__file__).parent.parent / "assets"


def save_policy(policy: DiffusionPolicy, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Writes a policy that `load_policy` reads; the folder appears whole or not at all.

    Args:
        policy: What to save.
        folder: Where. A policy that is there already is replaced.
        dtype: Of the weights on disk; float16 halves the file.
    """
    with atomic_folder(folder) as draft:
        write_config(policy, draft)
        weights = {
            name: tensor.to("cpu", dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
            for name, tensor in policy.state_dict().items()
        }
        save_tensors(weights, draft / "model.safetensors")


def write_config(policy: DiffusionPolicy, folder: Path) -> None:
    """Writes all of a policy but its weights."""
    write_json(folder / "config.json", {"format_version": FORMAT_VERSION, "policy": to_json(policy.config)})
    write_json(folder / "statistics.json", _plain(policy.statistics))


def load_policy(source: str | Path, device: str = "cpu", revision: str | None = None) -> DiffusionPolicy:
    """Opens a policy, ready to act.

    Args:
        source: A policy's folder or a training run's (its newest checkpoint that is whole), ours or LeRobot's; an
            exported folder; the name of a policy that ships with Visuomotor; or a name on the Hugging Face hub.
        device: Where to put it.
        revision: Of a policy on the hub: a branch, tag or commit. None takes the newest.

    Returns:
        The policy in evaluation mode, float32.

    Raises:
        CheckpointError: Nothing is there, a file is damaged, or weights and config do not belong together.
    """
    folder = find_policy(source, revision)
    if (folder / EXPORT).is_file():
        from visuomotor.policy.exported import load_exported  # which imports this module

        return load_exported(folder, device)
    config, statistics, weights = _read(folder)
    # Before anything is built: a damaged config.json must not ask for more memory than there is.
    _check_weights(_shapes(config, folder), weights, folder / "model.safetensors")
    try:
        policy = DiffusionPolicy(config, statistics, pretrained=False)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    policy.load_state_dict(weights)
    return policy.to(device).eval()


def read_config(folder: Path) -> DiffusionConfig:
    """The config of the policy in a folder, ours or LeRobot's.

    Raises:
        CheckpointError: config.json is damaged, or of another program.
    """
    from visuomotor.policy.lerobot import is_lerobot, lerobot_config  # which imports this module

    path = folder / "config.json"
    content = read_json(path)
    if is_lerobot(content):
        config = lerobot_config(content, path)
    else:
        version = content.get("format_version") if isinstance(content, dict) else None
        if version != FORMAT_VERSION or "policy" not in content:
            advice = "this policy was not written by Visuomotor, or by a newer one: update"
            raise CheckpointError(mismatch(f"{path}: format_version", FORMAT_VERSION, version, advice))
        config = from_json(DiffusionConfig, content["policy"], str(path))
    if not config.input_features or not config.output_features:
        found = f"{list(config.input_features)} in, {list(config.output_features)} out"
        raise CheckpointError(mismatch(f"{path}: features", "observations in and `action` out", found, "copy it again"))
    return config


def _read(folder: Path) -> tuple[DiffusionConfig, Statistics, dict[str, torch.Tensor]]:
    """What a policy is made of."""
    from visuomotor.policy.lerobot import is_lerobot, read_lerobot

    config = read_config(folder)
    if is_lerobot(read_json(folder / "config.json")):
        return config, *read_lerobot(folder, config)
    return config, read_statistics(folder / "statistics.json"), read_tensors(folder / "model.safetensors")


def _shapes(config: DiffusionConfig, folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a policy's weights, as shapes without memory."""
    try:
        with torch.device("meta"):
            model = DiffusionModel(config, pretrained=False)
    except (RuntimeError, OverflowError, TypeError) as error:  # sizes that no tensor can have
        found, advice = str(error).partition("\n")[0], "the file is damaged: copy it again"
        raise CheckpointError(mismatch(f"{folder}/config.json", "a network of possible size", found, advice)) from error
    return {f"diffusion.{name}": tensor for name, tensor in model.state_dict().items()}


def load_weights(policy: DiffusionPolicy, source: str | Path) -> None:
    """Gives a policy the weights of another one with the same network; its normalisation stays its own.

    Args:
        policy: What is filled.
        source: As for `load_policy`.

    Raises:
        CheckpointError: The source cannot be loaded, or has another network.
    """
    own, weights = policy.state_dict(), load_policy(source).state_dict()
    for name in sorted(own.keys() | weights.keys()):
        expected, found = (tuple(s[name].shape) if name in s else "no such tensor" for s in (own, weights))
        if expected != found:
            advice = "the network must be the same: choose the preset or flags that this policy was trained with"
            raise CheckpointError(mismatch(f"{source}: {name}", expected, found, advice))
    policy.load_state_dict(weights)


def _check_weights(own: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor], path: Path) -> None:
    for name in sorted(own.keys() ^ weights.keys()):
        expected, found = ("a tensor", "none") if name in own else ("no such tensor", "one")
        raise CheckpointError(mismatch(f"{path}: {name}", expected, found, "config.json and weights do not match"))
    for name, tensor in weights.items():
        if tensor.shape != own[name].shape:
            found = tuple(tensor.shape)
            raise CheckpointError(mismatch(f"{path}: {name}", tuple(own[name].shape), found, "config.json differs"))
        if tensor.is_floating_point() != own[name].is_floating_point():
            expected = "real numbers" if own[name].is_floating_point() else "whole numbers"
            raise CheckpointError(mismatch(f"{path}: {name}", expected, tensor.dtype, "the file is damaged"))
        if not bool(tensor.isfinite().all()):
            advice = "the training diverged, or the file is damaged: take an earlier checkpoint"
            raise CheckpointError(mismatch(f"{path}: {name}", "finite numbers", "others", advice))


def find_policy(source: str | Path, revision: str | None = None) -> Path:
    """The folder that holds a policy's config.json, for anything `load_policy` takes."""
    folder = Path(source)
    shipped = sorted(path.parent.name for path in ASSETS.glob("*/model.safetensors"))
    if not folder.is_dir() and str(source) not in shipped:
        if not folder.is_absolute() and str(source).count("/") == 1:
            return _policy_in(_from_hub(str(source), revision), source)
        advice = f"shipped policies are {shipped}"
        advice += f"; did you mean {nearest(str(source), shipped)}?" if shipped else ""
        raise CheckpointError(
            mismatch(str(source), "a policy's folder, a shipped policy or a hub name", "none", advice)
        )
    if revision is not None:
        advice = "leave the revision out: only the hub has them"
        raise CheckpointError(mismatch(f"{source}: revision", None, repr(revision), advice))
    return _policy_in(folder, source) if folder.is_dir() else ASSETS / str(source)


def _policy_in(folder: Path, source: str | Path) -> Path:
    """The policy that a folder is, or the newest of the run that it is."""
    for place in (folder, folder / "policy"):  # the latter of one of a run's checkpoints
        if _is_policy(place):
            return place
    newest = newest_checkpoint(folder, part="policy")
    found = newest / "policy" if newest is not None else _newest_of_lerobot(folder)
    if found is not None:
        return found
    advice = "pass a policy's folder, or that of a run which has written a checkpoint"
    names = sorted(path.name for path in folder.iterdir())[:8]
    raise CheckpointError(mismatch(str(source), "config.json and model.safetensors, or checkpoints/", names, advice))


def _is_policy(folder: Path) -> bool:
    weights = any((folder / name).is_file() for name in ("model.safetensors", EXPORT))
    return (folder / "config.json").is_file() and weights


def weights_sha256(folder: Path) -> str:
    """Tells the weights in a policy's folder from any others; of an export, by the hashes of all its files."""
    return sha256(folder / (HASHES if (folder / EXPORT).is_file() else "model.safetensors"))


def _newest_of_lerobot(folder: Path) -> Path | None:
    """The policy in a checkpoint or run of LeRobot's; where it has averaged the weights, those."""
    checkpoints = [path for path in folder.glob("checkpoints/*") if path.name.isdecimal()]
    checkpoints.sort(key=lambda path: int(path.name), reverse=True)
    for checkpoint in (folder, *checkpoints, folder / "checkpoints" / "last"):
        for name in ("pretrained_model_ema", "pretrained_model"):
            if _is_policy(checkpoint / name):
                return checkpoint / name
    return None


def checkpoints(run: Path) -> list[Path]:
    """A run's checkpoints, the highest step first. Drafts begin with a dot and do not count."""
    marks = (HASHES, "policy/config.json")
    found = [path for path in run.glob("checkpoints/step_*") if any((path / mark).is_file() for mark in marks)]
    return sorted(found, key=lambda path: (len(path.name), path.name), reverse=True)  # a seventh digit counts too


def newest_checkpoint(run: Path, part: str = "") -> Path | None:
    """The checkpoint with the highest step that is as it was written; None if the run has no checkpoint.

    One that has been cut short or altered is passed over, which is said on the standard error. Checkpoints from before
    there were hashes are taken as they are.

    Args:
        run: The folder of a run.
        part: Only the files of this folder in a checkpoint are read and compared: `policy`, or "" for all.

    Raises:
        CheckpointError: There are checkpoints, and none is good.
    """
    damaged = []
    for path in checkpoints(run):
        damage = find_damage(path, part)
        if damage is None:
            for other, found in damaged:
                print(f"{other}: {found}; {path.name} is used in its place", file=sys.stderr)
            return path
        damaged.append((path, damage))
    if damaged:
        found = "; ".join(f"{path.name}: {damage}" for path, damage in damaged)
        advice = "copy the run again, or begin in a new folder"
        raise CheckpointError(mismatch(f"{run}/checkpoints", "one that is as it was written", found, advice))
    return None


def _from_hub(name: str, revision: str | None) -> Path:
    folder = _download(name, revision, ["*.json", "*.safetensors"])
    if not (folder / EXPORT).is_file():
        return folder
    told = read_json(folder / EXPORT)
    if not isinstance(told, dict) or told.get("engine") == "torch":
        advice = "a torch export is a program, and could do anything: take an export to onnx or openvino"
        raise CheckpointError(mismatch(name, "a policy that is no program", "another", advice))
    kinds = ("onnx", "onnx.data", "xml", "bin")
    # act.py is never run here, but has a hash.
    return _download(name, revision, ["*.json", "act.py", *(f"{graph}.{kind}" for graph in GRAPHS for kind in kinds)])


def _download(name: str, revision: str | None, wanted: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except Exception as error:  # the hub's client raises many kinds, all of them meaning this
        advice = "check the name and the network, or pass the path of a downloaded folder"
        found = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise CheckpointError(mismatch(name, "a folder here, or a policy on the hub", found, advice)) from error


def read_json(path: Path) -> Any:
    """A JSON file's content.

    Raises:
        CheckpointError: It is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(mismatch(str(path), "a JSON file", "none", "copy the whole folder again")) from None
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no JSON, no UTF-8, a number of 5,000 digits
        raise CheckpointError(mismatch(str(path), "JSON", str(error), "the file is damaged: copy it again")) from error


def save_tensors(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file that others may read; the library itself makes it the owner's alone."""
    save_file(tensors, path, metadata)
    path.chmod(0o666 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """A safetensors file's content.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(
            mismatch(str(path), "a safetensors file", "none", "copy the whole folder again")
        ) from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(mismatch(str(path), "safetensors", str(error), "the file is damaged")) from error


def read_statistics(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """The statistics that normalise, by feature and name.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    content = read_json(path)
    try:
        return {
            name: {key: np.asarray(value, dtype=np.float64) for key, value in values.items()}
            for name, values in content.items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        expected = "numbers by feature and statistic"
        raise CheckpointError(
            mismatch(str(path), expected, str(error), "the file is damaged: copy it again")
        ) from error


def _plain(statistics: Any) -> Any:
    return {name: {key: np.asarray(v).tolist() for key, v in values.items()} for name, values in statistics.items()}
