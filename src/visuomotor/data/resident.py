"""Columns and frames that lie on a GPU, and batches gathered there: what crosses the bus is the rows' numbers."""

import sys
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from visuomotor.data.cache import in_bytes
from visuomotor.data.dataset import Dataset
from visuomotor.data.frames import Frames
from visuomotor.data.loading import send

SHARE = 0.5
"""Of the GPU's free memory that demonstrations may take; the rest is for weights, moments and activations."""
BLOCK = 2**26
"""Bytes of frames that are read and copied at a time."""


class Resident:
    """A data set's windows, gathered on the device where its columns and frames lie.

    Args:
        dataset: Demonstrations. Frames that stay encoded are decoded once, here.
        names: The features in use.
        device: Where they are to lie.
    """

    def __init__(self, dataset: Dataset, names: Iterable[str], device: str):
        self._dataset, self._device = dataset, device
        self._values = {name: _copy(dataset.values(name), device) for name in names}

    def batch(self, rows: np.ndarray, steps: dict[str, list[int]]) -> dict[str, Tensor]:
        """What `Dataset.batch` gives, bit for bit and in the same order of memory, on the device.

        The host computes rows and padding, and waits for nothing.
        """
        batch = {}
        for name, (wanted, is_pad) in self._dataset.windows(rows, steps).items():
            values = self._values[name]
            places = send(torch.from_numpy(wanted.reshape(-1)), self._device)
            gathered = values.index_select(0, places).unflatten(0, wanted.shape)
            batch[name] = gathered.movedim(-1, -3) if name in self._dataset.frames else gathered
            batch[f"{name}_is_pad"] = send(torch.from_numpy(is_pad), self._device)
        return batch


def place(dataset: Dataset, names: Iterable[str], device: str, *, wanted: bool) -> Dataset | Resident:
    """The data set on a GPU if it is wanted there and fits; else itself. Standard error says which.

    Args:
        dataset: Demonstrations.
        names: The features in use.
        device: A CUDA device.
        wanted: Whether to try.
    """
    names = list(names)
    size = sum(_size(dataset.values(name)) for name in names)
    room = SHARE * torch.cuda.mem_get_info(device)[0]
    told = f"{in_bytes(size)} of frames and columns"
    if wanted and size <= room:
        print(f"{told} lie on {device}; --data-device cpu leaves them in the processor's memory", file=sys.stderr)
        return Resident(dataset, names, device)
    reason = f"more than {in_bytes(int(room))}, half of what is free on {device}" if wanted else "--data-device cpu"
    print(f"{told} stay in the processor's memory ({reason}): each batch is copied ahead", file=sys.stderr)
    return dataset


def _size(values: Frames) -> int:
    """In bytes."""
    return int(np.prod(values.shape)) * values.dtype.itemsize


def _copy(values: Frames, device: str) -> Tensor:
    """The same array on the device, block by block: of mapped or encoded frames no second copy is made."""
    there = torch.empty(values.shape, dtype=getattr(torch, values.dtype.name), device=device)
    count = max(1, BLOCK * len(values) // max(1, _size(values)))
    for first in range(0, len(values), count):
        # A copy: a mapped array is read-only, of which torch would make no tensor.
        there[first : first + count] = torch.from_numpy(np.array(values[first : first + count]))
    return there
