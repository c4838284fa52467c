"""Recording: what is written is read back, by us and in LeRobot's layout, whatever happens in between."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from itertools import count
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from visuomotor.data import writer_files, writer_video
from visuomotor.data.dataset import load_dataset
from visuomotor.data.statistics import describe
from visuomotor.data.writer import DatasetWriter
from visuomotor.data.writer_features import DEFAULTS
from visuomotor.errors import DatasetError

from .recording import FEATURES, HAND, SHAPE, TOP, frame, picture, record, rows_of

NUMBERS = {name: feature for name, feature in FEATURES.items() if name not in (TOP, HAND)}


def numbers(row: int) -> dict[str, object]:
    """A frame without pictures."""
    return {name: value for name, value in frame(row).items() if name in NUMBERS}


def check(folder: Path, *lengths: int) -> None:
    """Just these episodes are there, and every value of theirs."""
    found = load_dataset(folder)
    rows = list(range(sum(lengths)))
    assert np.diff(found.episode_ends, prepend=0).tolist() == list(lengths)
    assert found.arrays["index"].tolist() == rows
    assert found.arrays["frame_index"].tolist() == [frame for length in lengths for frame in range(length)]
    assert found.arrays["observation.state"].tolist() == [[row, 7] for row in rows]
    assert found.arrays["note"].tolist() == [f"row {row}" for row in rows]
    assert rows_of(found.frames[TOP]) == rows
    np.testing.assert_array_equal(found.frames[HAND], np.stack([picture(row) for row in rows]))
    tasks = [f"task {episode % 2}" for episode, length in enumerate(lengths) for _ in range(length)]
    assert [found[row]["task"] for row in rows] == tasks


@pytest.mark.parametrize(("codec", "fps"), [("av1", 10), ("av1", 29.97), ("h264", 15), ("h264", 30000 / 1001)])
def test_every_frame_comes_back_at_its_time(tmp_path, codec, fps):
    with DatasetWriter.create(tmp_path / "set", fps, FEATURES, "arm", video_codec=codec) as writer:
        record(writer, 5, 1, 8)
        assert (writer.total_episodes, writer.total_frames, writer.episode_frames) == (3, 14, 0)
    check(tmp_path / "set", 5, 1, 8)
    assert load_dataset(tmp_path / "set").fps == fps
    with av.open(str(tmp_path / "set/videos" / TOP / "chunk-000/file-000.mp4")) as container:
        stream = container.streams.video[0]
        times = [packet.pts * stream.time_base for packet in container.demux(stream) if packet.pts is not None]
        assert (stream.codec.canonical_name, float(stream.average_rate)) == (codec, fps)
    assert times == [number / writer_video.frame_rate(fps) for number in range(14)]
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["data", "meta", "videos"]


def test_values_may_be_arrays_tensors_or_numbers_and_images_either_way_round(tmp_path):
    features = NUMBERS | {
        "observation.grip": {"dtype": "float64", "shape": (1,)},
        "observation.table": {"dtype": "int16", "shape": (2, 3)},
        "next.done": {"dtype": "bool", "shape": (1,)},
        HAND: {"dtype": "image", "shape": (3, *SHAPE[:2])},
    }
    image = picture(5)
    table = [[1, 2, 3], [4, 5, 6]]
    with DatasetWriter.create(tmp_path / "set", 5, features) as writer:
        for form, grip in ((image.transpose(2, 0, 1), 0.5), (image / 255, [0.5]), (torch.tensor(image), torch.ones(1))):
            values = numbers(0) | {"observation.state": torch.tensor([0, 7]), "next.done": True}
            writer.add_frame(values | {HAND: form, "observation.grip": grip, "observation.table": table}, "task")
        writer.save_episode()
    found = load_dataset(tmp_path / "set")
    np.testing.assert_array_equal(found.frames[HAND], np.stack([image] * 3))
    assert found.arrays["observation.grip"].tolist() == [0.5, 0.5, 1]
    assert found.arrays["observation.table"].tolist() == [table] * 3
    assert found.arrays["next.done"].tolist() == [True] * 3
    assert found.features[HAND].shape == (3, *SHAPE[:2])


def test_what_was_given_may_change_afterwards(tmp_path):
    with DatasetWriter.create(tmp_path / "set", 10, FEATURES) as writer:
        reused = picture(0).copy(), np.zeros(2, np.float32)
        for row in range(4):
            reused[0][:], reused[1][:] = picture(row), (row, 7)
            values = {TOP: reused[0], HAND: reused[0], "observation.state": reused[1]}
            writer.add_frame(frame(row) | values, "task 0")
        writer.save_episode()
    check(tmp_path / "set", 4)


@pytest.mark.parametrize("name", ["pusht_v30_video", "pusht_v30_image"])
def test_files_are_laid_out_as_lerobot_writes_them(shared, tmp_path, name):
    """info.json with the order of its keys, and names, types and metadata of every parquet file's columns."""
    theirs, ours = shared / "lerobot/datasets" / name, tmp_path / "set"
    info = json.loads((theirs / "meta/info.json").read_text())
    kind = info["features"]["observation.image"]["dtype"]
    features = {key: feature for key, feature in info["features"].items() if key not in DEFAULTS}
    with DatasetWriter.create(ours, info["fps"], features, info["robot_type"]) as writer:
        for _ in range(3):
            for _ in range(2):
                writer.add_frame(pusht(features, 0), "Push.")
            writer.save_episode()
    written = json.loads((ours / "meta/info.json").read_text())
    info["features"]["observation.image"]["names"][2] = "channels"
    assert list(written) == list(info)
    assert written == info | {"total_frames": 6}
    assert list(written["features"]["observation.image"]) == list(info["features"]["observation.image"])
    for file in ("data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet", "meta/tasks.parquet"):
        expected, found = pq.ParquetFile(theirs / file), pq.ParquetFile(ours / file)
        assert found.schema_arrow.remove_metadata().equals(expected.schema_arrow.remove_metadata()), file
        assert library_metadata(found) == library_metadata(expected), file
    assert pq.read_metadata(ours / "data/chunk-000/file-000.parquet").num_row_groups == 3 if kind == "image" else True
    statistics = [json.loads((folder / "meta/stats.json").read_text()) for folder in (theirs, ours)]
    assert {key: set(one) for key, one in statistics[1].items()} == {
        key: set(one) for key, one in statistics[0].items()
    }


def pusht(features: dict, value: float) -> dict[str, np.ndarray]:
    """A frame of one value alone."""
    dtypes = {name: "uint8" if name == "observation.image" else one["dtype"] for name, one in features.items()}
    return {name: np.full(one["shape"], value, dtypes[name]) for name, one in features.items()}


def library_metadata(file: pq.ParquetFile) -> dict:
    metadata = {key.decode(): json.loads(value) for key, value in (file.schema_arrow.metadata or {}).items()}
    metadata.get("huggingface", {}).pop("fingerprint", None)  # of a cache
    metadata.get("pandas", {}).pop("creator", None)
    return metadata


def test_statistics_of_an_episode_and_of_all(tmp_path):
    with DatasetWriter.create(tmp_path / "set", 10, FEATURES) as writer:
        record(writer, 4, 6)
    table = pq.read_table(tmp_path / "set/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    together = json.loads((tmp_path / "set/meta/stats.json").read_text())
    images = np.stack([picture(row) for row in range(10)])
    values = np.arange(10, dtype=np.float32)
    for part, rows in ((table[0], slice(0, 4)), (table[1], slice(4, 10)), (together, slice(0, 10))):
        for name, column in ((HAND, images[rows]), (TOP, images[rows])):
            for key, expected in describe(column).items():
                found = part[name][key] if part is together else part[f"stats/{name}/{key}"]
                np.testing.assert_allclose(found, expected, rtol=1e-6)
        found = together["index"] if part is together else {key: part[f"stats/index/{key}"] for key in describe(values)}
        for key, expected in describe(values[rows]).items():
            np.testing.assert_allclose(found[key], expected, rtol=1e-6)
    assert [table[1][f"stats/index/{name}"] for name in ("q01", "q10", "q50", "q90", "q99")] == [
        [4],
        [4],
        [6],
        [9],
        [9],
    ]
    assert [together["index"][name] for name in ("q10", "q50", "q90")] == [[0], [1], [9]]  # the outermost episode's
    assert np.shape(together[TOP]["q50"]) == (3, 1, 1)
    stored = load_dataset(tmp_path / "set").demonstrations.statistics
    assert stored["observation.state"]["max"].tolist() == [9, 7]


def test_tasks_may_change_within_an_episode(tmp_path):
    with DatasetWriter.create(tmp_path / "set", 10, NUMBERS) as writer:
        for episode in (["pick", "pick", "place"], ["place", "push"]):
            for task in episode:
                writer.add_frame(numbers(0), task)
            writer.save_episode()
    found = load_dataset(tmp_path / "set")
    assert found.arrays["task_index"].tolist() == [0, 0, 1, 1, 2]
    assert [found[row]["task"] for row in range(5)] == ["pick", "pick", "place", "place", "push"]
    table = pq.read_table(tmp_path / "set/meta/episodes/chunk-000/file-000.parquet")
    assert table["tasks"].to_pylist() == [["pick", "place"], ["place", "push"]]
    assert json.loads((tmp_path / "set/meta/info.json").read_text())["total_tasks"] == 3


def test_append_goes_on_in_the_same_files(tmp_path):
    with DatasetWriter.create(tmp_path / "set", 10, FEATURES, video_codec="h264") as writer:
        record(writer, 4, 2)
    for length in (3, 1):
        with DatasetWriter.append(tmp_path / "set") as writer:
            record(writer, length)
    check(tmp_path / "set", 4, 2, 3, 1)
    files = [path for path in (tmp_path / "set").rglob("*") if path.is_file()]
    assert len(files) == 6, files


@pytest.mark.parametrize("name", ["pusht_v30_video", "pusht_v30_image"])
def test_append_goes_on_with_what_lerobot_wrote(shared, tmp_path, name):
    original, folder = shared / "lerobot/datasets" / name, tmp_path / "set"
    shutil.copytree(original, folder, copy_function=shutil.copyfile)
    with DatasetWriter.append(folder) as writer:
        own = {key: one for key, one in writer.features.items() if key not in DEFAULTS}
        for _ in range(3):
            writer.add_frame(
                pusht(own, 1) | {"observation.image": np.full((96, 96, 3), 200, np.uint8)}, "Another task."
            )
        writer.save_episode()
    before, after = load_dataset(original), load_dataset(folder)
    assert after.episode_ends.tolist() == [161, 279, 420, 423]
    for column in before.arrays:
        np.testing.assert_array_equal(after.arrays[column][:420], before.arrays[column])
    np.testing.assert_array_equal(after.frames["observation.image"][:420], before.frames["observation.image"])
    assert np.abs(after.frames["observation.image"][420:].astype(int) - 200).max() <= 1
    assert (before[0]["task"], after[0]["task"], after[422]["task"]) == (before[0]["task"],) * 2 + ("Another task.",)
    assert len(list(folder.rglob("*.mp4"))) == (name == "pusht_v30_video")
    # Episodes and all together, as LeRobot's aggregate_stats has them.
    old, new = (json.loads((path / "meta/stats.json").read_text()) for path in (original, folder))
    assert new["action"]["count"] == [423]
    mean = (420 * np.array(old["action"]["mean"]) + 3) / 423
    np.testing.assert_allclose(new["action"]["mean"], mean, rtol=1e-6)
    assert new["observation.image"]["count"] == [303]


def test_large_files_are_followed_by_others(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_files, "CHUNK", 2)
    sizes = {"data_files_size_in_mb": 0, "video_files_size_in_mb": 0}
    with DatasetWriter.create(tmp_path / "set", 10, FEATURES, **sizes) as writer:
        record(writer, 2, 2, 1)
    with DatasetWriter.append(tmp_path / "set") as writer:
        record(writer, 2)
    check(tmp_path / "set", 2, 2, 1, 2)
    for kind, suffix in (("data", "parquet"), ("meta/episodes", "parquet"), (f"videos/{TOP}", "mp4")):
        names = sorted(
            path.relative_to(tmp_path / "set" / kind).as_posix() for path in (tmp_path / "set" / kind).glob("*/*")
        )
        assert names == [f"chunk-00{chunk}/file-00{file}.{suffix}" for chunk in (0, 1) for file in (0, 1)]


def test_a_video_of_another_kind_begins_a_new_file(tmp_path):
    with DatasetWriter.create(tmp_path / "set", 10, FEATURES, video_codec="h264") as writer:
        record(writer, 2)
        writer._codec = "av1"
        record(writer, 2)
    check(tmp_path / "set", 2, 2)
    assert len(list((tmp_path / "set/videos" / TOP).rglob("*.mp4"))) == 2


def test_discarded_episodes_leave_nothing(tmp_path):
    with DatasetWriter.create(tmp_path / "set", 10, FEATURES) as writer:
        record(writer, 2)
        writer.add_frame(frame(0), "another task")
        writer.discard_episode()
        record(writer, 3)
        with pytest.raises(RuntimeError, match="the robot fell"), writer:
            writer.add_frame(frame(0), "task")
            raise RuntimeError("the robot fell")
    check(tmp_path / "set", 2, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action": None}, r"features: expected `action` among them, got \["),
        ({"index": {"dtype": "int64", "shape": (1,)}}, "features: expected features of your own, got index"),
        ({"a/b": {"dtype": "float32", "shape": (1,)}}, "expected names that can be a folder's, got 'a/b'"),
        ({"..": {"dtype": "float32", "shape": (1,)}}, r"expected names that can be a folder's, got '\.\.'"),
        ({"a": {"dtype": "flaot32", "shape": (1,)}}, "features: a: dtype: expected one of .* did you mean float32"),
        ({"a": {"dtype": "float32", "shape": ()}}, r"features: a: shape: expected one to five sizes above 0, got \(\)"),
        ({"a": {"dtype": "float32", "shape": (0,)}}, "a: shape: expected one to five sizes above 0"),
        ({"a": {"dtype": "float32", "shape": (2,), "names": ["x"]}}, "a: names: expected 2 of them, got 1"),
        ({"a": {"dtype": "string", "shape": (2,)}}, r"a: shape: expected \(1,\), one text, got \(2,\)"),
        (
            {"a": {"dtype": "image", "shape": (32, 64, 1)}},
            r"a: shape: expected \(height, width, 3\), got \(32, 64, 1\)",
        ),
        (
            {"a": {"dtype": "video", "shape": (2, 2, 3)}},
            "video: expected frames that libsvtav1 encodes .* got 2 x 2 at",
        ),
    ],
)
def test_features_that_cannot_be_stored_are_refused(tmp_path, changes, message):
    features = {name: feature for name, feature in (NUMBERS | changes).items() if feature}
    with pytest.raises(DatasetError, match=message):
        DatasetWriter.create(tmp_path / "set", 10, features)
    assert list(tmp_path.iterdir()) == []


def test_settings_that_cannot_be_are_refused(tmp_path):
    for fps in (0, -1, float("nan"), float("inf"), "10"):
        with pytest.raises(DatasetError, match="fps: expected frames per second, above 0, got"):
            DatasetWriter.create(tmp_path / "set", fps, NUMBERS)
    with pytest.raises(DatasetError, match=r"video_codec: expected one of .* got 'h265'; did you mean h264"):
        DatasetWriter.create(tmp_path / "set", 10, NUMBERS, video_codec="h265")
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match=r"expected a new or an empty folder, got one with files; .*append"):
        DatasetWriter.create(tmp_path, 10, NUMBERS)
    with pytest.raises(DatasetError, match=r"meta/info\.json: expected .* got no such file"):
        DatasetWriter.append(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action": None}, r"frame: expected the features \[.*\], got no action;"),
        ({"acton": 1}, r"frame: expected the features \[.*\], got an unknown acton;"),
        ({"action": [1, 2, 3]}, r"action: expected float32 of shape \(2,\), got shape \(3,\);"),
        ({"action": 1}, r"action: expected float32 of shape \(2,\), got shape \(\);"),
        ({"action": [1, np.nan]}, r"action: expected finite float32 of shape \(2,\), got \[1.0, nan\];"),
        ({"action": [1, 1e300]}, "action: expected finite float32"),
        ({"action": ["a", "b"]}, "action: expected numbers, got <U1;"),
        ({"action": [[1], [2, 3]]}, "action: expected numbers, got list;"),
        ({"observation.level": 1.5}, r"observation.level: expected uint8 of shape \(1,\), got float64;"),
        ({"observation.level": 300}, r"observation.level: expected uint8 of shape \(1,\), got 300;"),
        ({"note": 3}, "note: expected a text, got int;"),
        ({HAND: np.zeros((64, 32, 3), np.uint8)}, r"got uint8 of shape \(64, 32, 3\);"),
        ({HAND: np.zeros(SHAPE, np.int64)}, r"hand: expected .*, uint8 or float in \[0, 1\], got int64 of shape"),
        ({HAND: np.full(SHAPE, 255.0)}, "got floats from 255 to 255; divide"),
        ({HAND: np.full(SHAPE, np.nan)}, "got floats from nan to nan"),
    ],
)
def test_frames_that_do_not_fit_are_refused_and_not_added(tmp_path, changes, message):
    features = NUMBERS | {"observation.level": {"dtype": "uint8", "shape": (1,)}, HAND: FEATURES[HAND]}
    good = numbers(0) | {"observation.level": 3, HAND: picture(0)}
    with DatasetWriter.create(tmp_path / "set", 10, features) as writer:
        writer.add_frame(good, "task")
        with pytest.raises(DatasetError, match=message):
            writer.add_frame({key: value for key, value in (good | changes).items() if value is not None}, "task")
        with pytest.raises(DatasetError, match="task: expected a text, got ''"):
            writer.add_frame(good, "")
        assert writer.episode_frames == 1
        writer.save_episode()
    assert len(load_dataset(tmp_path / "set")) == 1


def test_steps_in_the_wrong_order_are_refused(tmp_path):
    writer = DatasetWriter.create(tmp_path / "set", 10, NUMBERS)
    with pytest.raises(DatasetError, match="save_episode: expected an episode of one frame or more, got none"):
        writer.save_episode()
    with pytest.raises(DatasetError, match="expected a folder that nobody else writes to, got another writer"):
        DatasetWriter.append(tmp_path / "set")
    writer.add_frame(numbers(0), "task")
    with pytest.raises(DatasetError, match="finalize: expected no running episode, got 1 frames that are not saved"):
        writer.finalize()
    writer.save_episode()
    writer.finalize()
    writer.finalize()
    for step in (writer.save_episode, lambda: writer.add_frame(numbers(0), "task")):
        with pytest.raises(DatasetError, match="expected a writer in use, got one that is finalized"):
            step()


def fail_at(step: int, monkeypatch) -> None:
    """The step-th file from now on cannot be moved into its place."""
    real, moves = os.replace, count()

    def full(*arguments):
        if next(moves) == step:
            raise OSError("No space left on device")
        real(*arguments)

    monkeypatch.setattr(os, "replace", full)


@pytest.mark.parametrize("step", range(6))
def test_a_failed_save_can_be_repeated_or_discarded(tmp_path, monkeypatch, step):
    with DatasetWriter.create(tmp_path / "set", 10, FEATURES) as writer:
        record(writer, 2)
        for rows in ((102, 103, 104), (2, 3, 4)):  # the first one is never to be seen
            for row in rows:
                writer.add_frame(frame(row), "task 1")
            with monkeypatch.context() as context:
                fail_at(step, context)
                with pytest.raises(OSError, match="No space left"):
                    writer.save_episode()
            check(tmp_path / "set", 2)
            if rows[0] > 100:
                writer.discard_episode()
        writer.save_episode()
    check(tmp_path / "set", 2, 3)


def test_an_encoder_that_fails_is_heard(tmp_path, monkeypatch):
    def broken(self, image):
        raise OSError("No space left on device")

    writer = DatasetWriter.create(tmp_path / "set", 10, FEATURES)
    monkeypatch.setattr(writer_video.PictureFile, "add", broken)
    writer.add_frame(frame(0), "task")
    with pytest.raises(OSError, match="No space left"):
        writer.save_episode()
    writer.discard_episode()
    monkeypatch.undo()
    record(writer, 2)
    writer.finalize()
    assert len(load_dataset(tmp_path / "set")) == 2


def test_frames_that_wait_for_the_encoder_are_few(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_video, "QUEUE", 10 * picture(0).nbytes)
    go_on, real = threading.Event(), writer_video.PictureFile.add

    def slow(self, image):
        go_on.wait()
        real(self, image)

    monkeypatch.setattr(writer_video.PictureFile, "add", slow)
    with DatasetWriter.create(tmp_path / "set", 10, FEATURES) as writer:
        recorder = threading.Thread(target=record, args=(writer, 20))
        recorder.start()
        recorder.join(timeout=1)
        added = writer.episode_frames
        go_on.set()
        recorder.join()
    assert 10 <= added <= 11  # one in the encoder's hands, ten waiting; its giver waits with another
    check(tmp_path / "set", 20)


def program(*arguments: object) -> subprocess.Popen:
    source = Path(__file__).parents[2]
    paths = os.pathsep.join([str(source), str(source / "src"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "tests.data.recording", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=source, env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_whatever_step_a_process_dies_at_the_saved_episodes_are_there(tmp_path):
    base = tmp_path / "set"
    with DatasetWriter.create(base, 10, FEATURES) as writer:
        record(writer, 4)
    out, _ = program("die", base).communicate(timeout=500)
    deaths = int(out)
    assert deaths == 2 * 6  # before and after: video, data, meta/episodes, tasks, stats.json, info.json
    for step in range(deaths + 1):
        left = tmp_path / f"set-{step}"
        saved = [4] if step < deaths - 1 else [4, 3]
        check(left, *saved)
        with DatasetWriter.append(left) as writer:
            assert not list(left.rglob("*.tmp"))
            rows = [pq.read_metadata(path).num_rows for path in left.glob("data/*/*")]
            assert rows == [sum(saved)]
            record(writer, 2)
        check(left, *saved, 2)


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path):
    for attempt, delay in enumerate((0.0, 0.01, 0.05)):
        folder = tmp_path / f"set-{attempt}"
        process = program("forever", folder)
        while int(process.stdout.readline()) < 3:
            pass
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        said = 3 + len(process.communicate(timeout=100)[0].split())
        found = len(load_dataset(folder).episodes)
        assert said <= found <= said + 1
        check(folder, *[3] * found)
        with DatasetWriter.append(folder) as writer:
            record(writer, 3)
        check(folder, *[3] * (found + 1))


def test_an_empty_set_can_be_gone_on_with(tmp_path):
    DatasetWriter.create(tmp_path / "set", 10, FEATURES).finalize()
    with DatasetWriter.append(tmp_path / "set") as writer:
        record(writer, 2)
    check(tmp_path / "set", 2)


def test_files_beyond_what_counts_are_deleted(tmp_path):
    folder = tmp_path / "set"
    with DatasetWriter.create(folder, 10, FEATURES) as writer:
        record(writer, 2)
    for name in (f"videos/{TOP}/chunk-000/file-001.mp4", "data/chunk-000/file-001.parquet", "data/chunk-000/.x.tmp"):
        (folder / name).write_bytes(b"")
    table = pq.read_table(folder / "meta/episodes/chunk-000/file-000.parquet")
    table = table.set_column(0, "episode_index", [[1]])
    pq.write_table(table, folder / "meta/episodes/chunk-000/file-001.parquet")
    (folder / ".recording").mkdir()
    (folder / "README.md").write_text("mine")
    DatasetWriter.append(folder).finalize()
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 6 + 1
    assert not (folder / ".recording").exists()
    check(folder, 2)


def test_older_formats_are_not_gone_on_with(shared, tmp_path):
    folder = shared / "lerobot/datasets/dataset_v21_video/dataset"
    with pytest.raises(
        DatasetError, match=r"codebase_version: expected v3\.0, got v2\.1; make one of it with `visuomotor"
    ):
        DatasetWriter.append(folder)


def test_a_set_that_points_outside_is_not_touched(tmp_path):
    folder = tmp_path / "sets" / "set"
    with DatasetWriter.create(folder, 10, FEATURES) as writer:
        record(writer, 2)
    (tmp_path / "film/1").mkdir(parents=True)
    film = tmp_path / "film/1/mine.mp4"
    film.write_text("mine")
    path = folder / "meta/info.json"
    info = json.loads(path.read_text())
    outside = json.dumps(info | {"data_path": "../../{chunk_index}/{file_index}.parquet"})
    renamed = json.dumps(info).replace(TOP, "../../../film")
    for content in (outside, renamed):
        path.write_text(content)
        with pytest.raises(DatasetError):
            DatasetWriter.append(folder)
    assert film.read_text() == "mine"


def test_a_frame_that_was_added_in_part_is_noticed(tmp_path, monkeypatch):
    with DatasetWriter.create(tmp_path / "set", 10, FEATURES) as writer:
        record(writer, 2)
        writer.add_frame(frame(2), "task")
        writer._cameras[TOP].add(picture(3))  # as if Ctrl-C had come between the cameras
        with pytest.raises(DatasetError, match=r"expected 1 frames everywhere, got .*top': 2.* call discard_episode"):
            writer.save_episode()
        writer.discard_episode()
        record(writer, 1)
    check(tmp_path / "set", 2, 1)


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="this system has no such schedulers")
def test_encoding_leaves_the_threads_priority_as_it_was(tmp_path: Path) -> None:
    """SVT-AV1 makes root's thread a real-time one, once a process: such threads starve all others."""
    program = """
import os, sys
from fractions import Fraction
from pathlib import Path
import numpy as np
from visuomotor.data.writer_video import VideoFile
video = VideoFile(Path(sys.argv[1]), (64, 64, 3), Fraction(10), "av1")
video.add(np.zeros((64, 64, 3), np.uint8))
video.close()
print(os.sched_getscheduler(0) == os.SCHED_OTHER)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.mp4")], capture_output=True, text=True)
    assert done.stdout.split() == ["True"], done.stderr
