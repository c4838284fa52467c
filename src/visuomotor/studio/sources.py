"""The data sets that a studio was given: opened when first asked for, and told as the page shows them."""

import io
from collections.abc import Sequence
from threading import Lock
from typing import Any

import numpy as np

from visuomotor.config import DiffusionConfig
from visuomotor.data import bundled
from visuomotor.data.dataset import Dataset, read
from visuomotor.data.encoded import EncodedFrames
from visuomotor.data.frames import Frames
from visuomotor.errors import DatasetError, mismatch

LARGEST = 480
"""Pixels of the longer side of a frame as it is shown; larger ones are made smaller."""
SMALL = 128
"""... up to which it is sent without loss."""
MOST = 64
"""Frames that are asked for at a time."""
SUCCESS = "next.success"
"""LeRobot's column of it."""


class Source:
    """One data set. Numbers that are not finite are no error here: the page shows where they are.

    Args:
        dataset: Made with `check=False`.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self._frames: dict[str, Frames] = {}

    def overview(self) -> dict[str, Any]:
        """What it is, and its episodes."""
        dataset, demonstrations = self.dataset, self.dataset.demonstrations
        return {
            "source": dataset.source,
            "version": demonstrations.version,
            "fps": dataset.fps,
            "frames": len(dataset),
            "cameras": dataset.camera_keys,
            "episodes": [self._episode(position) for position in range(len(dataset.episodes))],
        }

    def _episode(self, position: int) -> dict[str, Any]:
        rows, arrays = self._rows(position), self.dataset.arrays
        numbers = np.unique(arrays["task_index"][rows])
        known = SUCCESS in arrays
        return {
            "episode": int(self.dataset.episodes[position]),
            "length": rows.stop - rows.start,
            "tasks": [self.dataset.demonstrations.tasks[int(number)] for number in numbers],
            "success": bool(arrays[SUCCESS][rows].any()) if known else None,
        }

    def series(self, position: int) -> list[dict[str, Any]]:
        """Every low-dimensional feature of an episode: `values` (D, T), None where a number is not finite."""
        rows, dataset = self._rows(position), self.dataset
        found = []
        for name in dataset.features:
            if name in dataset.camera_keys:
                continue
            values = dataset.arrays[name][rows].reshape(rows.stop - rows.start, -1).T.astype(np.float64)
            numbers = np.round(values, 6).astype(object)
            numbers[~np.isfinite(values)] = None  # which JSON knows
            names = dataset.demonstrations.names.get(name) or [str(d) for d in range(len(values))]
            found.append({"name": name, "names": names, "values": numbers.tolist()})
        return found

    def window(self, position: int, frame: int, config: DiffusionConfig) -> dict[str, Any]:
        """What a training example at a frame sees: frames of the episode, and which of them stand in for missing ones.

        Args:
            position: Of the episode.
            frame: Of the episode.
            config: Its `n_obs_steps`, `horizon` and `drop_n_last_frames`.
        """
        rows = self._rows(position)
        wanted = {"observed": config.observation_steps, "predicted": config.action_steps}
        found = self.dataset.windows(np.array([rows.start + self._frame(rows, frame)]), wanted)
        told: dict[str, Any] = {
            name: {"steps": wanted[name], "frames": (those[0] - rows.start).tolist(), "padding": pad[0].tolist()}
            for name, (those, pad) in found.items()
        }
        return told | {"trained": frame + config.drop_n_last_frames < rows.stop - rows.start}

    def pictures(self, camera: str, position: int, first: int, count: int) -> tuple[bytes, str]:
        """Frames of an episode below each other as one picture, and its kind.

        Raises:
            DatasetError: There is no such camera, episode or frame, or it cannot be decoded.
        """
        rows = self._rows(position)
        if camera not in self.dataset.camera_keys:
            raise DatasetError(mismatch("camera", f"one of {self.dataset.camera_keys}", repr(camera), "choose another"))
        begin = rows.start + self._frame(rows, first)
        wanted = np.arange(begin, min(begin + min(max(count, 1), MOST), rows.stop))
        return _strip(self._open(camera)[wanted])

    def _open(self, camera: str) -> Frames:
        """Frames that are decoded one by one where that is possible: nobody waits for all of them."""
        if camera not in self._frames:
            found = self.dataset.demonstrations.cameras[camera]
            if found.pick is None:
                self._frames[camera] = self.dataset.frames[camera]
            else:
                self._frames[camera] = EncodedFrames(found.shape, found.pick, 1)
        return self._frames[camera]

    def _rows(self, position: int) -> slice:
        count = len(self.dataset.episodes)
        if not 0 <= position < count:
            raise DatasetError(mismatch("episode", f"a position from 0 to {count - 1}", position, "choose another"))
        return slice(int(self.dataset.episode_starts[position]), int(self.dataset.episode_ends[position]))

    def _frame(self, rows: slice, frame: int) -> int:
        last = rows.stop - rows.start - 1
        if not 0 <= frame <= last:
            raise DatasetError(mismatch("frame", f"0 to {last}", frame, "choose another"))
        return frame


class _Opening:
    """A data set that the first one who asks for it reads, while others who do wait."""

    def __init__(self, name: str):
        self._name, self._lock = name, Lock()
        self._source: Source | None = None

    def source(self) -> Source:
        with self._lock:
            if self._source is None:
                self._source = Source(Dataset(read(self._name), check=False))
            return self._source


class Sources:
    """Data sets by number.

    Attributes:
        names: As they were given.

    Args:
        names: Each as for `load_dataset`; the bundled demonstrations follow.
    """

    def __init__(self, names: Sequence[str] = ()):
        self.names = list(dict.fromkeys([*names, bundled.NAME]))
        self._opened: dict[int, _Opening] = {}
        self._lock = Lock()

    def renew(self, name: str) -> None:
        """Has a data set that has grown read again when it is next looked at; one that is new comes last."""
        with self._lock:
            if name not in self.names:
                self.names.append(name)
            self._opened.pop(self.names.index(name), None)

    def open(self, number: int) -> Source:
        """One of them.

        Raises:
            DatasetError: There is none of that number, or it is missing or damaged.
        """
        if not 0 <= number < len(self.names):
            raise DatasetError(mismatch("source", f"0 to {len(self.names) - 1}", number, "choose another"))
        with self._lock:
            opening = self._opened.setdefault(number, _Opening(self.names[number]))
        return opening.source()  # outside the lock: `renew` waits for nobody who reads


def _strip(frames: np.ndarray) -> tuple[bytes, str]:
    """(n, H, W, C) uint8 below each other."""
    from PIL import Image

    count, height, width, channels = frames.shape
    if channels not in (1, 3):
        raise DatasetError(mismatch("channels", "1 or 3", channels, "such pictures cannot be shown"))
    share = min(1.0, LARGEST / max(height, width))
    flat = frames.reshape(count * height, width, channels)
    picture = Image.fromarray(flat[..., 0] if channels == 1 else flat)
    if share < 1:
        picture = picture.resize((round(width * share), round(height * share) * count), Image.Resampling.BOX)
    small, file = max(height, width) <= SMALL, io.BytesIO()
    picture.save(file, "PNG" if small else "JPEG", **({"compress_level": 1} if small else {"quality": 90}))
    return file.getvalue(), "image/png" if small else "image/jpeg"
