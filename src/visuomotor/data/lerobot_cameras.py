"""Where the frames of a LeRobot v3.0 data set's cameras are: video files, or encoded images beside the columns."""

import os
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from visuomotor.data import video
from visuomotor.data.demonstrations import COPY_AGAIN, frame_numbers
from visuomotor.data.frames import Camera, Segment, file_identity, fingerprint
from visuomotor.data.lerobot_meta import data_files, file_name, first_line, open_parquet
from visuomotor.errors import DatasetError, mismatch

LEAST_FRAMES = 256  # of a video that are worth a decoder of their own


def _image_shape(folder: Path, info: dict[str, Any], name: str) -> tuple[int, int, int]:
    """(H, W, 3), whichever way round info.json has it."""
    shape = tuple(info["features"][name]["shape"])
    names = info["features"][name].get("names") or [""]
    if len(shape) == 3 and str(names[0]).startswith("channel"):
        shape = (*shape[1:], shape[0])
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
    files, segments = [], []
    for place in np.unique(places, axis=0):
        file = file_name(info, "video_path", *place.tolist(), camera=name)
        path = folder / file
        if not path.is_file():
            raise DatasetError(mismatch(str(path), f"a video of {name}", "no such file", "copy the data set again"))
        files.append(file_identity(path, file))
        rows = np.flatnonzero((places == place).all(axis=1))
        rows = rows[np.argsort(seconds[rows], kind="stable")]
        for part in _stretches(rows, seconds[rows], fps):
            segments.append(partial(video.decode, path, str(path), seconds[part], part, shape, fps))
    return Camera((len(seconds), *shape), fingerprint(name, shape, files, places, seconds), segments)


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
    files, segments = [], []
    for file, inside, wanted in data_files(info, index, chosen):
        files.append(file_identity(folder / file, file))
        spread = lengths[inside]
        rows = np.where(np.repeat(wanted, spread), np.repeat(first[inside], spread) + frame_numbers(spread), -1)
        segments += _image_segments(folder, file, name, rows, shape)
    chosen_lengths = lengths[chosen]
    mark = fingerprint(name, shape, files, index["episode_index"][chosen], chosen_lengths)
    return Camera((int(chosen_lengths.sum()), *shape), mark, segments)


def _image_segments(
    folder: Path, file: str, name: str, rows: np.ndarray, shape: tuple[int, int, int]
) -> Iterator[Segment]:
    """One segment a row group: the unit in which a parquet file is read."""
    metadata, start = open_parquet(folder, file).metadata, 0
    for group in range(metadata.num_row_groups):
        stop = start + metadata.row_group(group).num_rows
        if (rows[start:stop] >= 0).any():
            yield partial(_decode_images, folder / file, group, name, rows[start:stop], shape)
        start = stop


def _decode_images(
    path: Path, group: int, name: str, rows: np.ndarray, shape: tuple[int, int, int]
) -> Iterator[tuple[int, np.ndarray]]:
    """Images of a row group that are wanted, those whose row is not -1."""
    from PIL import Image

    try:
        column = pq.ParquetFile(path).read_row_group(group, columns=[name])[name]
        for row, cell in zip(rows.tolist(), column.to_pylist(), strict=True):
            if row < 0:
                continue
            content = (cell or {}).get("bytes")
            if content is None:
                advice = "store the images in the file, not beside it"
                raise DatasetError(mismatch(f"{path}: {name}", "the image's bytes", "a path alone", advice))
            image = np.asarray(Image.open(BytesIO(content)).convert("RGB"))
            if image.shape != shape:
                raise DatasetError(mismatch(f"{path}: {name}", f"images of {shape}", image.shape, "correct info.json"))
            yield row, image[None]
    except (pa.ArrowException, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(mismatch(f"{path}: {name}", "images", first_line(error), COPY_AGAIN)) from error
