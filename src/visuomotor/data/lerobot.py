"""LeRobot's format v3.0: a folder with meta/, data/ and videos/."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from visuomotor.data.demonstrations import COPY_AGAIN, Demonstrations, choose_episodes, frame_numbers
from visuomotor.data.lerobot_cameras import find_images, find_video
from visuomotor.data.lerobot_meta import (
    data_files,
    read_episodes,
    read_info,
    read_statistics,
    read_table,
    read_tasks,
)
from visuomotor.errors import DatasetError, mismatch


def read(folder: Path, episodes: Sequence[int] | None = None) -> Demonstrations:
    """Reads the columns and finds the frames; nothing is decoded.

    Args:
        folder: The data set's folder, the one that holds meta/info.json.
        episodes: The episodes to read; None takes all.

    Raises:
        DatasetError: The folder is missing, damaged, of another version, or at odds with itself.
    """
    info = read_info(folder)
    index = read_episodes(folder, info)
    chosen = choose_episodes(str(folder), index["episode_index"], episodes)
    features = info["features"]
    cameras = [name for name, feature in features.items() if feature["dtype"] in ("video", "image")]
    columns = [name for name, feature in features.items() if _is_column(feature["dtype"])]
    arrays = _read_columns(folder, info, index, chosen, columns)
    frames = {}
    for name in cameras:
        find = find_video if features[name]["dtype"] == "video" else find_images
        frames[name] = find(folder, info, index, chosen, name)
    tasks = read_tasks(folder)
    unknown = sorted(set(np.unique(arrays["task_index"]).tolist()) - set(tasks))
    if unknown:
        name = f"{folder}/meta/tasks.parquet: task_index"
        raise DatasetError(mismatch(name, f"{unknown} among them", sorted(tasks), "copy the data set again"))
    return Demonstrations(
        source=str(folder),
        fps=float(info["fps"]),
        arrays=arrays,
        episodes=index["episode_index"][chosen],
        lengths=index["length"][chosen],
        tasks=tasks,
        cameras=frames,
        statistics=read_statistics(folder, features) if len(chosen) == len(index["length"]) else {},
    )


def _is_column(dtype: str) -> bool:
    """Numbers and text; what else LeRobot stores beside them (language, audio) is not read."""
    return dtype in ("string", "bool") or dtype.startswith(("float", "int", "uint"))


def _read_columns(
    folder: Path, info: dict[str, Any], index: dict[str, np.ndarray], chosen: np.ndarray, columns: list[str]
) -> dict[str, np.ndarray]:
    """Low-dimensional columns of the chosen episodes, episode after episode."""
    pieces: dict[str, list[np.ndarray]] = {column: [] for column in columns}
    order = []
    for name, inside, wanted in data_files(info, index, chosen):
        table = read_table(folder, name, columns)
        lengths = index["length"][inside]
        if table.num_rows != lengths.sum():
            expected, found = f"{lengths.sum()} frames as in meta/episodes", table.num_rows
            raise DatasetError(mismatch(str(folder / name), expected, found, "meta/ and data/ are of different sets"))
        _check_order(str(folder / name), table, index["episode_index"][inside], lengths)
        rows = np.repeat(wanted, lengths)
        for column in columns:
            values = _to_numpy(f"{folder / name}: {column}", table[column], info["features"][column])
            pieces[column].append(values[rows])
        order.append(inside[wanted])
    # Files need not follow the episodes' order; rows do.
    episodes = np.concatenate(order)
    rows = np.argsort(np.repeat(episodes, index["length"][episodes]), kind="stable")
    return {column: np.concatenate(values)[rows] for column, values in pieces.items()}


def _check_order(name: str, table: pa.Table, episodes: np.ndarray, lengths: np.ndarray) -> None:
    """Every episode's frames stand together, in the order of time."""
    for column, expected in (
        ("episode_index", np.repeat(episodes, lengths)),
        ("frame_index", frame_numbers(lengths)),
    ):
        found = table[column].to_numpy()
        wrong = np.flatnonzero(found != expected)
        if len(wrong):
            row = int(wrong[0])
            advice = "meta/episodes and data/ do not fit together: copy the data set again"
            raise DatasetError(mismatch(f"{name}: {column}, row {row}", expected[row], found[row], advice))


def _to_numpy(name: str, column: pa.ChunkedArray, feature: dict[str, Any]) -> np.ndarray:
    """(N, *shape), or (N,) for a shape of (1,), with the dtype that LeRobot's items have."""
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
    numbers = values.to_numpy(zero_copy_only=False).reshape(len(column), *(() if shape == (1,) else shape))
    kinds = {"f": np.float32, "i": np.int64, "u": np.int64, "b": np.bool_}
    if numbers.dtype.kind not in kinds:
        raise DatasetError(mismatch(name, "numbers", values.type, "correct meta/info.json"))
    return numbers.astype(kinds[numbers.dtype.kind], copy=False)
