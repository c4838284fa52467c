"""The original Push-T replay buffer: a zarr group with data/img, data/state, data/action and meta/episode_ends."""

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from visuomotor.data.demonstrations import COPY_AGAIN, Demonstrations
from visuomotor.data.frames import Camera, file_identity, fingerprint
from visuomotor.data.pusht import from_states
from visuomotor.errors import DatasetError, mismatch

ARRAYS = ("data/img", "data/state", "data/action", "meta/episode_ends")
DAMAGE = (OSError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)  # what a damaged file can raise


def is_replay_buffer(path: Path) -> bool:
    """Whether the path's name or content says so."""
    return path.name.endswith((".zarr", ".zip")) or (path / ".zgroup").is_file() or (path / "zarr.json").is_file()


def read(path: Path, episodes: Sequence[int] | None = None) -> Demonstrations:
    """Reads states and actions and finds the frames; nothing is decoded.

    Args:
        path: The group's folder, or a zip of it.
        episodes: The episodes to read; None takes all.

    Raises:
        DatasetError: The file is missing, damaged, or not Push-T's; or the zarr package is not installed.
    """
    arrays = _open(path)
    images = arrays["data/img"]
    rows = arrays["data/state"].shape[0]
    if images.ndim != 4 or images.shape[0] != rows or images.shape[3] != 3:
        raise DatasetError(mismatch(f"{path}: data/img", f"({rows}, H, W, 3)", images.shape, COPY_AGAIN))
    states, action, episode_ends = (_load(path, name, arrays[name], slice(None)) for name in ARRAYS[1:])
    return from_states(str(path), states, action, episode_ends, episodes, partial(_find_camera, path, images))


def _open(path: Path) -> dict[str, Any]:
    """The group's arrays by name, unread."""
    try:
        import zarr
        from zarr.storage import ZipStore
    except ImportError as error:
        advice = "pip install 'visuomotor[zarr]'"
        raise DatasetError(mismatch(str(path), "the package zarr to read it with", "none", advice)) from error
    if not path.exists():
        advice = "pass a .zarr folder or a .zarr.zip"
        raise DatasetError(mismatch(str(path), "a replay buffer", "no such file or folder", advice))
    try:
        if path.is_dir():
            group = zarr.open_group(str(path), mode="r")
        else:
            group = zarr.open_group(ZipStore(str(path), mode="r"), mode="r", path=_root(path))
        found = {name: group[name] for name in ARRAYS if name in group}
        known = sorted(f"{name}/{array}" for name, part in group.groups() for array in part.array_keys())
    except DAMAGE as error:
        raise _damaged(path, "a zarr group", error) from error
    missing = [name for name in ARRAYS if name not in found]
    if missing:
        advice = "this reads Push-T's replay buffer only"
        raise DatasetError(mismatch(f"{path}: arrays", f"{missing} among them", known, advice))
    return found


def _root(path: Path) -> str:
    """The folder inside the zip that holds the group: some zips keep it, some do not."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    inside = (name.partition("meta/episode_ends/")[0] for name in names if "meta/episode_ends/" in name)
    return next(inside, "").rstrip("/")


def _load(path: Path, name: str, array: Any, rows: slice) -> np.ndarray:
    try:
        return np.asarray(array[rows])
    except DAMAGE as error:
        raise _damaged(path, name, error) from error


def _damaged(path: Path, what: str, error: Exception) -> DatasetError:
    found = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DatasetError(mismatch(str(path), f"{what} that can be read", found, COPY_AGAIN))


def _find_camera(path: Path, images: Any, kept: np.ndarray) -> Camera:
    """One segment a chunk: the unit in which zarr decodes."""
    files = [path] if path.is_file() else sorted(file for file in path.glob("data/img/**/*") if file.is_file())
    identities = [file_identity(file, file.relative_to(path.parent).as_posix()) for file in files]
    segments = []
    for start in range(0, images.shape[0], images.chunks[0]):
        stop = min(start + images.chunks[0], images.shape[0])
        first, last = np.searchsorted(kept, [start, stop])
        if first < last:
            segments.append(partial(_decode, path, images, start, stop, int(first), kept[first:last] - start))
    return Camera((len(kept), *images.shape[1:]), fingerprint(identities, images.shape, kept), segments)


def _decode(
    path: Path, images: Any, start: int, stop: int, row: int, wanted: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    block = _load(path, "data/img", images, slice(start, stop))[wanted]
    if not (block.min() >= 0 and block.max() <= 255):  # so put, NaN is refused as well
        place, found = f"{path}: data/img, rows {start} to {stop - 1}", f"{block.min()} to {block.max()}"
        raise DatasetError(mismatch(place, "grey levels from 0 to 255", found, COPY_AGAIN))
    yield row, np.rint(block).astype(np.uint8)
