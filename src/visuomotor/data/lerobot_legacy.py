"""The metadata of LeRobot's formats v2.0 and v2.1, read into what v3.0 has; one file an episode and a camera."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from visuomotor.data.demonstrations import COPY_AGAIN
from visuomotor.data.lerobot_meta import (
    LARGEST,
    first_line,
    in_order,
    parse_statistics,
    read_json,
    video_features,
)
from visuomotor.data.statistics import aggregate, rounded
from visuomotor.errors import DatasetError, mismatch


def read_episodes(folder: Path, info: dict[str, Any]) -> dict[str, np.ndarray]:
    """meta/episodes.jsonl as the columns of v3.0's meta/episodes, one row an episode, in order."""
    name = "meta/episodes.jsonl"
    records = _read_lines(folder, name, {"episode_index": int, "length": int})
    index = {key: np.array([record[key] for record in records], np.int64) for key in ("episode_index", "length")}
    index = in_order(folder, info, index, name)
    places = {"chunk_index": index["episode_index"] // int(info["chunks_size"]), "file_index": index["episode_index"]}
    seconds = {"from_timestamp": np.zeros(len(index["length"])), "to_timestamp": index["length"] / info["fps"]}
    index |= {f"data/{key}": values for key, values in places.items()}
    for camera in video_features(info):
        index |= {f"videos/{camera}/{key}": values for key, values in (places | seconds).items()}
    return index


def read_tasks(folder: Path) -> dict[int, str]:
    """Tasks by index."""
    records = _read_lines(folder, "meta/tasks.jsonl", {"task_index": int, "task": str})
    return {record["task_index"]: record["task"] for record in records}


def read_statistics(
    folder: Path, info: dict[str, Any], index: dict[str, np.ndarray], chosen: np.ndarray
) -> dict[str, dict[str, np.ndarray]]:
    """Statistics of just the chosen episodes, as far as they are complete; what is left out is computed.

    v2.1 has meta/episodes_stats.jsonl, an episode a line; v2.0 has meta/stats.json of all episodes together.
    """
    name = "meta/episodes_stats.jsonl"
    if not (folder / name).is_file():
        whole = len(chosen) == len(index["length"]) and (folder / "meta/stats.json").is_file()
        content = read_json(folder, "meta/stats.json") if whole else {}
        return {
            key: rounded(values) for key, values in parse_statistics(f"{folder}/meta/stats.json", content, info).items()
        }
    records = _read_lines(folder, name, {"episode_index": int, "stats": dict})
    by_episode = {record["episode_index"]: record["stats"] for record in records}
    parts = [
        parse_statistics(f"{folder}/{name}, episode {episode}", by_episode.get(episode, {}), info)
        for episode in index["episode_index"][chosen].tolist()
    ]
    complete = [key for key in info["features"] if all(key in part for part in parts)]
    return {key: aggregate([part[key] for part in parts]) for key in complete}


def _read_lines(folder: Path, name: str, fields: dict[str, type]) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, checked for the fields that are needed."""
    path = folder / name
    if not path.is_file():
        raise DatasetError(mismatch(str(path), "a LeRobot v2.x data set's file", "no such file", "copy meta/ again"))
    records = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines would cut at more than line feeds
    except (OSError, ValueError) as error:
        raise DatasetError(mismatch(str(path), "JSON lines", first_line(error), COPY_AGAIN)) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            place = f"{path}, line {number}"
            raise DatasetError(mismatch(place, "a JSON object", first_line(error), COPY_AGAIN)) from error
        for key, kind in fields.items():
            value = record.get(key) if isinstance(record, dict) else None
            if type(value) is not kind or (isinstance(value, int) and not 0 <= value <= LARGEST):
                expected = "a whole number" if kind is int else "text" if kind is str else "an object"
                raise DatasetError(mismatch(f"{path}, line {number}: {key}", expected, value, COPY_AGAIN))
        records.append(record)
    if not records:
        raise DatasetError(mismatch(str(path), "a line or more", "none", COPY_AGAIN))
    return records
