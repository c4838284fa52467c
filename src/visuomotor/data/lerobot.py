"""LeRobot's formats v3.0, v2.1 and v2.0: a folder with meta/, data/ and videos/."""

import math
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa

from visuomotor.data import lerobot_legacy, lerobot_meta
from visuomotor.data.demonstrations import COPY_AGAIN, Demonstrations, choose_episodes, frame_numbers
from visuomotor.data.lerobot_cameras import find_images, find_video
from visuomotor.data.lerobot_meta import (
    IMPLIED,
    NUMBERS,
    VERSION,
    by_file,
    data_files,
    dimension_names,
    file_name,
    numbers,
    read_info,
    read_table,
    video_features,
)
from visuomotor.errors import DatasetError, mismatch


def read(folder: Path, episodes: Sequence[int] | None = None) -> Demonstrations:
    """Reads the columns and finds the frames; nothing is decoded.

    What a stopped recorder has written beyond the episodes that meta/info.json counts is left out.

    Args:
        folder: The data set's folder, the one that holds meta/info.json.
        episodes: The episodes to read; None takes all.

    Raises:
        DatasetError: The folder is missing, damaged, of another version, or at odds with itself.
    """
    metadata, info, index, chosen = _read_index(folder, episodes)
    features = info["features"]
    cameras = [name for name, feature in features.items() if feature["dtype"] in ("video", "image")]
    columns = [name for name, feature in features.items() if _is_column(feature["dtype"])]
    arrays = _read_columns(folder, info, index, chosen, columns)
    frames = {}
    for name in cameras:
        find = find_video if features[name]["dtype"] == "video" else find_images
        frames[name] = find(folder, info, index, chosen, name)
    tasks = metadata.read_tasks(folder)
    unknown = sorted(set(np.unique(arrays["task_index"]).tolist()) - set(tasks))
    if unknown:
        name = f"{folder}/meta/tasks.{'parquet' if metadata is lerobot_meta else 'jsonl'}: task_index"
        raise DatasetError(mismatch(name, f"{unknown} among them", sorted(tasks), "copy the data set again"))
    return Demonstrations(
        source=str(folder),
        fps=float(info["fps"]),
        arrays=arrays,
        episodes=index["episode_index"][chosen],
        lengths=index["length"][chosen],
        tasks=tasks,
        cameras=frames,
        statistics=metadata.read_statistics(folder, info, index, chosen),
        names={name: dimension_names(features[name]) for name in columns},
        version=f"LeRobot {info['codebase_version']}",
    )


def needed_files(folder: Path, episodes: Sequence[int]) -> list[str]:
    """The data and video files that some episodes need. Only meta/ has to be there.

    Raises:
        DatasetError: As for `read`.
    """
    _, info, index, chosen = _read_index(folder, episodes)
    names = [name for name, _, _ in data_files(info, index, chosen)]
    for camera in video_features(info):
        places = by_file(index, chosen, f"videos/{camera}")
        names += [file_name(info, "video_path", *place, camera=camera) for place, _ in places]
    return names


def _read_index(
    folder: Path, episodes: Sequence[int] | None
) -> tuple[ModuleType, dict[str, Any], dict[str, np.ndarray], np.ndarray]:
    """The module that knows the version's metadata, meta/info.json, the episodes, and which of them are wanted."""
    info = read_info(folder)
    metadata = lerobot_meta if info["codebase_version"] == VERSION else lerobot_legacy
    index = metadata.read_episodes(folder, info)
    return metadata, info, index, choose_episodes(str(folder), index["episode_index"], episodes)


def _is_column(dtype: str) -> bool:
    """Numbers and text; what else LeRobot stores beside them (language, audio) is not read."""
    return dtype.startswith((*NUMBERS, "string"))


def _read_columns(
    folder: Path, info: dict[str, Any], index: dict[str, np.ndarray], chosen: np.ndarray, columns: list[str]
) -> dict[str, np.ndarray]:
    """Low-dimensional columns of the chosen episodes, episode after episode."""
    pieces: dict[str, list[np.ndarray]] = {column: [] for column in columns}
    order = []
    starts = np.cumsum(index["length"]) - index["length"]
    for name, inside, wanted in data_files(info, index, chosen):
        table = read_table(folder, name, columns, optional=tuple(IMPLIED))
        lengths = index["length"][inside]
        table = _committed(str(folder / name), table, index["episode_index"][inside], lengths, info["total_episodes"])
        frame = frame_numbers(lengths)
        implied = {"timestamp": frame / info["fps"], "index": np.repeat(starts[inside], lengths) + frame}
        rows = np.repeat(wanted, lengths)
        for column in columns:
            values = table[column] if column in table.column_names else pa.chunked_array([implied[column]])
            array = _to_numpy(f"{folder / name}: {column}", values, info["features"][column])
            if column == "index" and not ((array >= 0) & (array < info["total_frames"])).all():
                place, expected = f"{folder / name}: index", f"rows from 0 to {info['total_frames'] - 1}"
                raise DatasetError(mismatch(place, expected, f"{array.min()} to {array.max()}", COPY_AGAIN))
            pieces[column].append(array[rows])
        order.append(inside[wanted])
    # Files need not follow the episodes' order; rows do.
    episodes = np.concatenate(order)
    rows = np.argsort(np.repeat(episodes, index["length"][episodes]), kind="stable")
    return {column: np.concatenate(values)[rows] for column, values in pieces.items()}


def _committed(name: str, table: pa.Table, episodes: np.ndarray, lengths: np.ndarray, total: int) -> pa.Table:
    """The rows of a file's episodes: each episode's together, in the order of time; behind them only uncounted ones."""
    count = int(lengths.sum())
    found = {column: numbers(f"{name}: {column}", table[column]) for column in ("episode_index", "frame_index")}
    if table.num_rows < count or (found["episode_index"][count:] < total).any():
        expected = f"{count} frames as in meta/episodes"
        raise DatasetError(mismatch(name, expected, table.num_rows, "meta/ and data/ are of different sets"))
    for column, expected in (
        ("episode_index", np.repeat(episodes, lengths)),
        ("frame_index", frame_numbers(lengths)),
    ):
        wrong = np.flatnonzero(found[column][:count] != expected)
        if len(wrong):
            row = int(wrong[0])
            advice = "meta/episodes and data/ do not fit together: copy the data set again"
            raise DatasetError(mismatch(f"{name}: {column}, row {row}", expected[row], found[column][row], advice))
    return table.slice(0, count)


def _to_numpy(name: str, column: pa.ChunkedArray, feature: dict[str, Any]) -> np.ndarray:
    """(N, *shape), or (N,) for a shape of (1,), as float32, int64 or bool, whichever info.json means."""
    values = column.combine_chunks()
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    if feature["dtype"] == "string":
        return np.array(values.to_pylist(), dtype=object)
    while pa.types.is_nested(values.type):
        values = values.flatten()
    shape = tuple(feature["shape"])
    expected = len(column) * math.prod(shape)
    if values.null_count or len(values) != expected:
        found = f"{len(values)} with {values.null_count} empty"
        raise DatasetError(mismatch(name, f"{expected} numbers of shape {shape} a frame", found, COPY_AGAIN))
    found = values.to_numpy(zero_copy_only=False).reshape(len(column), *(() if shape == (1,) else shape))
    dtype = np.dtype({"f": np.float32, "b": np.bool_}.get(feature["dtype"][0], np.int64))
    if found.dtype.kind not in "fiub" or (dtype.kind != "f" and found.dtype.kind == "f"):
        raise DatasetError(mismatch(name, f"a column of {feature['dtype']}", values.type, "correct meta/info.json"))
    if dtype.kind == "b" and not np.isin(found, (0, 1)).all():
        raise DatasetError(mismatch(name, "true and false", f"values to {found.max()}", "correct meta/info.json"))
    return found.astype(dtype, copy=False)
