"""robomimic's demonstrations: an HDF5 file with data/demo_0, data/demo_1, ..., each with actions and obs/*."""

import json
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from visuomotor.data.demonstrations import COPY_AGAIN, Demonstrations, choose_episodes, frame_numbers
from visuomotor.data.frames import Camera, file_identity, fingerprint
from visuomotor.errors import DatasetError, mismatch

FPS = 20.0  # robosuite's rate, where the file does not say
ENVIRONMENT = "object"
"""What robosuite tells of the task's objects, and no robot senses."""
BLOCK = 128  # images read at a time
DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError)  # what h5py raises on a damaged file


def is_robomimic(path: Path) -> bool:
    """Whether the path's name says so."""
    return path.name.endswith((".hdf5", ".h5")) and not path.is_dir()


def read(path: Path, episodes: Sequence[int] | None = None) -> Demonstrations:
    """Reads the columns and finds the frames; no image is read.

    `observation.state` joins the low-dimensional observations in the alphabetical order of their names, but for
    `object`, which becomes `observation.environment_state`. `agentview_image` becomes `observation.images.agentview`.
    `next_obs` and the simulator's states are left out. Numbers become float32.

    Args:
        path: The file.
        episodes: Numbers of demonstrations, k of `demo_k`; None takes all.

    Raises:
        DatasetError: The file is missing, damaged, or not robomimic's; or the h5py package is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        advice = "pip install 'visuomotor[hdf5]'"
        raise DatasetError(mismatch(str(path), "the package h5py to read it with", "none", advice)) from error
    if not path.is_file():
        raise DatasetError(mismatch(str(path), "a robomimic HDF5 file", "no such file", "pass a .hdf5"))
    try:
        with h5py.File(path, "r") as file:
            return _read(path, file, episodes)
    except DatasetError:
        raise
    except DAMAGE as error:
        raise _damaged(path, "robomimic's HDF5", error) from error


def _read(path: Path, file: Any, episodes: Sequence[int] | None) -> Demonstrations:
    demos = {int(name.removeprefix("demo_")): name for name in file.get("data", ()) if re.fullmatch(r"demo_\d+", name)}
    if not demos:
        raise DatasetError(mismatch(f"{path}: data", "demo_0, demo_1, ...", list(file), "this reads robomimic's files"))
    known = np.array(sorted(demos))
    chosen = choose_episodes(str(path), known, episodes)
    groups = [file["data"][demos[number]] for number in known[chosen].tolist()]
    lengths = np.array([_length(path, group) for group in groups], np.int64)
    numeric, images = _observations(path, groups[0])
    pieces = [_columns(path, group, numeric, int(length)) for group, length in zip(groups, lengths, strict=True)]
    frame = frame_numbers(lengths)
    arrays = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    fps, task = _environment(file["data"])
    arrays |= {
        "timestamp": (frame / fps).astype(np.float32),
        "frame_index": frame,
        "episode_index": np.repeat(known[chosen], lengths),
        "index": np.arange(len(frame)),
        "task_index": np.zeros(len(frame), np.int64),
    }
    return Demonstrations(
        source=str(path),
        fps=fps,
        arrays=arrays,
        episodes=known[chosen],
        lengths=lengths,
        tasks={0: task},
        cameras={_camera_name(key): _find_camera(path, groups, lengths, key) for key in images},
        names=_dimension_names(groups[0]["obs"], numeric),
        version="robomimic",
    )


def _length(path: Path, group: Any) -> int:
    actions = group.get("actions")
    if actions is None or actions.ndim != 2 or not len(actions):
        found = "none" if actions is None else actions.shape
        raise DatasetError(mismatch(f"{path}: {group.name}/actions", "(T, Da) numbers", found, COPY_AGAIN))
    return len(actions)


def _observations(path: Path, group: Any) -> tuple[list[str], list[str]]:
    """Names of the low-dimensional observations and of the images."""
    obs = group.get("obs", {})
    images = sorted(key for key in obs if key.endswith("_image"))
    numeric = sorted(key for key in obs if key not in images and obs[key].ndim <= 2)
    if not numeric and not images:
        advice = "make them with robomimic's dataset_states_to_obs.py"
        raise DatasetError(mismatch(f"{path}: {group.name}/obs", "observations", "none", advice))
    others = sorted(set(obs) - {*numeric, *images})
    if others:
        advice = "leave them out when making the file with dataset_states_to_obs.py"
        raise DatasetError(mismatch(f"{path}: {group.name}/obs", "numbers and colour images", others, advice))
    return numeric, images


def _columns(path: Path, group: Any, numeric: list[str], length: int) -> dict[str, np.ndarray]:
    def load(name: str) -> np.ndarray:
        values = np.asarray(group[name])
        if len(values) != length:
            raise DatasetError(mismatch(f"{path}: {group.name}/{name}", f"{length} rows", len(values), COPY_AGAIN))
        return values.astype(np.float32)

    columns = {}
    for column, keys in _groups(numeric).items():
        columns[column] = np.concatenate([load(f"obs/{key}").reshape(length, -1) for key in keys], axis=1)
    columns["action"] = load("actions")
    if "rewards" in group:
        columns["next.reward"] = load("rewards")
    done = load("dones") > 0 if "dones" in group else np.arange(length) == length - 1
    return columns | {"next.done": done}


def _groups(numeric: list[str]) -> dict[str, list[str]]:
    """The observations that make up each column."""
    groups = {
        "observation.state": [key for key in numeric if key != ENVIRONMENT],
        "observation.environment_state": [key for key in numeric if key == ENVIRONMENT],
    }
    return {column: keys for column, keys in groups.items() if keys}


def _dimension_names(obs: Any, numeric: list[str]) -> dict[str, list[str]]:
    names = {}
    for column, keys in _groups(numeric).items():
        sizes = {key: int(np.prod(obs[key].shape[1:])) for key in keys}
        names[column] = [f"{key}_{n}" if size > 1 else key for key, size in sizes.items() for n in range(size)]
    return names


def _environment(data: Any) -> tuple[float, str]:
    """Frames per second, and the task, from what robomimic writes beside the demonstrations."""
    settings = json.loads(data.attrs.get("env_args", "{}"))
    fps = float(settings.get("env_kwargs", {}).get("control_freq", FPS))
    if not 0 < fps < np.inf:
        raise ValueError(f"env_args: control_freq {fps}")
    return fps, str(settings.get("env_name", "robomimic"))


def _camera_name(key: str) -> str:
    return f"observation.images.{key.removesuffix('_image')}"


def _find_camera(path: Path, groups: Sequence[Any], lengths: np.ndarray, key: str) -> Camera:
    """One segment a demonstration."""
    shapes, names, segments = set(), [], []
    for group, length, end in zip(groups, lengths.tolist(), np.cumsum(lengths).tolist(), strict=True):
        images = group["obs"].get(key)
        name = f"{group.name}/obs/{key}"
        if images is None or images.ndim != 4 or images.shape[::3] != (length, 3) or images.dtype != np.uint8:
            found = "none" if images is None else f"{images.dtype} {images.shape}"
            raise DatasetError(mismatch(f"{path}: {name}", f"uint8 ({length}, H, W, 3)", found, COPY_AGAIN))
        shapes.add(images.shape[1:])
        names.append(name)
        segments.append(partial(_decode, path, name, length, end - length))
    if len(shapes) > 1:
        raise DatasetError(mismatch(f"{path}: {key}", "images of one size", sorted(shapes), "make the file again"))
    mark = fingerprint(file_identity(path, path.name), names, lengths)
    return Camera((int(lengths.sum()), *shapes.pop()), mark, segments)


def _decode(path: Path, name: str, length: int, row: int) -> Iterator[tuple[int, np.ndarray]]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            for start in range(0, length, BLOCK):
                yield row + start, file[name][start : start + BLOCK]
    except DAMAGE as error:
        raise _damaged(path, name, error) from error


def _damaged(path: Path, what: str, error: Exception) -> DatasetError:
    found = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DatasetError(mismatch(str(path), f"{what} that can be read", found, COPY_AGAIN))
