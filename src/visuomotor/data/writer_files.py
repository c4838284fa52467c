"""The files of a LeRobot v3.0 data set, which grow by episodes; meta/info.json, written last, says what counts."""

import os
import shutil
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from visuomotor.data.lerobot_meta import VERSION, file_name, video_features
from visuomotor.data.writer_statistics import Statistics, aggregate_all, describe_column
from visuomotor.data.writer_tables import IMAGE_TYPES, data_schema, data_table, episodes_table, tasks_table
from visuomotor.data.writer_video import Clip, Pictures, VideoKind, frame_rate, join, video_info, video_kind
from visuomotor.errors import DatasetError, mismatch
from visuomotor.files import hold, replacing, write_json

PATHS = {
    "data": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "videos": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    "meta/episodes": "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
}
CHUNK = 1000  # files in a folder
SIZES = (100, 200)
"""Of a data file and of a video file, in MB: if an episode would make it larger, it goes into the next."""
MEGABYTE = 1024**2
WORKPLACE = ".recording"


@dataclass(frozen=True)
class Episode:
    """An episode that is whole, n frames."""

    columns: dict[str, np.ndarray]
    """Every low-dimensional feature of the data set's own: (n, *shape), or (n,)."""
    tasks: Sequence[str]
    """What was to be done at each frame."""
    cameras: dict[str, Clip | Pictures] = field(default_factory=dict)
    """The frames of each camera."""
    statistics: dict[str, Statistics] = field(default_factory=dict)
    """Those of the cameras."""


@dataclass
class Cursor:
    """The file of a kind that grows now."""

    chunk: int = 0
    file: int = 0
    rows: int = 0
    """Frames, or episodes, in it that count. Behind them there may be some that do not."""
    size: int = 0
    """Its bytes, about."""
    kind: VideoKind | None = None
    """Of a video: only its own kind can be joined to it."""

    @property
    def place(self) -> tuple[int, int]:
        return self.chunk, self.file

    def take(self, rows: int, size: int, limit: int, chunk_size: int, kind: VideoKind | None = None) -> tuple[int, int]:
        """Makes room for more rows, in the next file if they do not fit, and returns its place."""
        if self.rows and (self.size + size >= limit or self.kind != kind):
            self.chunk, self.file = divmod(self.chunk * chunk_size + self.file + 1, chunk_size)
            self.rows = self.size = 0
        self.rows, self.size, self.kind = self.rows + rows, self.size + size, kind
        return self.place


def new_info(
    fps: float, features: dict[str, Any], robot_type: str | None, sizes: tuple[int, int] = SIZES
) -> dict[str, Any]:
    """meta/info.json of a set without episodes."""
    videos = any(feature["dtype"] == "video" for feature in features.values())
    return {
        "codebase_version": VERSION,
        "fps": int(fps) if fps == int(fps) else fps,
        "features": features,
        "total_episodes": 0,
        "total_frames": 0,
        "total_tasks": 0,
        "chunks_size": CHUNK,
        "data_files_size_in_mb": sizes[0],
        "video_files_size_in_mb": sizes[1],
        "data_path": PATHS["data"],
        "video_path": PATHS["videos"] if videos else None,
        "robot_type": robot_type,
        "splits": {},
    }


class DatasetFiles:
    """A data set's folder, held by one writer at a time.

    Every file that grows is written again beside the old one, whose content it begins with, and moved into its place. A
    reader that keeps to meta/info.json therefore finds the same episodes at every moment.

    Attributes:
        folder: The data set.
        info: meta/info.json.
        tasks: Their texts; the place is the index.
        workplace: A folder for files in the making.
        cursors: Where `data`, `meta/episodes` and each `videos/<camera>` go on.
        statistics: Of every episode, by feature; None where those of earlier ones are not known.
        episodes_schema: Columns of meta/episodes, once there are any.
        encoding: The settings of a camera's encoder, for info.json; nothing if its videos come from elsewhere.
    """

    def __init__(self, folder: Path, info: dict[str, Any]):
        self.folder, self.info = folder, info
        self.tasks: list[str] = []
        self.workplace: Path = folder / WORKPLACE
        kinds = ["data", "meta/episodes", *(f"videos/{name}" for name in video_features(info))]
        self.cursors: dict[str, Cursor] = {kind: Cursor() for kind in kinds}
        described = [name for name, feature in info["features"].items() if feature["dtype"] != "string"]
        self.statistics: dict[str, list[Statistics] | None] = {name: [] for name in described}
        self.episodes_schema: pa.Schema | None = None
        self.encoding: dict[str, dict[str, Any]] = {}
        self._schema = data_schema(info["features"])
        self._lock = hold(folder)
        if self._lock is None:
            advice = "wait until it has finished, or stop it"
            raise DatasetError(mismatch(str(folder), "a folder that nobody else writes to", "another writer", advice))
        shutil.rmtree(self.workplace, ignore_errors=True)  # of a writer that was stopped
        self.workplace.mkdir()

    @classmethod
    def create(cls, folder: Path, info: dict[str, Any], tasks: Sequence[str] = ()) -> "DatasetFiles":
        """A new set without episodes, in a folder that is empty.

        Raises:
            DatasetError: Another writer holds the folder.
        """
        folder.mkdir(parents=True, exist_ok=True)
        files = cls(folder, info)
        files.tasks = list(tasks)
        write_json(folder / "meta/info.json", info)
        return files

    def close(self) -> None:
        """Lets others write to the folder. May be called again."""
        if self._lock is not None:
            shutil.rmtree(self.workplace, ignore_errors=True)
            os.close(self._lock)
            self._lock = None

    def path(self, kind: str, place: tuple[int, int]) -> Path:
        """The file of a kind, as in `cursors`, at a chunk and file number."""
        if kind == "meta/episodes":
            return self.folder / PATHS[kind].format(chunk_index=place[0], file_index=place[1])
        camera = kind.partition("/")[2]
        return self.folder / file_name(self.info, "video_path" if camera else "data_path", *place, camera=camera)

    def add(self, episodes: Sequence[Episode]) -> None:
        """Writes episodes: afterwards all of them count, or after an error none.

        Raises:
            DatasetError: A video cannot be joined.
        """
        info, cursors = deepcopy(self.info), deepcopy(self.cursors)
        tasks = list(dict.fromkeys([*self.tasks, *(text for episode in episodes for text in episode.tasks)]))
        columns = self._complete(episodes, {text: number for number, text in enumerate(tasks)})
        found = [self._describe(episode, one) for episode, one in zip(episodes, columns, strict=True)]
        records = self._place(episodes, columns, cursors)
        for camera in video_features(info):
            self._write_videos(camera, episodes, records)
            feature, kind = info["features"][camera], cursors[f"videos/{camera}"].kind
            if not feature.get("info"):
                assert kind is not None
                feature["info"] = video_info(kind, info["fps"], self.encoding.get(camera, {}))
        self._write_data(episodes, columns, records)
        schema = self._write_episodes(records, found, cursors["meta/episodes"])
        if tasks != self.tasks or not self.info["total_episodes"]:
            with replacing(self.folder / "meta/tasks.parquet") as draft:
                pq.write_table(tasks_table(tasks), draft)
        statistics = {
            name: None if parts is None else [*parts, *(one[name] for one in found)]
            for name, parts in self.statistics.items()
        }
        together = {name: aggregate_all(parts) for name, parts in statistics.items() if parts}
        content = {name: {key: value.tolist() for key, value in one.items()} for name, one in together.items()}
        write_json(self.folder / "meta/stats.json", content)
        info["total_episodes"] += len(episodes)
        info["total_frames"] += sum(len(episode.tasks) for episode in episodes)
        info |= {"total_tasks": len(tasks), "splits": {"train": f"0:{info['total_episodes']}"}}
        write_json(self.folder / "meta/info.json", info)
        self.info, self.tasks, self.cursors = info, tasks, cursors
        self.statistics, self.episodes_schema = statistics, schema

    def _complete(self, episodes: Sequence[Episode], numbers: dict[str, int]) -> list[dict[str, np.ndarray]]:
        """All low-dimensional columns of each episode, with the types of info.json."""
        completed, first = [], self.info["total_frames"]
        for episode_index, episode in enumerate(episodes, self.info["total_episodes"]):
            frame = np.arange(len(episode.tasks))
            columns = {"timestamp": frame / self.info["fps"], "frame_index": frame} | episode.columns
            columns |= {"episode_index": np.full(len(frame), episode_index), "index": first + frame}
            columns |= {"task_index": np.array([numbers[text] for text in episode.tasks])}
            completed.append(
                {
                    name: columns[name].astype(object if feature["dtype"] == "string" else feature["dtype"], copy=False)
                    for name, feature in self.info["features"].items()
                    if feature["dtype"] not in IMAGE_TYPES
                }
            )
            first += len(frame)
        return completed

    def _describe(self, episode: Episode, columns: dict[str, np.ndarray]) -> dict[str, Statistics]:
        return {
            name: describe_column(columns[name]) if name in columns else episode.statistics[name]
            for name in self.statistics
        }

    def _place(
        self, episodes: Sequence[Episode], columns: Sequence[dict[str, np.ndarray]], cursors: dict[str, Cursor]
    ) -> list[dict[str, Any]]:
        """Where each episode goes: the first columns of meta/episodes. Moves the cursors on."""
        info, fps, chunk_size = self.info, self.info["fps"], self.info["chunks_size"]
        for kind, cursor in cursors.items():
            cursor.size = self.path(kind, cursor.place).stat().st_size if cursor.rows else 0
        records, first = [], info["total_frames"]
        for number, episode in enumerate(episodes):
            frames = len(episode.tasks)
            size = sum(values.nbytes for values in columns[number].values())
            size += sum(images.size for images in episode.cameras.values() if isinstance(images, Pictures))
            place = cursors["data"].take(frames, size, info["data_files_size_in_mb"] * MEGABYTE, chunk_size)
            record = {"episode_index": info["total_episodes"] + number, "tasks": list(dict.fromkeys(episode.tasks))}
            record |= {"length": frames, "data/chunk_index": place[0], "data/file_index": place[1]}
            record |= {"dataset_from_index": first, "dataset_to_index": first + frames}
            for camera in video_features(info):
                key, clip = f"videos/{camera}", episode.cameras[camera]
                cursor, limit = cursors[key], info["video_files_size_in_mb"] * MEGABYTE
                place = cursor.take(frames, clip.size, limit, chunk_size, video_kind(clip.path))
                start = cursor.rows - frames
                record |= {f"{key}/chunk_index": place[0], f"{key}/file_index": place[1]}
                record |= {f"{key}/from_timestamp": start / fps, f"{key}/to_timestamp": cursor.rows / fps}
            records.append(record)
            first += frames
        return records

    def _write_videos(self, camera: str, episodes: Sequence[Episode], records: list[dict[str, Any]]) -> None:
        kind, rate = f"videos/{camera}", frame_rate(self.info["fps"])
        for place, inside in by_place(records, kind):
            clips = [episodes[number].cameras[camera] for number in inside]
            path, before = self.path(kind, place), self.cursors[kind]
            if before.rows and place == before.place:
                clips.insert(0, Clip(path, 0, before.rows))
            with replacing(path) as draft:
                join(draft, [clip for clip in clips if isinstance(clip, Clip)], rate)

    def _write_data(
        self,
        episodes: Sequence[Episode],
        columns: Sequence[dict[str, np.ndarray]],
        records: list[dict[str, Any]],
    ) -> None:
        for place, inside in by_place(records, "data"):
            path, before = self.path("data", place), self.cursors["data"]
            old = before.rows if place == before.place else 0
            schema = pq.read_schema(path) if old else self._schema
            with replacing(path) as draft, pq.ParquetWriter(draft, schema) as writer:
                for table in first_rows(path, old):
                    writer.write_table(table)
                for number in inside:  # a group of rows for each, as LeRobot writes them
                    images = {n: f for n, f in episodes[number].cameras.items() if isinstance(f, Pictures)}
                    table = data_table(self._schema, columns[number], images)
                    writer.write_table(table.select(schema.names).cast(schema))

    def _write_episodes(
        self, records: list[dict[str, Any]], found: list[dict[str, Statistics]], cursor: Cursor
    ) -> pa.Schema:
        for record, statistics in zip(records, found, strict=True):
            for name, one in statistics.items():
                record |= {f"stats/{name}/{key}": value for key, value in one.items()}
            size, limit = 16 * len(record), self.info["data_files_size_in_mb"] * MEGABYTE
            place = cursor.take(1, size, limit, self.info["chunks_size"])
            record |= {"meta/episodes/chunk_index": place[0], "meta/episodes/file_index": place[1]}
        schema = self.episodes_schema
        for place, inside in by_place(records, "meta/episodes"):
            table = episodes_table([records[number] for number in inside], schema)
            path, before = self.path("meta/episodes", place), self.cursors["meta/episodes"]
            if before.rows and place == before.place:
                table = pa.concat_tables([*first_rows(path, before.rows), table])
            with replacing(path) as draft:
                pq.write_table(table, draft)
            schema = table.schema
        assert schema is not None
        return schema


def by_place(records: list[dict[str, Any]], kind: str) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """Every file of a kind that the records name, with the positions of those in it."""
    places: dict[tuple[int, int], list[int]] = {}
    for number, record in enumerate(records):
        places.setdefault((record[f"{kind}/chunk_index"], record[f"{kind}/file_index"]), []).append(number)
    yield from places.items()


def first_rows(path: Path, count: int) -> Iterator[pa.Table]:
    """The first rows of a parquet file, group after group."""
    if not count:
        return
    file = pq.ParquetFile(path)
    for group in range(file.num_row_groups):
        table = file.read_row_group(group).slice(0, count)
        count -= table.num_rows
        if table.num_rows:
            yield table
