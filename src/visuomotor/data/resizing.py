"""Frames made smaller, or larger, before they are stored."""

import numpy as np
import torch
from torch.nn.functional import interpolate


def resize(frames: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Bilinear with antialiasing, as the policy resizes what it acts on, rounded to whole grey levels.

    Args:
        frames: (n, H, W, C) uint8.
        shape: (h, w).

    Returns:
        (n, h, w, C) uint8.
    """
    if frames.shape[1:3] == shape:
        return frames
    made = np.empty((len(frames), *shape, frames.shape[3]), np.uint8)
    for place, frame in zip(made, frames, strict=True):  # one by one: floats take four times the memory
        image = torch.from_numpy(np.ascontiguousarray(frame.transpose(2, 0, 1), np.float32))[None]
        small = interpolate(image, shape, mode="bilinear", antialias=True)[0]
        place[...] = np.rint(small.numpy()).transpose(1, 2, 0)
    return made
