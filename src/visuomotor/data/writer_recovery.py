"""An existing LeRobot v3.0 data set, opened for more episodes, and freed from what a stopped writer has left."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from visuomotor.data import lerobot
from visuomotor.data.demonstrations import COPY_AGAIN
from visuomotor.data.lerobot_meta import VERSION, read_json
from visuomotor.data.writer_features import DTYPES, check_fps, check_name
from visuomotor.data.writer_files import Cursor, DatasetFiles, first_rows, new_info
from visuomotor.data.writer_statistics import Statistics
from visuomotor.data.writer_tables import IMAGE_TYPES
from visuomotor.data.writer_video import Clip, count_frames, frame_rate, join, measure, video_kind
from visuomotor.errors import DatasetError, mismatch
from visuomotor.files import replacing


def open_files(folder: Path) -> DatasetFiles:
    """The set's files, ready for more episodes.

    Raises:
        DatasetError: No data set of v3.0, damaged, or written by somebody else just now.
    """
    info = _read_info(folder)
    known = lerobot.read(folder).tasks if info["total_episodes"] else {}  # says what is wrong, if anything is
    if sorted(known) != list(range(len(known))):
        name, advice = f"{folder}/meta/tasks.parquet", "make another set of it with `visuomotor convert`"
        raise DatasetError(mismatch(name, "tasks 0, 1, 2, ...", sorted(known), advice))
    files = DatasetFiles(folder, info)
    try:
        files.tasks = [known[number] for number in range(len(known))]
        episodes = _read_episodes(files)
        if episodes is not None:
            _find_cursors(files, episodes)
            _find_statistics(files, episodes)
        _sweep(files, episodes)
    except BaseException:
        files.close()
        raise
    return files


def _read_info(folder: Path) -> dict[str, Any]:
    """meta/info.json, and what it leaves to be understood."""
    info, name = read_json(folder, "meta/info.json"), f"{folder}/meta/info.json"
    if not isinstance(info, dict) or not isinstance(info.get("features"), dict):
        raise DatasetError(mismatch(f"{name}: features", "a dictionary", "none", COPY_AGAIN))
    if info.get("codebase_version") != VERSION:
        found, advice = info.get("codebase_version"), f"make one of it with `visuomotor convert {folder} TARGET`"
        raise DatasetError(mismatch(f"{name}: codebase_version", VERSION, found, advice))
    for key, feature in info["features"].items():
        check_name(key)
        if not isinstance(feature, dict) or feature.get("dtype") not in DTYPES:
            advice = "take it out with lerobot-edit-dataset (remove_feature), or record into a new set"
            raise DatasetError(mismatch(f"{name}: features.{key}", f"one of {list(DTYPES)} as dtype", feature, advice))
    info = new_info(check_fps(info.get("fps", 0)), info["features"], None) | info
    for key in ("total_episodes", "total_frames", "chunks_size", "data_files_size_in_mb", "video_files_size_in_mb"):
        if not isinstance(info[key], int) or info[key] < 0:
            raise DatasetError(mismatch(f"{name}: {key}", "a whole number", info[key], "correct it"))
    return info


def _read_episodes(files: DatasetFiles) -> pa.Table | None:
    """Rows of meta/episodes that count, None if there are none. Finds where they go on; files of others are deleted."""
    tables = []
    for path in sorted(files.folder.glob("meta/episodes/*/*.parquet")):
        table = pq.ParquetFile(path).read()
        table = table.filter(pa.array(table["episode_index"].to_numpy() < files.info["total_episodes"]))
        if table.num_rows:
            chunk, file = (int(part.rpartition("-")[2]) for part in (path.parent.name, path.stem))
            files.cursors["meta/episodes"] = Cursor(chunk, file, table.num_rows)
            files.episodes_schema = table.schema
            tables.append(table)
        else:
            path.unlink()
    return pa.concat_tables(tables, promote_options="permissive") if tables else None


def _find_cursors(files: DatasetFiles, episodes: pa.Table) -> None:
    rate = frame_rate(files.info["fps"])
    for kind in files.cursors:
        if kind == "meta/episodes":
            continue
        places = _places(episodes, kind)
        last = max(places)
        inside = np.array([place == last for place in places])
        if kind == "data":
            files.cursors[kind] = Cursor(*last, rows=int(episodes["length"].to_numpy()[inside].sum()))
        else:
            ends = episodes[f"{kind}/to_timestamp"].to_numpy()[inside]
            clip = Clip(files.path(kind, last), 0, round(float(ends.max()) * rate))
            # To a video that cannot be copied nothing is joined: the next episode begins a new one.
            found = video_kind(clip.path) if measure(clip, rate) else None
            files.cursors[kind] = Cursor(*last, rows=clip.frames, kind=found)


def _places(episodes: pa.Table, kind: str) -> list[tuple[int, int]]:
    columns = (episodes[f"{kind}/{part}"].to_pylist() for part in ("chunk_index", "file_index"))
    return list(zip(*columns, strict=True))


def _find_statistics(files: DatasetFiles, episodes: pa.Table) -> None:
    """Those of every episode, or else those of all together; none of a feature that has neither."""
    stored = {}
    if (files.folder / "meta/stats.json").is_file():
        stored = read_json(files.folder, "meta/stats.json")
    for name in files.statistics:
        feature = files.info["features"][name]
        shape = (3, 1, 1) if feature["dtype"] in IMAGE_TYPES else tuple(feature["shape"])
        prefix = f"stats/{name}/"
        columns = [column for column in episodes.column_names if column.startswith(prefix)]
        rows = zip(*(episodes[column].to_pylist() for column in columns), strict=True)
        keys = [column.removeprefix(prefix) for column in columns]
        single = [_parse(dict(zip(keys, row, strict=True)), shape) for row in rows]
        together = _parse(stored.get(name), shape)
        parts = single if single else [together]
        known = [part for part in parts if part is not None]
        files.statistics[name] = known if len(known) == len(parts) else None


def _parse(content: Any, shape: tuple[int, ...]) -> Statistics | None:
    """Statistics as arrays; None if one is missing, or not of that shape."""
    if not isinstance(content, dict):
        return None
    found = {name: np.asarray(value, np.float64) for name, value in content.items() if value is not None}
    shapes = {name: shape for name in ("min", "max", "mean", "std")} | {"count": (1,)}
    fits = all(name in found and found[name].shape == expected for name, expected in shapes.items())
    return found if fits else None


def _sweep(files: DatasetFiles, episodes: pa.Table | None) -> None:
    """Deletes files that no episode is in, and the ends of files that count for nothing."""
    for kind, cursor in files.cursors.items():
        for draft in (files.folder / kind).glob("*/.*.tmp"):
            draft.unlink()
        if kind != "meta/episodes":
            used = {files.path(kind, place) for place in _places(episodes, kind)} if episodes is not None else set()
            suffix = "mp4" if kind.startswith("videos/") else "parquet"
            for path in set((files.folder / kind).glob(f"*/*.{suffix}")) - used:
                path.unlink()
        if cursor.rows:
            _shorten(files, kind, cursor)
    for draft in (files.folder / "meta").glob(".*.tmp"):
        draft.unlink()


def _shorten(files: DatasetFiles, kind: str, cursor: Cursor) -> None:
    path = files.path(kind, cursor.place)
    if kind.startswith("videos/"):
        if cursor.kind is not None and count_frames(path) > cursor.rows:
            with replacing(path) as draft:
                join(draft, [Clip(path, 0, cursor.rows)], frame_rate(files.info["fps"]))
    elif pq.read_metadata(path).num_rows > cursor.rows:
        tables = list(first_rows(path, cursor.rows))
        with replacing(path) as draft, pq.ParquetWriter(draft, tables[0].schema) as writer:
            for table in tables:
                writer.write_table(table)
