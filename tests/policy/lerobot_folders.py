"""Folders as LeRobot writes them: its own fixtures made whole, and small ones in the old and the new layout."""

import json
import lzma
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.policy.lerobot_export import save_lerobot
from visuomotor.policy.normalization import NEEDED

from .lerobot_case import closed_form
from .small import observation, small_batch, small_config, small_policy

CONFIG, BEFORE, AFTER = "config.json", "policy_preprocessor.json", "policy_postprocessor.json"
WEIGHTS = "model.safetensors"
NOISE = torch.randn(3, 8, 3, generator=torch.Generator().manual_seed(0))
WITH_PROCESSORS = ("image", "two_cameras", "state")
GENERATIONS = ("config.json", "config_2025_02.json", "config_2024_11.json")
LEGACY = [
    (name, config)
    for name, configs in (("policy_legacy", GENERATIONS), ("policy_legacy_state", GENERATIONS[::2]))
    for config in configs
]


def make_fixture(source: Path, target: Path, config: str = "config.json") -> Path:
    """A folder of `policies/` as it lay on LeRobot's disk: weights unpacked, or made from their closed form."""
    if (source / "lerobot_checkpoint").is_dir():
        shutil.copytree(source / "lerobot_checkpoint", target, copy_function=shutil.copyfile)
        if not (target / "model.safetensors").exists():
            keys = json.loads((source / "state_dict_keys.json").read_text())
            save_file({name: made(name, torch.Size(shape)) for name, (_, shape) in keys.items()}, target / WEIGHTS)
        return target
    target.mkdir(parents=True)
    shutil.copyfile(source / config, target / "config.json")
    packed = source / "model.safetensors.xz"
    weights = lzma.decompress(packed.read_bytes()) if packed.exists() else (source / WEIGHTS).read_bytes()
    (target / WEIGHTS).write_bytes(weights)
    return target


def made(name: str, shape: torch.Size) -> Tensor:
    """The value of a tensor that the fixtures do not hold."""
    if not name.endswith("pos_grid"):
        return closed_form(name, shape)
    side = np.linspace(-1, 1, round(shape[0] ** 0.5))
    return torch.from_numpy(np.stack([grid.ravel() for grid in np.meshgrid(side, side)], axis=1)).float()


def reference(source: Path) -> dict[str, Tensor]:
    """What LeRobot computed for one folder of `policies/`."""
    name = "tensors" if (source / "tensors.safetensors").exists() else "reference"
    return load_file(source / f"{name}.safetensors")


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, without the beginning."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def small(**changes: Any) -> DiffusionPolicy:
    """A policy that LeRobot can have, too."""
    return small_policy(small_config(environment=4, **changes)).eval()


def actions(policy: DiffusionPolicy) -> Tensor:
    """What a small policy does, (3, Ta, 3)."""
    policy = policy.with_sampler("DDIM", 4)
    return policy.predict_action_chunk(observation(small_batch(policy.config)), NOISE)


def write_legacy(policy: DiffusionPolicy, folder: Path, of_2024: bool = False) -> Path:
    """A policy as LeRobot wrote it before it had processors: statistics among the weights."""
    save_lerobot(policy, folder)
    for path in folder.glob("policy_*"):
        path.unlink()
    config, weights = policy.config, load_file(folder / WEIGHTS)
    modes = {}
    for name, feature in (config.input_features | config.output_features).items():
        modes[name] = config.normalization_mapping.get(feature.type, "IDENTITY")
        places = ("normalize_targets", "unnormalize_outputs") if name == "action" else ("normalize_inputs",)
        for place in places:
            for key in NEEDED[modes[name]]:
                values = torch.from_numpy(np.float32(policy.statistics[name][key]))
                weights[f"{place}.buffer_{name.replace('.', '_')}.{key}"] = values
    save_file(weights, folder / WEIGHTS)
    if of_2024:
        edit("config.json", lambda content: in_words_of_2024(content, modes))(folder)
    return folder


def in_words_of_2024(content: dict[str, Any], modes: dict[str, str]) -> None:
    del content["type"], content["normalization_mapping"], content["drop_n_last_frames"]
    for place in ("input", "output"):
        features = content.pop(f"{place}_features")
        content[f"{place}_shapes"] = {name: feature["shape"] for name, feature in features.items()}
        named = {name: modes[name].lower() for name in features if modes[name] != "IDENTITY"}
        content[f"{place}_normalization_modes"] = named


def edit(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Changes a JSON file of a folder in place."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return damage


def edit_tensors(name: str, change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    """Changes a safetensors file of a folder in place."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name)

    return damage
