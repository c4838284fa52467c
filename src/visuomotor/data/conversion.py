"""Demonstrations from any source, written as a LeRobot v3.0 data set."""

import inspect
import os
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from glob import escape
from pathlib import Path
from threading import Event
from typing import Any, Literal

import numpy as np

from visuomotor.config import nearest
from visuomotor.data.dataset import read
from visuomotor.data.demonstrations import Demonstrations
from visuomotor.data.frames import Camera
from visuomotor.data.jobs import finish
from visuomotor.data.lerobot_meta import read_json
from visuomotor.data.video import decode
from visuomotor.data.writer_features import DEFAULTS, check_features, check_fps
from visuomotor.data.writer_files import DatasetFiles, Episode, new_info
from visuomotor.data.writer_statistics import Statistics
from visuomotor.data.writer_video import (
    CODECS,
    COPIED,
    CameraFile,
    Clip,
    PictureFile,
    Pictures,
    VideoFile,
    frame_rate,
    measure,
    video_kind,
)
from visuomotor.errors import DatasetError, mismatch
from visuomotor.files import atomic_folder, hold

SHARES = 2  # parts of the work for each thread, so that all end at about the same time
Video = Literal["auto", "av1", "h264"]
Finished = tuple[Clip | Pictures, Statistics]


def convert(
    source: str | Path,
    target: str | Path,
    episodes: Sequence[int] | None = None,
    *,
    video: Video | None = "auto",
    revision: str | None = None,
) -> Path:
    """Writes demonstrations as a LeRobot v3.0 data set, with a progress bar where there is a terminal.

    Columns keep their values, and come as `load_dataset` gives them: float32, int64, bool or text. Only `index` and
    `episode_index` count anew from 0. Videos are copied packet by packet, without loss, where an episode begins at a
    key frame and the codec is one that LeRobot decodes; else frames are encoded. Every frame is decoded once, for the
    statistics, so that a damaged one is found.

    Args:
        source: Anything that `load_dataset` takes.
        target: A new or an empty folder. It appears when it is whole; what a conversion that was killed has left
            beside it is deleted by the next one.
        episodes: The episodes to take, in the source's order; None takes all.
        video: `auto` copies videos, leaves images in parquet as they are, and encodes other frames as AV1; `av1` and
            `h264` ask for that codec; None stores every frame as PNG in parquet.
        revision: Of a name on the hub, as for `load_dataset`.

    Returns:
        `target`.

    Raises:
        DatasetError: The source is missing or damaged, holds what cannot be stored, or the target holds files.
    """
    target = Path(target).expanduser()
    _check(target, video)
    found = read(source, episodes, revision)
    _check_finite(found)
    if (Path(found.source) / "meta/info.json").is_file():
        source, revision = found.source, None  # of a name on the hub, what was downloaded
    info = _describe(found, video)
    _sweep(target)
    with atomic_folder(target) as draft:
        tasks = list(dict.fromkeys(found.tasks[number] for number in sorted(found.tasks)))
        files = DatasetFiles.create(draft, info, tasks)
        try:
            job = _Job(partial(read, source, revision=revision), info, files.workplace, video)
            cameras = _make(job, found) if found.cameras else [{} for _ in found.episodes]
            files.encoding = _settings(info, cameras, files.workplace, video)
            files.add(list(_episodes(found, cameras)))
        finally:
            files.close()
    return target


def _check(target: Path, video: Video | None) -> None:
    if video not in ("auto", *CODECS, None):
        known = ["auto", *CODECS]
        advice = f"did you mean {nearest(str(video), known)}?"
        raise DatasetError(mismatch("video", f"one of {known}, or None", repr(video), advice))
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        advice = "take another name, or delete it first"
        raise DatasetError(mismatch(str(target), "a new or an empty folder", "one with files", advice))


def _check_finite(found: Demonstrations) -> None:
    ends = np.cumsum(found.lengths)
    for name, array in found.arrays.items():
        wrong = (
            [] if array.dtype.kind != "f" else np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
        )
        if len(wrong):
            episode = int(np.searchsorted(ends, wrong[0], side="right"))
            frame = wrong[0] - ends[episode] + found.lengths[episode]
            place = f"{found.source}: {name}, episode {found.episodes[episode]}, frame {frame}"
            advice = "correct the recording, or leave the episode out with `episodes`"
            raise DatasetError(mismatch(place, "finite numbers", array[wrong[0]], advice))


def _describe(found: Demonstrations, wanted: Video | None) -> dict[str, Any]:
    """meta/info.json of the target: the source's own features, as far as it has them."""
    stored: dict[str, Any] = {}
    if (Path(found.source) / "meta/info.json").is_file():
        stored = read_json(Path(found.source), "meta/info.json")
    known: dict[str, Any] = stored.get("features", {})
    features, names = {}, {}
    for name in dict.fromkeys([*known, *found.arrays, *found.cameras]):
        if name in DEFAULTS:
            continue
        names[name] = known.get(name, {}).get("names") or found.names.get(name) or None
        if name in found.cameras:
            images = wanted is None or (wanted == "auto" and known.get(name, {}).get("dtype") == "image")
            shape = found.cameras[name].shape[1:]
            if list(shape) != known.get(name, {}).get("shape"):
                names[name] = ["height", "width", "channels"]
            features[name] = {"dtype": "image" if images else "video", "shape": shape}
        elif name in found.arrays:
            array = found.arrays[name]
            dtype = "string" if array.dtype == object else str(array.dtype)
            features[name] = {"dtype": dtype, "shape": array.shape[1:] or (1,)}
        else:
            place, advice = f"{found.source}: features.{name}", "take it out with lerobot-edit-dataset (remove_feature)"
            raise DatasetError(mismatch(place, "numbers, text or images", known[name].get("dtype"), advice))
    checked = check_features(features)
    for name in features:
        checked[name]["names"] = names[name]  # as they are, even where they do not fit
    return new_info(check_fps(found.fps), checked, stored.get("robot_type"))


def _sweep(target: Path) -> None:
    """Deletes the drafts of conversions to the same target that were killed, not of one that is running."""
    for draft in target.parent.glob(f".{escape(target.name)}.*.tmp"):
        lock = hold(draft) if draft.is_dir() else None
        if lock is not None:
            shutil.rmtree(draft)
            os.close(lock)


def _settings(
    info: dict[str, Any], cameras: list[dict[str, Finished]], workplace: Path, wanted: Video | None
) -> dict[str, dict[str, Any]]:
    """The settings of the encoder of those cameras whose every video was encoded here."""
    settings = {}
    for name in cameras[0]:
        files = [finished[name][0] for finished in cameras]
        if info["features"][name]["dtype"] == "video" and all(file.path.parent == workplace for file in files):
            settings[name] = CODECS[_codec(wanted)][1]
    return settings


def _codec(wanted: Video | None) -> str:
    return wanted if wanted in CODECS else "av1"


def _episodes(found: Demonstrations, cameras: list[dict[str, Finished]]) -> Iterator[Episode]:
    follows = ("episode_index", "index", "task_index")
    texts = [found.tasks[number] for number in found.arrays["task_index"].tolist()]
    ends = np.cumsum(found.lengths)
    for start, end, finished in zip(ends - found.lengths, ends, cameras, strict=True):
        yield Episode(
            columns={name: array[start:end] for name, array in found.arrays.items() if name not in follows},
            tasks=texts[start:end],
            cameras={name: file for name, (file, _) in finished.items()},
            statistics={name: statistics for name, (_, statistics) in finished.items()},
        )


@dataclass(frozen=True)
class _Job:
    """What every part of the work needs."""

    read: Callable[[Sequence[int]], Demonstrations]
    info: dict[str, Any]
    workplace: Path
    wanted: Video | None

    @property
    def rate(self) -> Fraction:
        return frame_rate(self.info["fps"])

    def open(self, name: str, path: Path, clip: Clip | None) -> CameraFile:
        """Where the frames of an episode go; nowhere if they are copied."""
        feature = self.info["features"][name]
        if feature["dtype"] == "image":
            return CameraFile(PictureFile(path))
        if clip is not None:
            return CameraFile(None)
        return CameraFile(VideoFile(path, tuple(feature["shape"]), self.rate, _codec(self.wanted)))

    def copied(self, name: str, clip: Clip | None) -> Clip | None:
        """The clip, if its packets may be copied into the target."""
        feature = self.info["features"][name]
        if clip is None or feature["dtype"] != "video":
            return None
        kind = video_kind(clip.path)
        allowed = COPIED if self.wanted == "auto" else (self.wanted,)
        fits = kind.codec in allowed and [kind.height, kind.width] == feature["shape"][:2]
        return measure(clip, self.rate) if fits else None


def _make(job: _Job, found: Demonstrations) -> list[dict[str, Finished]]:
    """The files of every episode's cameras. Several parts are worked on at a time: codecs release Python's lock."""
    threads = min(camera.threads or os.cpu_count() or 1 for camera in found.cameras.values())
    middles = np.cumsum(found.lengths) - found.lengths / 2
    share = (middles * min(len(middles), SHARES * threads) / found.lengths.sum()).astype(int)
    parts = np.split(found.episodes, np.flatnonzero(np.diff(share)) + 1)
    stopped = Event()
    with _progress(int(found.lengths.sum()) * len(found.cameras)) as advance, ThreadPoolExecutor(threads) as pool:
        jobs = [pool.submit(_make_part, job, part.tolist(), advance, stopped) for part in parts]
        finish(pool, jobs, stopped)
    return [finished for one in jobs for finished in one.result()]


@contextmanager
def _progress(total: int) -> Generator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("Converting frames", total=total)
        yield partial(progress.advance, bar)


def _make_part(
    job: _Job, episodes: Sequence[int], advance: Callable[[int], None], stopped: Event
) -> list[dict[str, Finished]]:
    """The files of some episodes. Their frames are looked at one after the other and not kept."""
    part = job.read(episodes)
    finished: list[dict[str, Finished]] = [{} for _ in episodes]
    for number, (name, camera) in enumerate(part.cameras.items()):
        clips = [job.copied(name, clip) for clip in _clips(camera, part.lengths, job.rate)]
        files: dict[int, CameraFile] = {}
        for position, frame, images in _pieces(camera, part.lengths):
            if position not in files:
                path = job.workplace / f"{episodes[position]}-{number}"
                files[position] = job.open(name, path, clips[position])
            file = files[position]
            assert file.levels.frames == frame, f"{name}: segments do not yield frames in the order of time"
            for image in images:
                file.add(image)
            if file.levels.frames == part.lengths[position]:
                made = files.pop(position).close() or clips[position]
                assert made is not None
                finished[position][name] = made, file.levels.describe()
            advance(len(images))
            if stopped.is_set():
                return []
    return finished


def _pieces(camera: Camera, lengths: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """A camera's frames: the episode's position, the number of the first in it, and (n, H, W, 3) frames of it."""
    ends = np.cumsum(lengths)
    starts = ends - lengths
    for segment in camera.segments:
        for row, block in segment():
            first, last = np.searchsorted(ends, [row, row + len(block) - 1], side="right").tolist()
            for position in range(first, last + 1):
                begin, end = max(starts[position] - row, 0), ends[position] - row
                yield position, int(row + begin - starts[position]), block[begin:end]


def _clips(camera: Camera, lengths: np.ndarray, rate: Fraction) -> list[Clip | None]:
    """Where each episode's frames lie in a video file, one after the other; None for frames that lie otherwise."""
    seconds, file = np.full(lengths.sum(), np.nan), np.full(lengths.sum(), -1)
    paths: list[Path] = []
    for segment in camera.segments:
        if not isinstance(segment, partial) or segment.func is not decode:
            return [None] * len(lengths)
        given = inspect.signature(decode).bind(*segment.args, **segment.keywords).arguments
        if given["path"] not in paths:
            paths.append(given["path"])
        seconds[given["rows"]], file[given["rows"]] = given["seconds"], paths.index(given["path"])
    clips: list[Clip | None] = []
    for end, length in zip(np.cumsum(lengths), lengths, strict=True):
        rows = slice(end - length, end)
        numbers = seconds[rows] * float(rate)
        first = round(numbers[0])
        in_order = np.abs(numbers - first - np.arange(length)).max() < 0.25 and len(set(file[rows])) == 1
        clips.append(Clip(paths[file[end - 1]], first, int(length)) if in_order else None)
    return clips
