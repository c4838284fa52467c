"""Push-T's geometry: the block's corners from its pose, and the reflection that maps the task onto itself.

Positions are in the simulator's pixels, x to the right and y down, 0 to 512. The goal pose (256, 256, pi / 4) and the
T are both symmetric, so that a demonstration reflected on the diagonal x + y = 512 is a demonstration again.
"""

import numpy as np
import torch

from visuomotor.errors import ConfigError, mismatch

SIZE = 512.0
GOAL = np.array([256, 256, np.pi / 4])
"""The target's x, y and angle."""

# Corners in the block's own frame, in the order of gym-pusht's `get_keypoints`:
#   0───────────1
#   3───4───5───2
#       7───6
CORNERS = np.array([(-60, 0), (60, 0), (60, 30), (-60, 30), (-15, 30), (15, 30), (15, 120), (-15, 120)], np.float64)


def block_keypoints(pose: np.ndarray) -> np.ndarray:
    """LeRobot's `observation.environment_state` from the block's pose, bit for bit.

    Args:
        pose: (N, 3), the block's x, y and angle in radians.

    Returns:
        (N, 16) float32: x0, y0, x1, y1, ... of the eight corners.
    """
    pose = np.asarray(pose, np.float64)  # float32 would miss LeRobot's values by a rounding
    cos, sin = np.cos(pose[:, 2, None]), np.sin(pose[:, 2, None])
    x = pose[:, 0, None] + (CORNERS[:, 0] * cos - CORNERS[:, 1] * sin)
    y = pose[:, 1, None] + (CORNERS[:, 0] * sin + CORNERS[:, 1] * cos)
    return np.stack([x, y], axis=-1).reshape(len(pose), 16).astype(np.float32)


def block_pose(keypoints: np.ndarray) -> np.ndarray:
    """The block's pose from its corners: `block_keypoints` backwards.

    Args:
        keypoints: (N, 16), LeRobot's `observation.environment_state`.

    Returns:
        (N, 3) float64: x, y, and the angle in radians from -pi to pi.
    """
    corners = np.asarray(keypoints, np.float64).reshape(-1, 8, 2)
    along = corners[:, 1] - corners[:, 0]  # the bar's upper edge, in whose middle the block's position is
    return np.column_stack([corners[:, :2].mean(axis=1), np.arctan2(along[:, 1], along[:, 0])])


def mirror(batch: dict[str, torch.Tensor], where: torch.Tensor) -> dict[str, torch.Tensor]:
    """Reflects some samples of a batch on the task's axis of symmetry: (x, y) becomes (512 - y, 512 - x).

    Corners change places as well, so that each slot of the environment state keeps its meaning.

    Args:
        batch: What `Dataset.batch` gave; padding masks stay as they are.
        where: (B,) bool, the samples to reflect.

    Raises:
        ConfigError: An observation whose reflection is not known.
    """
    mirrored = dict(batch)
    rows = where.nonzero()[:, 0] if where.device.type == "cpu" else None  # a GPU's host would wait to learn them
    for name, value in batch.items():
        if name.endswith("_is_pad"):
            continue
        if rows is None:
            mirrored[name] = _reflect_where(name, value, where)
        else:
            mirrored[name] = value.clone()
            mirrored[name][rows] = _reflect(name, value[rows])
    return mirrored


def _reflect_where(name: str, value: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Reflects all samples, and takes the chosen ones."""
    return torch.where(where.view(-1, *[1] * (value.dim() - 1)), _reflect(name, value), value)


def _reflect(name: str, value: torch.Tensor) -> torch.Tensor:
    if name in ("observation.state", "action"):
        return SIZE - value.flip(-1)
    if name == "observation.environment_state":
        pairs = value.unflatten(-1, (4, 2, 2))  # the corners 2 k and 2 k + 1 change places
        return (SIZE - pairs.flip(-2, -1)).flatten(-3)
    if name.startswith("observation.image"):
        return value.transpose(-1, -2).flip(-1, -2)  # pixel (r, c) goes to (W - 1 - c, H - 1 - r)
    raise ConfigError(mismatch(name, "one of Push-T's features", "another", "set augmentation to none"))
