"""Tensors in safetensors files: one file of whole tensors, or one of each process's parts.

A file of parts notes where each lies in its whole, so that any number of processes can read what any other wrote.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from visuomotor.errors import CheckpointError, mismatch
from visuomotor.policy.checkpoint import save_tensors
from visuomotor.training.sharding import held, is_sharded, start

NOTE = "parts"
"""In a file's metadata, as JSON: for each tensor the `shape` of the whole, and where the part of it has its `start`."""

Shape = tuple[int, ...]


def write_parts(tensors: Mapping[str, Tensor], path: Path, main: bool) -> None:
    """Writes what this process holds of some tensors; those that all processes hold, only if it is the main one."""
    mine = {name: tensor for name, tensor in tensors.items() if is_sharded(tensor) or main}
    notes = {name: {"shape": list(tensor.shape), "start": list(start(tensor))} for name, tensor in mine.items()}
    content = {name: held(tensor).detach().cpu().contiguous() for name, tensor in mine.items()}
    save_tensors(content, path, {NOTE: json.dumps(notes)})


@dataclass(frozen=True)
class _Part:
    path: Path
    start: Shape
    size: Shape


class Parts:
    """Opens such files, of as many processes as there were.

    Args:
        paths: All files that belong together.

    Attributes:
        shapes: Of the whole tensors in them, by name.

    Raises:
        CheckpointError: One is missing or damaged.
    """

    def __init__(self, paths: Sequence[Path]):
        self.shapes: dict[str, Shape] = {}
        self._paths, self._files = paths, {path: _open(path) for path in paths}
        self._parts: dict[str, list[_Part]] = {}
        for path, file in self._files.items():
            notes = _notes(path, file.metadata())
            for name in file.keys():  # noqa: SIM118  # no mapping
                size = tuple(file.get_slice(name).get_shape())
                shape, begin = notes.get(name, (size, (0,) * len(size)))
                fits = len(shape) == len(begin) == len(size)
                if not fits or self.shapes.setdefault(name, shape) != shape:
                    found, advice = f"{size} at {begin} of {shape}", "the files do not belong together"
                    raise CheckpointError(mismatch(f"{path}: {name}", "a part of one tensor", found, advice))
                self._parts.setdefault(name, []).append(_Part(path, begin, size))

    def fill(self, name: str, target: Tensor) -> None:
        """Fills a tensor in place, or what this process holds of it; no more of the files is read.

        Raises:
            CheckpointError: The files hold no tensor of that name and shape, or only some parts of it.
        """
        if self.shapes.get(name) != tuple(target.shape):
            advice = "the checkpoint and RUN/config.json do not belong together"
            found = self.shapes.get(name, "none")
            raise CheckpointError(mismatch(f"{self._paths[0]}: {name}", tuple(target.shape), found, advice))
        own, first, filled = held(target).detach(), start(target), 0
        for part in self._parts[name]:
            ends = zip(first, own.shape, part.start, part.size, strict=True)
            both = [(max(a, b), min(a + size, b + length)) for a, size, b, length in ends]
            if any(low >= high for low, high in both):
                continue
            here = tuple(slice(low - a, high - a) for (low, high), a in zip(both, first, strict=True))
            there = tuple(slice(low - b, high - b) for (low, high), b in zip(both, part.start, strict=True))
            file = self._files[part.path]
            complete = all(high - low == length for (low, high), length in zip(both, part.size, strict=True))
            values = file.get_tensor(name) if complete else file.get_slice(name)[there]
            own[here].copy_(values)
            filled += values.numel()
        if filled != own.numel():
            advice = "a file of it is missing, or from another checkpoint"
            expected, found = f"{own.numel()} numbers", filled
            raise CheckpointError(mismatch(f"{self._paths[0].parent}: {name}", expected, found, advice))


def _open(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except FileNotFoundError:
        told = mismatch(str(path), "a safetensors file", "none", "copy the whole folder again")
        raise CheckpointError(told) from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(mismatch(str(path), "safetensors", str(error), "the file is damaged")) from error


def _notes(path: Path, metadata: Mapping[str, str] | None) -> dict[str, tuple[Shape, Shape]]:
    try:
        content = json.loads((metadata or {}).get(NOTE, "{}"))
        return {name: (_shape(note["shape"]), _shape(note["start"])) for name, note in content.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        told = mismatch(f"{path}: {NOTE}", "shapes and places by name", repr(error), "the file is damaged")
        raise CheckpointError(told) from error


def _shape(numbers: Any) -> Shape:
    return tuple(torch.Size(numbers))
