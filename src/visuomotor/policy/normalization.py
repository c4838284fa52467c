"""Data units to network units and back, by the statistics of the demonstrations."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from visuomotor.config import DiffusionConfig
from visuomotor.errors import CheckpointError, mismatch

Statistics = Mapping[str, Mapping[str, np.ndarray]]

NEEDED = {"MIN_MAX": ("min", "max"), "MEAN_STD": ("mean", "std"), "IDENTITY": ()}


class Normalizer(nn.Module):
    """Every feature is (x - offset) / scale; the inverse exists for actions.

    MIN_MAX maps [min, max] to [-1, 1], MEAN_STD to mean 0 and deviation 1. A dimension that never changed in the
    demonstrations is only shifted, so that a stray observation does not explode (LeRobot divides by 1e-8). The inverse
    gives its value back whatever the network says (as LeRobot's does), so that the robot does not move it either.

    Raises:
        CheckpointError: A statistic that the mode needs is missing, not finite, or of another shape.
    """

    def __init__(self, config: DiffusionConfig, statistics: Statistics):
        super().__init__()
        self.places: dict[str, int] = {}
        for place, (name, feature) in enumerate((config.input_features | config.output_features).items()):
            mode = config.normalization_mapping.get(feature.type, "IDENTITY")
            shape = (feature.shape[0], 1, 1) if feature.type == "VISUAL" else feature.shape
            values = [_statistic(statistics, name, key, shape) for key in NEEDED[mode]]
            offset, scale = torch.zeros(shape), torch.ones(shape)
            held, constant = torch.zeros(shape, dtype=torch.bool), offset
            if mode == "MIN_MAX":
                low, high = values
                if bool((high < low).any()):
                    place, expected = f"statistics of {name}: max", f"{low.tolist()} (min) or more"
                    raise CheckpointError(mismatch(place, expected, high.tolist(), "the statistics are damaged"))
                held, constant = high == low, low
                scale = torch.where(held, 1.0, (high - low) / 2)
                offset = low + scale
            elif mode == "MEAN_STD":
                offset, held, constant = values[0], values[1] <= 0, values[0]
                scale = torch.where(held, 1.0, values[1] + 1e-8)
            self.places[name] = place
            self.register_buffer(f"offset_{place}", offset, persistent=False)
            self.register_buffer(f"scale_{place}", scale, persistent=False)
            self.register_buffer(f"inverse_offset_{place}", torch.where(held, constant, offset), persistent=False)
            self.register_buffer(f"inverse_scale_{place}", torch.where(held, 0.0, scale), persistent=False)

    def forward(self, name: str, values: Tensor) -> Tensor:
        """(..., *shape) in data units -> network units. Images as uint8 count as 0 to 1."""
        offset, scale = self.constants(name)
        if values.dtype == torch.uint8:
            return _normalize_bytes(values, offset * 255, scale * 255)
        if values.is_floating_point():
            values = values.to(offset.dtype)  # simulators give float64
        return (values - offset) / scale

    def inverse(self, name: str, values: Tensor) -> Tensor:
        """Network units -> data units."""
        offset, scale = self.constants(name, "inverse_")
        return values * scale + offset

    def constants(self, name: str, way: Literal["", "inverse_"] = "") -> tuple[Tensor, Tensor]:
        """Offset and scale of a feature, there or back."""
        place = self.places[name]
        return getattr(self, f"{way}offset_{place}"), getattr(self, f"{way}scale_{place}")


def _normalize_bytes(images: Tensor, offset: Tensor, scale: Tensor) -> Tensor:
    """The same for (..., C, H, W) bytes: whole rows of pixels at a time, with channels last in memory."""
    rows = images.movedim(-3, -1).to(offset.dtype)  # (..., H, W, C), a copy in any case
    width = rows.shape[-2]
    rows = rows.flatten(-2).sub_(offset.flatten().repeat(width)).div_(scale.flatten().repeat(width))
    return rows.unflatten(-1, (width, -1)).movedim(-1, -3)


def _statistic(statistics: Statistics, name: str, key: str, shape: tuple[int, ...]) -> Tensor:
    found = statistics.get(name, {}).get(key)
    if found is None:
        known = {feature: sorted(values) for feature, values in statistics.items()}
        advice = "compute the statistics of the data set anew, or use another normalization_mapping"
        raise CheckpointError(mismatch(f"statistics of {name}: {key}", f"numbers of shape {shape}", known, advice))
    value = torch.as_tensor(np.asarray(found, dtype=np.float32))
    if value.numel() != int(np.prod(shape)) or not bool(value.isfinite().all()):
        found = tuple(value.shape) if value.numel() != int(np.prod(shape)) else value.tolist()
        advice = "the statistics belong to other data, or the data is damaged"
        raise CheckpointError(mismatch(f"statistics of {name}: {key}", f"finite numbers of {shape}", found, advice))
    return value.reshape(shape)
