"""Small data sets whose every value follows from its row: LeRobot's v3.0, v2.1 and v2.0, and a replay buffer."""

import json
from collections.abc import Sequence
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from visuomotor.data.statistics import describe
from visuomotor.data.writer_video import own_priority

LENGTHS = (5, 3, 6, 4)
HEIGHT, WIDTH, FPS = 64, 80, 5
TASKS = ("Push.", "Pull.")


def picture(row: int) -> np.ndarray:
    """(H, W, 3) uint8: above darker than below, bluish, and brighter row by row."""
    image = np.full((HEIGHT, WIDTH, 3), 8 * row, np.uint8)
    image[HEIGHT // 2 :] += 60
    image[..., 2] += 30
    return image


def write_lerobot(folder: Path, camera: str | None = None, codec: str = "libx264", lengths=LENGTHS) -> Path:
    """v3.0: two episodes a file, one file a chunk, data and video files; the second episode has another task.

    Args:
        folder: Where to.
        camera: The dtype of `observation.image`: `video`, `image`, or None for no camera.
        codec: Of the video.
        lengths: Frames of each episode.
    """
    ends = np.cumsum(lengths)
    records = []
    for file in range((len(lengths) + 1) // 2):
        inside = range(2 * file, min(2 * file + 2, len(lengths)))
        rows = np.arange(ends[inside[0]] - lengths[inside[0]], ends[inside[-1]])
        write_table(
            folder / f"data/chunk-{file:03d}/file-000.parquet", _columns(rows, lengths, camera), row_group_size=3
        )
        if camera == "video":
            write_video(folder / video_name(file), [picture(row) for row in rows], codec)
        for number in inside:
            start = frame_start = int(ends[number] - lengths[number])
            frame_start -= int(rows[0])
            record = {"episode_index": number, "tasks": [TASKS[number % 2]], "length": lengths[number]}
            record |= {"data/chunk_index": file, "data/file_index": 0}
            record |= {"dataset_from_index": start, "dataset_to_index": int(ends[number])}
            if camera == "video":
                key = "videos/observation.image"
                record |= {f"{key}/chunk_index": file, f"{key}/file_index": 0}
                record |= {f"{key}/from_timestamp": frame_start / FPS}
                record |= {f"{key}/to_timestamp": (frame_start + lengths[number]) / FPS}
            records.append(record)
    episodes = {name: pa.array([record[name] for record in records]) for name in records[0]}
    write_table(folder / "meta/episodes/chunk-000/file-000.parquet", episodes)
    write_table(folder / "meta/tasks.parquet", {"task_index": pa.array([0, 1]), "task": pa.array(TASKS)})
    info = {
        "codebase_version": "v3.0",
        "fps": FPS,
        "features": _features(camera),
        "total_episodes": len(lengths),
        "total_frames": int(sum(lengths)),
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4" if camera else None,
    }
    (folder / "meta/info.json").write_text(json.dumps(info))
    return folder


def write_legacy(
    folder: Path, version: str, camera: str | None = None, codec: str = "libx264", lengths=LENGTHS
) -> Path:
    """v2.0 or v2.1: the same demonstrations, two episodes a chunk, with statistics of state and action."""
    ends, episodes = np.cumsum(lengths), []
    for number, length in enumerate(lengths):
        rows = np.arange(ends[number] - length, ends[number])
        name = f"chunk-{number // 2:03d}/episode_{number:06d}"
        write_table(folder / f"data/{name}.parquet", _columns(rows, lengths, camera), row_group_size=3)
        if camera == "video":
            write_video(folder / legacy_video_name(number), [picture(row) for row in rows], codec)
        values = {"observation.state": _state(rows), "action": _action(rows)}
        stats = {key: {k: v.tolist() for k, v in describe(value).items()} for key, value in values.items()}
        episodes.append({"episode_index": number, "tasks": [TASKS[number % 2]], "length": length, "stats": stats})
    (folder / "meta").mkdir()
    write_lines(folder / "meta/episodes.jsonl", [{k: v for k, v in e.items() if k != "stats"} for e in episodes])
    write_lines(folder / "meta/tasks.jsonl", [{"task_index": n, "task": task} for n, task in enumerate(TASKS)])
    if version == "v2.1":
        stats = [{"episode_index": e["episode_index"], "stats": e["stats"]} for e in episodes]
        write_lines(folder / "meta/episodes_stats.jsonl", stats)
    else:
        rows = np.arange(sum(lengths))
        whole = {"observation.state": describe(_state(rows)), "action": describe(_action(rows))}
        stats = {key: {k: v.tolist() for k, v in values.items() if k != "count"} for key, values in whole.items()}
        (folder / "meta/stats.json").write_text(json.dumps(stats))
    info = {
        "codebase_version": version,
        "fps": FPS,
        "chunks_size": 2,
        "features": _features(camera),
        "total_episodes": len(lengths),
        "total_frames": int(sum(lengths)),
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    (folder / "meta/info.json").write_text(json.dumps(info))
    return folder


def _features(camera: str | None) -> dict[str, dict]:
    features = {
        "observation.state": {"dtype": "float32", "shape": [2], "names": ["x", "y"]},
        "observation.force": {"dtype": "float64", "shape": [1], "names": None},
        "action": {"dtype": "float32", "shape": [2], "names": ["x", "y"]},
        "next.done": {"dtype": "bool", "shape": [1], "names": None},
    }
    features |= {"timestamp": {"dtype": "float32", "shape": [1], "names": None}}
    for name in ("frame_index", "episode_index", "index", "task_index"):
        features[name] = {"dtype": "int64", "shape": [1], "names": None}
    if camera:
        names = ["height", "width", "channel"]
        features["observation.image"] = {"dtype": camera, "shape": [HEIGHT, WIDTH, 3], "names": names}
    return features


def _state(rows: np.ndarray) -> np.ndarray:
    return np.stack([10 * rows, np.full(len(rows), 7)], axis=1)


def _action(rows: np.ndarray) -> np.ndarray:
    return np.stack([rows, -rows], axis=1)


def _columns(rows: np.ndarray, lengths: Sequence[int], camera: str | None) -> dict[str, pa.Array]:
    ends = np.cumsum(lengths)
    episode = np.searchsorted(ends, rows, side="right")
    frame = rows - (ends - lengths)[episode]
    columns = {
        "observation.state": _vectors(_state(rows)),
        "observation.force": pa.array(rows / 2, pa.float64()),
        "action": _vectors(_action(rows)),
        "next.done": pa.array(rows == ends[episode] - 1),
        "timestamp": pa.array(frame / FPS, pa.float32()),
        "frame_index": pa.array(frame, pa.int64()),
        "episode_index": pa.array(episode, pa.int64()),
        "index": pa.array(rows, pa.int64()),
        "task_index": pa.array(episode % 2, pa.int64()),
    }
    if camera == "image":
        columns["observation.image"] = pa.array([{"bytes": png(picture(row)), "path": f"{row}.png"} for row in rows])
    return columns


def video_name(file: int) -> str:
    return f"videos/observation.image/chunk-{file:03d}/file-000.mp4"


def legacy_video_name(episode: int) -> str:
    return f"videos/chunk-{episode // 2:03d}/observation.image/episode_{episode:06d}.mp4"


def write_lines(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def edit_info(folder: Path, **changes: object) -> None:
    """Changes fields of meta/info.json."""
    path = folder / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_table(path: Path, **columns: object) -> None:
    """Replaces columns of a parquet file; None takes one out. Underscores stand as they are."""
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.drop_columns([name])
        if values is not None:
            table = table.append_column(name, values)
    pq.write_table(table, path)


def write_video(path: Path, images: list[np.ndarray], codec: str = "libx264", fps: int = FPS) -> Path:
    """A video with a key frame every 4 frames, close to lossless."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with own_priority(), av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream(codec, rate=fps, options={"crf": "1", "g": "4"})
        stream.width, stream.height = images[0].shape[1], images[0].shape[0]
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, fps)
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_replay_buffer(path: Path, lengths=LENGTHS, leave_out: str = "", episode_ends=None) -> Path:
    """A zarr v2 group laid out as the original Push-T file, images float32 in chunks of 4 frames."""
    import zarr

    rows = np.arange(sum(lengths), dtype=np.float32)
    arrays = {
        "data/img": np.stack([picture(int(row)) for row in rows]).astype(np.float32),
        "data/state": np.stack([rows, rows + 1, rows + 200, rows + 300, rows / 10], axis=1),
        "data/action": np.stack([rows, -rows], axis=1),
        "meta/episode_ends": np.asarray(np.cumsum(lengths) if episode_ends is None else episode_ends, np.int64),
    }
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    for name, values in arrays.items():
        if name != leave_out:
            chunks = (4, *values.shape[1:]) if name == "data/img" else values.shape
            group.create_array(name, data=values, chunks=chunks)
    return path


def _vectors(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), pa.float32()), values.shape[1])


def png(image: np.ndarray) -> bytes:
    content = BytesIO()
    Image.fromarray(image).save(content, "png")
    return content.getvalue()


def write_table(path: Path, columns: dict[str, pa.Array], **options: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
