"""Where the frames of a LeRobot data set's cameras are: video files, or encoded images beside the columns."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from visuomotor.data import video
from visuomotor.data.demonstrations import frame_numbers
from visuomotor.data.frames import Camera, file_identity, fingerprint
from visuomotor.data.lerobot_images import EncodedImages, image_groups
from visuomotor.data.lerobot_meta import by_file, data_files, file_name
from visuomotor.errors import DatasetError, mismatch

LEAST_FRAMES = 256  # of a video that are worth a decoder of their own


def _image_shape(folder: Path, info: dict[str, Any], name: str) -> tuple[int, int, int]:
    """(H, W, 3), whichever way round info.json has it."""
    feature = info["features"][name]
    shape, names = tuple(feature["shape"]), feature.get("names")
    if isinstance(names, dict):
        names = next((value for value in names.values() if isinstance(value, list)), [])
    if len(shape) == 3 and shape[0] == 3 and (shape[2] != 3 or str((names or [""])[0]).startswith("channel")):
        shape = (*shape[1:], 3)
    if len(shape) != 3 or shape[2] != 3:
        place = f"{folder}/meta/info.json: features.{name}"
        advice = "take it out with lerobot-edit-dataset (remove_feature)"
        raise DatasetError(mismatch(place, "a colour image (H, W, 3)", shape, advice))
    return shape


def find_video(
    folder: Path, info: dict[str, Any], index: dict[str, np.ndarray], chosen: np.ndarray, name: str
) -> Camera:
    """A camera whose frames lie in video files: an episode's from its `from_timestamp` on."""
    shape, fps = _image_shape(folder, info, name), float(info["fps"])
    column = {part: index[f"videos/{name}/{part}"][chosen] for part in ("chunk_index", "file_index", "from_timestamp")}
    span = index[f"videos/{name}/to_timestamp"][chosen] - column["from_timestamp"]
    lengths = index["length"][chosen]
    wrong = np.flatnonzero(np.abs(span * fps - lengths) > 0.5)
    if len(wrong):
        episode = int(wrong[0])
        place = f"{folder}/meta/episodes: videos/{name}, episode {index['episode_index'][chosen][episode]}"
        expected, found = f"{lengths[episode]} frames", f"{span[episode]:.3f} s at {fps:g} frames/s"
        raise DatasetError(mismatch(place, expected, found, "length and timestamps are of different sets"))
    # From frame numbers, as LeRobot: the column `timestamp` is a float32, which rounds.
    seconds = np.repeat(column["from_timestamp"], lengths) + frame_numbers(lengths) / fps
    places = np.stack([np.repeat(column[part], lengths) for part in ("chunk_index", "file_index")], axis=1)
    first = np.zeros(len(index["length"]), np.int64)
    first[chosen] = np.cumsum(lengths) - lengths  # the row that an episode goes to
    files, segments, paths, file_of = [], [], [], np.zeros(len(seconds), np.int64)
    for place, inside in by_file(index, chosen, f"videos/{name}"):
        file = file_name(info, "video_path", *place, camera=name)
        path = folder / file
        if not path.is_file():
            raise DatasetError(mismatch(str(path), f"a video of {name}", "no such file", "copy the data set again"))
        files.append(file_identity(path, file))
        held = index["length"][inside]
        rows = np.repeat(first[inside], held) + frame_numbers(held)
        rows = rows[np.argsort(seconds[rows], kind="stable")]
        file_of[rows] = len(paths)
        paths.append(path)
        for part in _stretches(rows, seconds[rows], fps):
            segments.append(partial(video.decode, path, str(path), seconds[part], part, shape, fps))
    mark = fingerprint(name, shape, files, places, seconds)
    return Camera((len(seconds), *shape), mark, segments, pick=video.Films(paths, file_of, seconds, shape, fps))


def _stretches(rows: np.ndarray, seconds: np.ndarray, fps: float) -> Iterator[np.ndarray]:
    """Parts of a video's rows without a gap, and long ones in several, for as many decoders."""
    parts = 4 * (os.cpu_count() or 1)
    for stretch in np.split(rows, np.flatnonzero(np.diff(seconds) > 1.5 / fps) + 1):
        yield from np.array_split(stretch, min(parts, max(1, len(stretch) // LEAST_FRAMES)))


def find_images(
    folder: Path, info: dict[str, Any], index: dict[str, np.ndarray], chosen: np.ndarray, name: str
) -> Camera:
    """A camera whose frames are encoded images in the data files, one a row."""
    shape, lengths = _image_shape(folder, info, name), index["length"]
    first = np.full(len(lengths), -1)
    first[chosen] = np.cumsum(lengths[chosen]) - lengths[chosen]  # the row that an episode goes to
    files, groups = [], []
    for file, inside, wanted in data_files(info, index, chosen):
        files.append(file_identity(folder / file, file))
        spread = lengths[inside]
        rows = np.where(np.repeat(wanted, spread), np.repeat(first[inside], spread) + frame_numbers(spread), -1)
        groups += image_groups(folder, file, name, rows, shape)
    chosen_lengths = lengths[chosen]
    # Images may lie beside the file; a folder's time tells whether one came, went or was replaced.
    files += [file_identity(path, path.name) for path in sorted((folder / "images" / name).glob("*"))]
    mark = fingerprint(name, shape, files, index["episode_index"][chosen], chosen_lengths)
    count = int(chosen_lengths.sum())
    pick = EncodedImages(groups, fingerprint(mark, "encoded"), count)
    return Camera((count, *shape), mark, [group.decode for group in groups], pick=pick)
