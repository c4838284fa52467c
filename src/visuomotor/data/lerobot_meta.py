"""The metadata of LeRobot's format v3.0: meta/info.json, episodes, tasks and statistics, and where the files are."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from visuomotor.data.demonstrations import COPY_AGAIN
from visuomotor.errors import DatasetError, mismatch

VERSION = "v3.0"
REQUIRED = ("action", "episode_index", "frame_index", "task_index")
STATISTICS = ("min", "max", "mean", "std", "count")


def read_info(folder: Path) -> dict[str, Any]:
    """`meta/info.json`, checked as far as this reader relies on it."""
    if not folder.is_dir():
        advice = "pass the folder that holds meta/info.json"
        raise DatasetError(mismatch(str(folder), "a LeRobot data set", "no such folder", advice))
    info = _read_json(folder, "meta/info.json")
    name = f"{folder}/meta/info.json"
    if not isinstance(info, dict) or not isinstance(info.get("features"), dict):
        raise DatasetError(mismatch(f"{name}: features", "a dictionary", "none", "copy meta/ again"))
    version = info.get("codebase_version")
    if version != VERSION:
        advice = "this version is not read"
        if str(version).startswith("v2"):
            advice += " yet: convert it with LeRobot's convert_dataset_v21_to_v30"
        raise DatasetError(mismatch(f"{name}: codebase_version", VERSION, version, advice))
    for key in ("fps", "total_frames", "total_episodes"):
        if not isinstance(info.get(key), int | float) or not info[key] > 0:
            raise DatasetError(mismatch(f"{name}: {key}", "a number above 0", info.get(key), "correct it"))
    for key, feature in info["features"].items():
        known = isinstance(feature, dict) and isinstance(feature.get("dtype"), str)
        if not known or not isinstance(feature.get("shape"), list):
            raise DatasetError(mismatch(f"{name}: features.{key}", "a dtype and a shape", feature, "correct it"))
    missing = [f"`{key}`" for key in REQUIRED if key not in info["features"]]
    if missing:
        found, advice = list(info["features"]), "add it, or give that feature this name"
        raise DatasetError(mismatch(f"{name}: features", f"{', '.join(missing)} among them", found, advice))
    return info


def _read_json(folder: Path, name: str) -> Any:
    path = folder / name
    if not path.is_file():
        advice = "pass the folder that holds meta/info.json, or copy the data set again"
        raise DatasetError(mismatch(str(path), "a LeRobot v3.0 data set's file", "no such file", advice))
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(mismatch(str(path), "JSON", str(error), COPY_AGAIN)) from error


def open_parquet(folder: Path, name: str) -> pq.ParquetFile:
    path = folder / name
    if not path.is_file():
        raise DatasetError(mismatch(str(path), "a parquet file", "no such file", "copy the data set again"))
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(mismatch(str(path), "a parquet file", first_line(error), COPY_AGAIN)) from error


def read_table(folder: Path, name: str, columns: list[str]) -> pa.Table:
    file = open_parquet(folder, name)
    missing = [column for column in columns if column not in file.schema_arrow.names]
    if missing:
        found, advice = file.schema_arrow.names, "correct meta/info.json, or copy the data set again"
        raise DatasetError(mismatch(f"{folder / name}: columns", f"{missing} among them", found, advice))
    try:
        return file.read(columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(mismatch(str(folder / name), "a parquet file", first_line(error), COPY_AGAIN)) from error


def first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def read_episodes(folder: Path, info: dict[str, Any]) -> dict[str, np.ndarray]:
    """Columns of meta/episodes by name, one row an episode, in order."""
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    for name, feature in info["features"].items():
        if feature["dtype"] == "video":
            parts = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
            columns += [f"videos/{name}/{part}" for part in parts]
    names = sorted(path.relative_to(folder).as_posix() for path in folder.glob("meta/episodes/*/*.parquet"))
    if not names:
        path = folder / "meta/episodes"
        raise DatasetError(mismatch(str(path), "parquet files", "none", "copy the data set again"))
    tables = [read_table(folder, name, columns) for name in names]
    index = {
        column: np.concatenate([table[column].to_numpy() for table in tables]).astype(
            np.float64 if column.endswith("timestamp") else np.int64
        )
        for column in columns
    }
    order = np.argsort(index["episode_index"], kind="stable")
    index = {column: values[order] for column, values in index.items()}
    for key, found in (("total_episodes", len(order)), ("total_frames", int(index["length"].sum()))):
        if info[key] != found:
            name, found = f"{folder}/meta/info.json: {key}", f"{found} in meta/episodes"
            raise DatasetError(mismatch(name, info[key], found, "a file of meta/ is missing or of another version"))
    return index


def read_tasks(folder: Path) -> dict[int, str]:
    """Tasks by index. pandas wrote the text as the table's index, under a name or none."""
    name = "meta/tasks.parquet"
    text = next((c for c in open_parquet(folder, name).schema_arrow.names if c != "task_index"), "task")
    table = read_table(folder, name, ["task_index", text])
    return dict(zip(table["task_index"].to_pylist(), table[text].to_pylist(), strict=True))


def read_statistics(folder: Path, features: dict[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """meta/stats.json as far as it is complete; what is left out is computed."""
    if not (folder / "meta/stats.json").is_file():
        return {}
    stored, place = {}, f"{folder}/meta/stats.json"
    content = _read_json(folder, "meta/stats.json")
    for name, feature in features.items():
        try:
            values = {key: np.asarray(content[name][key], np.float32) for key in STATISTICS}
        except KeyError:
            continue
        except (TypeError, ValueError) as error:
            raise DatasetError(mismatch(f"{place}: {name}", "numbers", str(error), COPY_AGAIN)) from error
        shape = (3, 1, 1) if feature["dtype"] in ("video", "image") else tuple(feature["shape"])
        if all(values[key].shape == shape and np.isfinite(values[key]).all() for key in STATISTICS[:-1]):
            stored[name] = values | {"count": values["count"].astype(np.int64)}
    return stored


def file_name(info: dict[str, Any], template: str, chunk: int, file: int, camera: str = "") -> str:
    """A path inside the data set from a template of info.json, which may come from anyone."""
    pattern, name = info.get(template), ""
    with suppress(KeyError, IndexError, ValueError, AttributeError):
        name = str(pattern or "").format(chunk_index=chunk, file_index=file, video_key=camera)
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        expected = "a path inside the data set, from {chunk_index}, {file_index} and, for videos, {video_key}"
        advice = "correct it, and do not trust a data set that points outside of itself"
        raise DatasetError(mismatch(f"meta/info.json: {template}", expected, name or pattern, advice))
    return name


def data_files(
    info: dict[str, Any], index: dict[str, np.ndarray], chosen: np.ndarray
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Every data file that the chosen episodes need: its name, all its episodes, and the chosen ones' row in it."""
    places = np.stack([index["data/chunk_index"], index["data/file_index"]], axis=1)
    for place in np.unique(places[chosen], axis=0):
        inside = np.flatnonzero((places == place).all(axis=1))
        yield file_name(info, "data_path", *place.tolist()), inside, np.isin(inside, chosen)
