"""The metadata of LeRobot's format v3.0: meta/info.json, episodes, tasks and statistics, and where the files are."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from visuomotor.data.demonstrations import COPY_AGAIN
from visuomotor.data.statistics import rounded
from visuomotor.errors import DatasetError, mismatch

VERSION = "v3.0"
LEGACY = ("v2.1", "v2.0")
PLACES = {VERSION: ("chunk_index", "file_index")} | dict.fromkeys(LEGACY, ("episode_chunk", "episode_index"))
"""What the templates of file names call a chunk and a file; v2.x has one episode a file."""
REQUIRED = ("action", "episode_index", "frame_index", "task_index")
NUMBERS = ("float", "int", "uint", "bool")  # what their dtypes begin with
IGNORED = ("language", "audio")  # dtypes that no policy here sees
IMPLIED = {
    "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    "index": {"dtype": "int64", "shape": [1], "names": None},
}
"""Features that follow from the episodes' lengths, where a data set does not have them."""
STATISTICS = ("min", "max", "mean", "std", "count")
LARGEST = 1e9  # an episode's number or frames, a file's number, or seconds into a video: beyond is damage


def read_info(folder: Path) -> dict[str, Any]:
    """`meta/info.json`, checked as far as this reader relies on it, with the features that are implied."""
    if not folder.is_dir():
        advice = "pass the folder that holds meta/info.json"
        raise DatasetError(mismatch(str(folder), "a LeRobot data set", "no such folder", advice))
    info = read_json(folder, "meta/info.json")
    name = f"{folder}/meta/info.json"
    if not isinstance(info, dict) or not isinstance(info.get("features"), dict):
        raise DatasetError(mismatch(f"{name}: features", "a dictionary", "none", "copy meta/ again"))
    version = info.get("codebase_version")
    if version not in (VERSION, *LEGACY):
        advice = f"this version is not read; {VERSION}, {' and '.join(LEGACY)} are"
        raise DatasetError(mismatch(f"{name}: codebase_version", VERSION, version, advice))
    for key in ("fps", "total_frames", "total_episodes", *(["chunks_size"] if version in LEGACY else [])):
        value = info.get(key)
        if not isinstance(value, int | float) or not 0 < value < math.inf:
            raise DatasetError(mismatch(f"{name}: {key}", "a number above 0", value, "correct it"))
    for key, feature in info["features"].items():
        _check_feature(f"{name}: features.{key}", key, feature)
    missing = [f"`{key}`" for key in REQUIRED if key not in info["features"]]
    if missing:
        found, advice = list(info["features"]), "add it, or give that feature this name"
        raise DatasetError(mismatch(f"{name}: features", f"{', '.join(missing)} among them", found, advice))
    for key, feature in IMPLIED.items():
        info["features"].setdefault(key, feature)
    return info


def _check_feature(place: str, key: str, feature: Any) -> None:
    dtype, shape = (feature.get(part) if isinstance(feature, dict) else None for part in ("dtype", "shape"))
    sizes = shape if isinstance(shape, list) else [None]
    if not isinstance(dtype, str) or not all(type(size) is int and 0 < size < LARGEST for size in sizes):
        raise DatasetError(mismatch(place, "a dtype and a shape", feature, "correct it"))
    if key in REQUIRED[1:] and (not dtype.startswith(("int", "uint")) or sizes not in ([], [1])):
        raise DatasetError(mismatch(place, "int64 of shape [1]", f"{dtype} of shape {shape}", "correct it"))
    known = dtype.startswith(NUMBERS) or dtype in ("string", "video", "image", *IGNORED)
    if not known and (key == "action" or key.startswith("observation.")):
        expected = "a dtype of numbers, string, video or image"
        raise DatasetError(mismatch(place, expected, dtype, "correct it, or take the feature out"))


def dimension_names(feature: dict[str, Any]) -> list[str]:
    """A feature's dimensions, from a list or a dictionary of lists or positions; none where they do not fit."""
    names = feature.get("names")
    if isinstance(names, dict):
        lists = [value for value in names.values() if isinstance(value, list)]
        names = [name for value in lists for name in value] if lists else list(names)
    fits = isinstance(names, list) and len(names) == math.prod(feature["shape"])
    return [str(name) for name in names] if fits else []


def read_json(folder: Path, name: str) -> Any:
    path = folder / name
    if not path.is_file():
        advice = "pass the folder that holds meta/info.json, or copy the data set again"
        raise DatasetError(mismatch(str(path), "a LeRobot v3.0 data set's file", "no such file", advice))
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(mismatch(str(path), "JSON", first_line(error), COPY_AGAIN)) from error


def open_parquet(folder: Path, name: str, columns: Sequence[str] = (), optional: Sequence[str] = ()) -> pq.ParquetFile:
    """A parquet file that has certain columns, each once; those that are optional may be missing."""
    path = folder / name
    if not path.is_file():
        raise DatasetError(mismatch(str(path), "a parquet file", "no such file", "copy the data set again"))
    try:
        file = pq.ParquetFile(path)
        known = file.schema_arrow.names  # the schema can be damaged where the rest is not
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DatasetError(mismatch(str(path), "a parquet file", first_line(error), COPY_AGAIN)) from error
    missing = [c for c in columns if known.count(c) != 1 and (c in known or c not in optional)]
    if missing:
        advice = "correct meta/info.json, or copy the data set again"
        raise DatasetError(mismatch(f"{path}: columns", f"{missing} among them", known, advice))
    return file


def read_table(folder: Path, name: str, columns: Sequence[str], optional: Sequence[str] = ()) -> pa.Table:
    """Columns of a parquet file; those that are optional may be missing."""
    file = open_parquet(folder, name, columns, optional)
    known = file.schema_arrow.names
    try:
        return file.read(columns=[column for column in columns if column in known])
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DatasetError(mismatch(str(folder / name), "a parquet file", first_line(error), COPY_AGAIN)) from error


def numbers(name: str, column: pa.ChunkedArray) -> np.ndarray:
    """A column of whole numbers as int64, or of other numbers as float64, none of them missing or absurd."""
    whole = pa.types.is_integer(column.type)
    if not (whole or pa.types.is_floating(column.type)) or column.null_count:
        found = f"{column.type} with {column.null_count} empty"
        raise DatasetError(mismatch(name, "numbers", found, COPY_AGAIN))
    values = column.to_numpy().astype(np.int64 if whole else np.float64)
    wrong = np.flatnonzero(~((values >= 0) & (values <= LARGEST)))
    if len(wrong):
        place = f"{name}, row {wrong[0]}"
        raise DatasetError(mismatch(place, f"0 to {LARGEST:.0e}", values[wrong[0]], COPY_AGAIN))
    return values


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def video_features(info: dict[str, Any]) -> list[str]:
    """The cameras whose frames lie in video files."""
    return [name for name, feature in info["features"].items() if feature["dtype"] == "video"]


def read_episodes(folder: Path, info: dict[str, Any]) -> dict[str, np.ndarray]:
    """Columns of meta/episodes by name, one row an episode, in order."""
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    for name in video_features(info):
        columns += [f"videos/{name}/{p}" for p in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")]
    names = sorted(path.relative_to(folder).as_posix() for path in folder.glob("meta/episodes/*/*.parquet"))
    if not names:
        path = folder / "meta/episodes"
        raise DatasetError(mismatch(str(path), "parquet files", "none", "copy the data set again"))
    tables = [(name, read_table(folder, name, columns)) for name in names]
    index = {
        column: np.concatenate([numbers(f"{folder / name}: {column}", table[column]) for name, table in tables])
        for column in columns
    }
    return in_order(folder, info, index, "meta/episodes")


def in_order(folder: Path, info: dict[str, Any], index: dict[str, np.ndarray], place: str) -> dict[str, np.ndarray]:
    """The episodes that info.json counts, ascending.

    A recorder writes info.json last: episodes from `total_episodes` on are those of one that was stopped, and left out.
    """
    if len(index["episode_index"]) > info["total_episodes"]:
        kept = index["episode_index"] < info["total_episodes"]
        index = {column: values[kept] for column, values in index.items()}
    order = np.argsort(index["episode_index"], kind="stable")
    index = {column: values[order] for column, values in index.items()}
    for key, found in (("total_episodes", len(order)), ("total_frames", int(index["length"].sum()))):
        if info[key] != found:
            name, found = f"{folder}/meta/info.json: {key}", f"{found} in {place}"
            raise DatasetError(mismatch(name, info[key], found, "a file of meta/ is missing or of another version"))
    twice = index["episode_index"][1:][np.diff(index["episode_index"]) == 0]
    if len(twice):
        raise DatasetError(mismatch(f"{folder}/{place}", "every episode once", f"{twice[0]} twice", COPY_AGAIN))
    return index


def read_tasks(folder: Path) -> dict[int, str]:
    """Tasks by index. pandas wrote the text as the table's index, under a name or none."""
    name = "meta/tasks.parquet"
    text = next((c for c in open_parquet(folder, name).schema_arrow.names if c != "task_index"), "task")
    table = read_table(folder, name, ["task_index", text])
    if not (pa.types.is_string(table[text].type) or pa.types.is_large_string(table[text].type)):
        raise DatasetError(mismatch(f"{folder / name}: {text}", "text", table[text].type, COPY_AGAIN))
    numbered = numbers(f"{folder / name}: task_index", table["task_index"]).tolist()
    return dict(zip(numbered, (str(task) for task in table[text].to_pylist()), strict=True))


def read_statistics(
    folder: Path, info: dict[str, Any], index: dict[str, np.ndarray], chosen: np.ndarray
) -> dict[str, dict[str, np.ndarray]]:
    """meta/stats.json as far as it is complete; what is left out is computed. It holds for all episodes only."""
    if not (folder / "meta/stats.json").is_file() or len(chosen) != len(index["length"]):
        return {}
    stored = parse_statistics(f"{folder}/meta/stats.json", read_json(folder, "meta/stats.json"), info)
    return {name: rounded(values) for name, values in stored.items()}


def parse_statistics(place: str, content: Any, info: dict[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """Statistics by feature, float64. A feature without all of them is left out.

    v2.0 has no `count`: it went over all frames.
    """
    stored = {}
    for name, feature in info["features"].items():
        try:
            found = {"count": [info["total_frames"]]} if info["codebase_version"] == LEGACY[1] else {}
            values = {key: np.asarray((found | content[name])[key], np.float64) for key in STATISTICS}
        except KeyError:
            continue
        except (TypeError, ValueError, OverflowError) as error:
            raise DatasetError(mismatch(f"{place}: {name}", "numbers", first_line(error), COPY_AGAIN)) from error
        shape = (3, 1, 1) if feature["dtype"] in ("video", "image") else tuple(feature["shape"])
        fits = all(values[key].shape == shape for key in STATISTICS[:-1]) and values["count"].shape == (1,)
        largest = np.finfo(np.float32).max
        if fits and all((np.abs(value) <= largest).all() for value in values.values()) and values["count"] >= 1:
            stored[name] = values
    return stored


def file_name(info: dict[str, Any], template: str, chunk: int, file: int, camera: str = "") -> str:
    """A path inside the data set from a template of info.json, which may come from anyone."""
    pattern, name = info.get(template), ""
    parts = PLACES[info["codebase_version"]]
    allowed = rf"([^{{}}]|\{{({'|'.join(parts)})(:0?\d\d?d)?\}}|\{{video_key\}})+"
    if re.fullmatch(allowed, str(pattern or "")):
        name = str(pattern).format(**{parts[0]: chunk, parts[1]: file, "video_key": camera})
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        expected = f"a path inside the data set, from {{{parts[0]}}}, {{{parts[1]}}} and, for videos, {{video_key}}"
        advice = "correct it, and do not trust a data set that points outside of itself"
        raise DatasetError(mismatch(f"meta/info.json: {template}", expected, name or pattern, advice))
    return name


def by_file(
    index: dict[str, np.ndarray], chosen: np.ndarray, kind: str
) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """The places, chunk and file, that the chosen episodes need, and which of these episodes each holds.

    Args:
        index: What `read_episodes` gives.
        chosen: Positions of episodes in it.
        kind: `data`, or `videos/<camera>`.
    """
    places = np.stack([index[f"{kind}/chunk_index"][chosen], index[f"{kind}/file_index"][chosen]], axis=1)
    known, inverse = np.unique(places, axis=0, return_inverse=True)
    inverse = inverse.ravel()  # NumPy 2.0 kept the axis
    order = np.argsort(inverse, kind="stable")
    for place, held in zip(known, np.split(order, np.cumsum(np.bincount(inverse))[:-1]), strict=True):
        yield (int(place[0]), int(place[1])), chosen[held]


def data_files(
    info: dict[str, Any], index: dict[str, np.ndarray], chosen: np.ndarray
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Every data file that the chosen episodes need: its name, all its episodes, and the chosen ones' row in it."""
    wanted = np.zeros(len(index["length"]), bool)
    wanted[chosen] = True
    for place, inside in by_file(index, np.arange(len(wanted)), "data"):
        if wanted[inside].any():
            yield file_name(info, "data_path", *place), inside, wanted[inside]
