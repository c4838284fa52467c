"""Demonstrations as a data set: single items as LeRobot gives them, and whole batches of windows for training."""

import operator
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from visuomotor.config import Feature
from visuomotor.data import bundled, hub, lerobot, replay_buffer, robomimic
from visuomotor.data.demonstrations import Demonstrations
from visuomotor.data.frames import Frames, open_frames
from visuomotor.data.joined import read_joined
from visuomotor.data.lazy import Lazy
from visuomotor.data.statistics import describe
from visuomotor.data.windows import steps_from_timestamps, window_rows
from visuomotor.errors import DatasetError, mismatch

Source = str | Path | Sequence[str | Path]
"""One source of demonstrations, or several that are joined."""


def load_dataset(
    source: Source,
    delta_timestamps: dict[str, list[float]] | None = None,
    episodes: Sequence[int] | None = None,
    revision: str | None = None,
    recompute_statistics: bool = False,
    resize: tuple[int, int] | None = None,
) -> "Dataset":
    """Demonstrations from any source.

    Args:
        source: A folder of LeRobot v3.0, v2.1 or v2.0, a name on the Hugging Face hub (`lerobot/pusht`), the original
            Push-T replay buffer (`*.zarr` folder or `*.zarr.zip`), robomimic's `*.hdf5`, the `*.npz` of `visuomotor
            record`, or `pusht-demonstrations`, which comes with Visuomotor. Several are joined: episodes then go on
            counting from source to source, and statistics are computed from all frames.
        delta_timestamps: For each feature, the offsets in seconds of the frames that an item holds; multiples of
            1 / fps. A feature that is not named gives the present frame alone.
        episodes: The episodes to load, in any order; None takes all. They keep the data set's order. Of a name on the
            hub only the files that they need are downloaded.
        revision: Of a name on the hub, a branch, tag or commit; None takes the newest format that it has.
        recompute_statistics: Leave the statistics that came with the data, and compute them from its frames.
        resize: (H, W) that every camera's frames are resized to while they are decoded, a policy's `resize_shape`;
            None keeps them as they were recorded.

    Raises:
        DatasetError: The source is missing, damaged, or not what was asked for.
    """
    demonstrations = read(source, episodes, revision)
    if recompute_statistics:
        demonstrations = replace(demonstrations, statistics={})
    return Dataset(demonstrations, delta_timestamps, resize=resize)


def read(source: Source, episodes: Sequence[int] | None = None, revision: str | None = None) -> Demonstrations:
    """Chooses the reader that the source needs; several sources are joined.

    Raises:
        DatasetError: The source is missing, damaged, or not what was asked for.
    """
    if not isinstance(source, str | Path):
        if revision is not None:
            raise DatasetError(mismatch("revision", "one source with it", f"{len(source)}", "download them first"))
        return read_joined(source, read, episodes)
    name, path = str(source), Path(source).expanduser()
    local = replay_buffer.is_replay_buffer(path) or path.exists() or name == bundled.NAME
    if not local and isinstance(source, str) and hub.is_name(source):
        return lerobot.read(hub.download(name, episodes, revision), episodes)
    if revision is not None:
        advice = "leave `revision` out: what lies on this machine has none"
        raise DatasetError(mismatch("revision", "a name on the Hugging Face hub with it", name, advice))
    if replay_buffer.is_replay_buffer(path):
        return replay_buffer.read(path, episodes)
    if robomimic.is_robomimic(path):
        return robomimic.read(path, episodes)
    if path.is_dir():
        return lerobot.read(path, episodes)
    if name == bundled.NAME:
        return bundled.read(episodes=episodes)
    if path.suffix == ".npz":
        return bundled.read(path, episodes)
    formats = "a folder of LeRobot v3.0, v2.1 or v2.0, a .zarr or .zarr.zip, an .hdf5 of robomimic, recorded .npz"
    expected = f"{formats}, a name on the Hugging Face hub, or {bundled.NAME}"
    found = "another kind of file" if path.exists() else "no such folder"
    raise DatasetError(mismatch(name, expected, found, "pass the folder that holds meta/info.json"))


class Dataset:
    """Episodes of N frames in all, with random access to windows of them.

    `dataset[i]` is what LeRobot 0.6 returns: low-dimensional features, images float32 (C, H, W) in [0, 1], with a
    time axis in front and a `<name>_is_pad` mask for every feature that `delta_timestamps` names, and `task`.

    Attributes:
        source: The folder or file, for errors.
        fps: Frames per second.
        features: Type and shape of every observation and of the action, as recorded; images are (C, H, W).
        arrays: Every low-dimensional column, (N, D) or (N,).
        frames: Every camera's images, (N, H, W, C) uint8, decoded when first touched and kept in the cache folder, or
            at every access if it has no room for them.
        camera_keys: The cameras' names.
        episodes: (E,) the episodes' own numbers.
        episode_starts: (E,) their first rows.
        episode_ends: (E,) one past their last rows.
        statistics: For every feature float32 min, max, mean and std of (D,) or (C, 1, 1) and int64 count (1,); images
            count as [0, 1]. Those that came with the data where they hold for just these episodes, else computed when
            first touched.
        demonstrations: What was read.

    Args:
        demonstrations: Episodes.
        delta_timestamps: As for `load_dataset`.
        check: Refuse numbers that are not finite.
        resize: As for `load_dataset`.
    """

    def __init__(
        self,
        demonstrations: Demonstrations,
        delta_timestamps: dict[str, list[float]] | None = None,
        check: bool = True,
        resize: tuple[int, int] | None = None,
    ):
        self.demonstrations = demonstrations
        self.source: str = demonstrations.source
        self.fps: float = demonstrations.fps
        self.arrays: dict[str, np.ndarray] = demonstrations.arrays
        cameras = demonstrations.cameras
        if resize is not None:
            cameras = {name: camera.resized(resize) for name, camera in cameras.items()}
        self.frames: Lazy[Frames] = Lazy(cameras, lambda name: open_frames(name, cameras[name], self.source))
        self.camera_keys: list[str] = list(cameras)
        self.episodes: np.ndarray = demonstrations.episodes
        self.episode_ends: np.ndarray = np.cumsum(demonstrations.lengths, dtype=np.int64)
        self.episode_starts: np.ndarray = self.episode_ends - demonstrations.lengths
        self.features: dict[str, Feature] = _features(demonstrations)
        self.statistics: Lazy[dict[str, np.ndarray]] = Lazy(self.features, self._find_statistics)
        self._first_row = np.repeat(self.episode_starts, demonstrations.lengths)
        self._end_row = np.repeat(self.episode_ends, demonstrations.lengths)
        if check:
            self._check_finite()
        self._tables = {
            name: np.ascontiguousarray(self.arrays[name].reshape(len(self), *feature.shape), np.float32)
            for name, feature in self.features.items()
            if feature.type != "VISUAL"
        }
        known = [*(name for name, array in self.arrays.items() if array.dtype != object), *self.camera_keys]
        self._steps = steps_from_timestamps(delta_timestamps or {}, self.fps, known)

    def __len__(self) -> int:
        return len(self._first_row)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | str]:
        row = operator.index(index)
        if not -len(self) <= row < len(self):
            raise IndexError(f"index: expected {-len(self)} to {len(self) - 1}, got {index}")
        row %= len(self)
        item: dict[str, torch.Tensor | str] = {}
        for name in [*self.arrays, *self.camera_keys]:
            rows = np.array(row)
            if name in self._steps:
                window = window_rows(rows[None], self._steps[name], self._first_row[[row]], self._end_row[[row]])
                rows = window[0][0]
                item[f"{name}_is_pad"] = torch.from_numpy(window[1][0])
            if name in self.frames:
                images = torch.from_numpy(np.array(self.frames[name][rows]))
                item[name] = images.movedim(-1, -3).contiguous().float() / 255
            elif self.arrays[name].dtype == object:
                item[name] = self.arrays[name][row]
            else:
                item[name] = torch.from_numpy(np.array(self.arrays[name][rows]))
        item["task"] = self.demonstrations.tasks[int(self.arrays["task_index"][row])]
        return item

    def anchors(self, drop_n_last_frames: int) -> np.ndarray:
        """Rows that a training window may be relative to, int64: all but the last frames of each episode.

        Raises:
            DatasetError: No row is left.
        """
        rows = np.arange(len(self))
        rows = rows[rows + drop_n_last_frames < self._end_row]
        if not len(rows):
            longest = int((self.episode_ends - self.episode_starts).max())
            expected = f"an episode of more than drop_n_last_frames = {drop_n_last_frames} frames"
            raise DatasetError(mismatch(self.source, expected, f"{longest} at most", "lower drop_n_last_frames"))
        return rows

    def batch(self, rows: np.ndarray, steps: dict[str, list[int]]) -> dict[str, torch.Tensor]:
        """Windows of frames, gathered without Python per sample.

        Args:
            rows: (B,) the rows that the windows are relative to.
            steps: For each of `features` wanted, T offsets in frames; beyond the episode's ends its first or last
                frame stands in.

        Returns:
            For each name float32 (B, T, D), or uint8 (B, T, C, H, W) as a view of channels-last memory, and bool
            `<name>_is_pad` (B, T).
        """
        batch = {}
        for name, (wanted, is_pad) in self.windows(rows, steps).items():
            gathered = torch.from_numpy(_take(self.values(name), wanted))
            batch[name] = gathered.movedim(-1, -3) if name in self.frames else gathered
            batch[f"{name}_is_pad"] = torch.from_numpy(is_pad)
        return batch

    def windows(self, rows: np.ndarray, steps: dict[str, list[int]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """The rows that `batch` gathers for each name, (B, T) int64, and which of them are padding, (B, T) bool."""
        starts, ends = self._first_row[rows], self._end_row[rows]
        return {name: window_rows(rows, offsets, starts, ends) for name, offsets in steps.items()}

    def values(self, name: str) -> Frames:
        """All that `batch` gathers of a feature from: float32 (N, *shape), or uint8 frames (N, H, W, C)."""
        return self.frames[name] if name in self.frames else self._tables[name]

    def _find_statistics(self, name: str) -> dict[str, np.ndarray]:
        if name in self.demonstrations.statistics:
            return self.demonstrations.statistics[name]
        return describe(self.values(name))

    def _check_finite(self) -> None:
        for name, array in self.arrays.items():
            if (name in self.features or name == "timestamp") and not np.isfinite(array).all():
                row = int(np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))[0])
                episode = int(np.searchsorted(self.episode_ends, row, side="right"))
                place = f"{name}, episode {self.episodes[episode]}, frame {row - self.episode_starts[episode]}"
                advice = "correct the recording, or leave the episode out with `episodes`"
                raise DatasetError(mismatch(f"{self.source}: {place}", "finite numbers", array[row], advice))


def _take(values: Frames, rows: np.ndarray) -> np.ndarray:
    """`values[rows]`, which `np.take` does faster where it can."""
    return np.take(np.asarray(values), rows, axis=0) if isinstance(values, np.ndarray) else values[rows]


def _features(demonstrations: Demonstrations) -> dict[str, Feature]:
    """The observations and the action, with their types."""
    features = {}
    for name, array in demonstrations.arrays.items():
        if array.dtype == object or not (name.startswith("observation.") or name == "action"):
            continue
        kind = "ENV" if name == "observation.environment_state" else "STATE" if name != "action" else "ACTION"
        features[name] = Feature(kind, array.shape[1:] or (1,))
    for name, camera in demonstrations.cameras.items():
        _, height, width, channels = camera.shape
        features[name] = Feature("VISUAL", (channels, height, width))
    if "action" not in features:
        advice = "add the actions, or name that column `action`"
        raise DatasetError(mismatch(f"{demonstrations.source}: features", "`action`", list(features), advice))
    return features
