"""Policies on disk: a folder of config.json, model.safetensors and statistics.json. Nothing is ever unpickled."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from visuomotor.config import DiffusionConfig, from_json, nearest, to_json
from visuomotor.errors import CheckpointError, mismatch
from visuomotor.files import atomic_folder, write_json
from visuomotor.policy.diffusion import DiffusionPolicy

FORMAT_VERSION = 1
ASSETS = Path(__file__).parent.parent / "assets"


def save_policy(policy: DiffusionPolicy, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Writes a policy that `load_policy` reads; the folder appears whole or not at all.

    Args:
        policy: What to save.
        folder: Where. A policy that is there already is replaced.
        dtype: Of the weights on disk; float16 halves the file.
    """
    with atomic_folder(folder) as draft:
        write_json(draft / "config.json", {"format_version": FORMAT_VERSION, "policy": to_json(policy.config)})
        write_json(draft / "statistics.json", _plain(policy.statistics))
        weights = {
            name: tensor.to("cpu", dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
            for name, tensor in policy.state_dict().items()
        }
        save_tensors(weights, draft / "model.safetensors")


def load_policy(source: str | Path, device: str = "cpu") -> DiffusionPolicy:
    """Opens a policy, ready to act.

    Args:
        source: A policy's folder; a training run's folder (its newest checkpoint); the name of a policy that ships with
            Visuomotor; or a name on the Hugging Face hub.
        device: Where to put it.

    Returns:
        The policy in evaluation mode, float32.

    Raises:
        CheckpointError: Nothing is there, a file is damaged, or weights and config do not belong together.
    """
    folder = find_policy(source)
    content = read_json(folder / "config.json")
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION or "policy" not in content:
        advice = "this policy was not written by Visuomotor, or by a newer one: update"
        raise CheckpointError(mismatch(f"{folder}/config.json: format_version", FORMAT_VERSION, version, advice))
    config = from_json(DiffusionConfig, content["policy"], f"{folder}/config.json")
    statistics = _read_statistics(folder / "statistics.json")
    policy = DiffusionPolicy(config, statistics, pretrained=False)
    load_weights(policy, folder / "model.safetensors")
    return policy.to(device).eval()


def load_weights(policy: DiffusionPolicy, path: Path) -> None:
    """Fills a policy from a file; every tensor must be there, fit, and be known."""
    weights = read_tensors(path)
    own = policy.state_dict()
    for name in sorted(own.keys() ^ weights.keys()):
        expected, found = ("a tensor", "none") if name in own else ("no such tensor", "one")
        raise CheckpointError(mismatch(f"{path}: {name}", expected, found, "config.json and weights do not match"))
    for name, tensor in weights.items():
        if tensor.shape != own[name].shape:
            found = tuple(tensor.shape)
            raise CheckpointError(mismatch(f"{path}: {name}", tuple(own[name].shape), found, "config.json differs"))
    policy.load_state_dict(weights)


def find_policy(source: str | Path) -> Path:
    """The folder that holds a policy's config.json, for anything `load_policy` takes."""
    folder = Path(source)
    if folder.is_dir():
        if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
            return folder
        newest = newest_checkpoint(folder)
        if newest is not None:
            return newest / "policy"
        advice = "pass a policy's folder, or that of a run which has written a checkpoint"
        found = sorted(path.name for path in folder.iterdir())[:8]
        raise CheckpointError(
            mismatch(str(source), "config.json and model.safetensors, or checkpoints/", found, advice)
        )
    shipped = sorted(path.parent.name for path in ASSETS.glob("*/model.safetensors"))
    if str(source) in shipped:
        return ASSETS / str(source)
    if not folder.is_absolute() and str(source).count("/") == 1:
        return _from_hub(str(source))
    advice = f"shipped policies are {shipped}" + (f"; did you mean {nearest(str(source), shipped)}?" if shipped else "")
    raise CheckpointError(mismatch(str(source), "a policy's folder, a shipped policy or a hub name", "none", advice))


def newest_checkpoint(run: Path) -> Path | None:
    """The checkpoint of a run with the highest step, or None. Drafts begin with a dot and do not count."""
    found = [path for path in run.glob("checkpoints/step_*") if (path / "policy" / "config.json").is_file()]
    return max(found, key=lambda path: (len(path.name), path.name), default=None)  # a seventh digit counts too


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
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
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(mismatch(str(path), "JSON", str(error), "the file is damaged: copy it again")) from error


def save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Writes a safetensors file that others may read; the library itself makes it the owner's alone."""
    save_file(tensors, path)
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
    except SafetensorError as error:
        raise CheckpointError(mismatch(str(path), "safetensors", str(error), "the file is damaged")) from error


def _read_statistics(path: Path) -> dict[str, dict[str, np.ndarray]]:
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
