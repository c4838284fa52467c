"""What LeRobot computed for one policy, and our policy with the same weights.

The weights are not stored: each number follows from the tensor's name and its place in it, so that LeRobot's process
and ours fill their networks alike.
"""

import dataclasses
import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from visuomotor.config import DiffusionConfig
from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.serialization import from_json

REFERENCE = Path(__file__).parent / "reference"
TOLERANCE = 1e-5


@dataclass
class Case:
    """One policy and its reference."""

    policy: DiffusionPolicy
    """Ours, in evaluation mode, with the reference's weights."""
    tensors: dict[str, Tensor]
    """`raw.*`, `pre.*`, `in.*`, `out.*`, `sample.*` and `grad_*` as LeRobot computed them."""
    info: dict[str, dict[str, float]]
    """`grad_l2_eval`, `grad_sum_eval` (and `_train`): each parameter's gradient norm and sum."""
    shapes: dict[str, list[int]]
    """LeRobot's state_dict."""

    def of(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin so, without the beginning."""
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}


def load_case(folder: Path) -> Case:
    """Reads a folder of `policies/`, or one written by `make_reference.py`."""
    content = json.loads((folder / "lerobot_checkpoint" / "config.json").read_text())
    known = {spec.name for spec in dataclasses.fields(DiffusionConfig)}
    config = from_json(DiffusionConfig, {name: content[name] for name in known & content.keys()}, str(folder))
    statistics: dict[str, dict[str, np.ndarray]] = {}
    for name, values in load_file(folder / "stats.safetensors").items():
        feature, statistic = name.split("/")
        statistics.setdefault(feature, {})[statistic] = values.numpy()
    policy = DiffusionPolicy(config, statistics).eval()
    fill(policy)
    shapes = {name: shape for name, (_, shape) in json.loads((folder / "state_dict_keys.json").read_text()).items()}
    info = json.loads((folder / "info.json").read_text())
    return Case(policy, load_file(folder / "tensors.safetensors"), info, shapes)


def fill(policy: torch.nn.Module) -> None:
    """Gives every parameter its closed-form value. `pos_grid` is computed by SpatialSoftmax itself."""
    own = policy.state_dict()
    policy.load_state_dict({n: t if n.endswith("pos_grid") else closed_form(n, t.shape) for n, t in own.items()})


def closed_form(name: str, shape: torch.Size) -> Tensor:
    """crc32 of the name above the flat index, mixed by splitmix64, to [-1, 1), scaled by the kind of tensor."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    z = (np.uint64(zlib.crc32(name.encode())) << np.uint64(32)) | np.arange(shape.numel(), dtype=np.uint64)
    z += np.uint64(0x9E3779B97F4A7C15)  # unsigned 64-bit numbers of numpy wrap around, as wanted
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    s = 2 * ((z >> np.uint64(40)).astype(np.float64) * 2.0**-24) - 1
    if len(shape) >= 2:
        s = s * np.sqrt(3 / np.prod(shape[1:]))
    elif name.endswith("running_var"):
        s = 1 + 0.25 * s
    elif name.endswith(".weight"):
        s = 1 + 0.2 * s
    else:  # biases and running means
        s = 0.1 * s
    return torch.from_numpy(s.astype(np.float32)).reshape(shape)


def error(found: Tensor, expected: Tensor) -> float:
    """max |a - b| / max(1, max |b|): what equality holds under TOLERANCE."""
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1)).item()


def largest_error(found: Tensor, expected: Tensor) -> float:
    """The largest `error` of the entries along the first axis, such as the steps of a trajectory."""
    return max(error(a, b) for a, b in zip(found, expected, strict=True))
