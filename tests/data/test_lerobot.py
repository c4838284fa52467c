"""LeRobot's v3.0 folders: what is read from them, and what is refused."""

import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from visuomotor.data.dataset import load_dataset
from visuomotor.errors import DatasetError

from .lerobot_samples import samples
from .synthetic import FPS, LENGTHS, TASKS, edit_info, edit_table, picture, video_name, write_lerobot

N = sum(LENGTHS)
ROWS = np.arange(N)
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
DATA = "data/chunk-000/file-000.parquet"


def check_images(images, rows, tolerance):
    assert images.shape == (len(rows), *picture(0).shape)
    for image, row in zip(images, rows, strict=True):
        assert np.abs(image.astype(int) - picture(row)).mean() <= tolerance


def test_columns_of_several_files(tmp_path):
    found = load_dataset(write_lerobot(tmp_path))
    assert (len(found), found.fps, found.camera_keys) == (N, FPS, [])
    assert found.episode_starts.tolist() == [0, 5, 8, 14]
    assert found.episode_ends.tolist() == [5, 8, 14, 18]
    expected = {
        "observation.state": np.stack([10 * ROWS, np.full(N, 7)], axis=1).astype(np.float32),
        "observation.force": (ROWS / 2).astype(np.float32),
        "action": np.stack([ROWS, -ROWS], axis=1).astype(np.float32),
        "next.done": np.isin(ROWS, [4, 7, 13, 17]),
        "index": ROWS,
        "frame_index": np.concatenate([np.arange(length) for length in LENGTHS]),
        "episode_index": np.repeat(np.arange(4), LENGTHS),
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(found.arrays[name], values, strict=True)
    assert [found[row]["task"] for row in (0, 5, 8)] == [TASKS[0], TASKS[1], TASKS[0]]


@pytest.mark.parametrize(("camera", "codec"), [("video", "libx264"), ("video", "libsvtav1"), ("image", "")])
def test_frames_of_several_files(tmp_path, camera, codec):
    tolerance = 0 if camera == "image" else 3  # the next frame is 8 grey levels off
    folder = write_lerobot(tmp_path, camera, codec)
    check_images(load_dataset(folder).frames["observation.image"], ROWS, tolerance)
    some = load_dataset(folder, episodes=[2, 1])
    assert some.episodes.tolist() == [1, 2]
    assert some.arrays["index"].tolist() == list(range(5, 14))
    check_images(some.frames["observation.image"], range(5, 14), tolerance)


@pytest.mark.parametrize("camera", ["video", "image"])
def test_files_need_not_follow_the_episodes_order(tmp_path, camera):
    folder = write_lerobot(tmp_path, camera)
    for kind in ["data", "videos/observation.image"] if camera == "video" else ["data"]:
        (folder / kind / "chunk-000").rename(folder / kind / "spare")
        (folder / kind / "chunk-001").rename(folder / kind / "chunk-000")
        (folder / kind / "spare").rename(folder / kind / "chunk-001")
    swapped = {"data/chunk_index": pa.array([1, 1, 0, 0])}
    if camera == "video":
        swapped["videos/observation.image/chunk_index"] = pa.array([1, 1, 0, 0])
    edit_table(folder / EPISODES, **swapped)
    found = load_dataset(folder)
    np.testing.assert_array_equal(found.arrays["index"], ROWS)
    check_images(found.frames["observation.image"], ROWS, 3)


def test_an_image_may_be_declared_channels_first(tmp_path):
    folder = write_lerobot(tmp_path, "image")
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    height, width, channels = features["observation.image"]["shape"]
    features["observation.image"] |= {"shape": [channels, height, width], "names": ["channels", "height", "width"]}
    edit_info(folder, features=features)
    check_images(load_dataset(folder).frames["observation.image"], ROWS, 0)


def test_episodes_and_tasks_as_other_versions_write_them(tmp_path):
    folder = write_lerobot(tmp_path)
    table = pq.read_table(folder / EPISODES)
    pq.write_table(table.slice(0, 1), folder / EPISODES)
    (folder / "meta/episodes/chunk-001").mkdir()
    pq.write_table(table.slice(1), folder / "meta/episodes/chunk-001/file-000.parquet")
    tasks = pq.read_table(folder / "meta/tasks.parquet")
    pq.write_table(tasks.rename_columns(["task_index", "__index_level_0__"]), folder / "meta/tasks.parquet")
    found = load_dataset(folder)
    assert found.episode_ends.tolist() == [5, 8, 14, 18]
    assert found[5]["task"] == TASKS[1]


def test_matrices_and_text_keep_their_shape(tmp_path):
    folder = write_lerobot(tmp_path, lengths=(2, 1))
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    features["observation.grid"] = {"dtype": "float32", "shape": [2, 3], "names": None}
    features["remark"] = {"dtype": "string", "shape": [1], "names": None}
    edit_info(folder, features=features)
    table = pq.read_table(folder / DATA)
    grid = np.arange(18.0).reshape(3, 2, 3)
    table = table.append_column("observation.grid", pa.array(grid.tolist()))
    pq.write_table(table.append_column("remark", pa.array(["a", "b", "c"])), folder / DATA)
    found = load_dataset(folder)
    np.testing.assert_array_equal(found.arrays["observation.grid"], grid.astype(np.float32))
    assert found.features["observation.grid"].shape == (2, 3)
    assert found[2]["remark"] == "c"
    assert "remark" not in found.features


def test_numbers_come_as_their_dtype_says(tmp_path):
    folder = write_lerobot(tmp_path, lengths=(2, 1))
    edit_feature(folder, "action", dtype="float64")
    edit_table(
        folder / DATA,
        **{
            "observation.force": pa.array([3, 4, 5]),
            "next.done": pa.array([0, 1, 1]),
            "index": pa.array([0, 1, 2], "u1"),
        },
    )
    found = load_dataset(folder).arrays
    for name, values in {
        "observation.force": [3.0, 4.0, 5.0],
        "next.done": [False, True, True],
        "index": [0, 1, 2],
    }.items():
        assert found[name].tolist() == values
    assert [found[name].dtype for name in ("action", "observation.force", "next.done", "index")] == [
        np.float32,
        np.float32,
        np.bool_,
        np.int64,
    ]


def test_stored_statistics_hold_for_all_episodes_only(tmp_path):
    folder = write_lerobot(tmp_path)
    stored = {"min": [1, 2], "max": [3, 4], "mean": [5, 6], "std": [7, 8], "count": [N]}
    partial = {"min": [1], "count": [N]}
    (folder / "meta/stats.json").write_text(json.dumps({"action": stored, "observation.force": partial}))
    whole = load_dataset(folder).statistics
    assert list(whole) == ["observation.state", "observation.force", "action"]
    assert {name: values.tolist() for name, values in whole["action"].items()} == stored
    assert whole["action"]["min"].dtype == np.float32
    assert whole["observation.force"]["max"].tolist() == [8.5]
    assert whole["observation.state"]["std"][1] == 0
    assert load_dataset(folder, episodes=[1]).statistics["action"]["min"].tolist() == [5, -7]


def uncommitted(folder, camera):
    """What a recorder left that was stopped in its fifth episode, whose frames stand behind those of the third file."""
    larger = write_lerobot(folder.parent / "larger", camera, lengths=(*LENGTHS[:3], 4, 2, 3))
    smaller = write_lerobot(folder, camera, lengths=(*LENGTHS[:3], 4, 2))
    for path in sorted(larger.rglob("*.parquet")) + sorted(larger.rglob("*.mp4")):
        shutil.copyfile(path, smaller / path.relative_to(larger))
    return smaller


@pytest.mark.parametrize("camera", [None, "video", "image"])
def test_what_a_stopped_recorder_left_is_ignored(tmp_path, camera):
    folder = uncommitted(tmp_path / "set", camera)
    assert pq.read_table(folder / "data/chunk-002/file-000.parquet").num_rows == 5
    found = load_dataset(folder)
    assert found.episode_ends.tolist() == [5, 8, 14, 18, 20]
    assert found.arrays["index"].tolist() == list(range(20))
    assert load_dataset(folder, episodes=[4]).arrays["index"].tolist() == [18, 19]
    if camera:
        check_images(found.frames["observation.image"], range(20), 3)
    with pytest.raises(DatasetError, match="episodes: expected some of 0 to 4, got"):
        load_dataset(folder, episodes=[5])


def test_other_rows_too_many_are_refused(tmp_path):
    folder = uncommitted(tmp_path / "set", None)
    edit_table(folder / "data/chunk-002/file-000.parquet", episode_index=pa.array([4, 4, 5, 4, 5]))
    with pytest.raises(DatasetError, match=r"chunk-002/file-000\.parquet: expected 2 frames as in meta/ep.* got 5"):
        load_dataset(folder)


def without_action(folder):
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    edit_info(folder, features={name: value for name, value in features.items() if name != "action"})


def truncate(name):
    def cut(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return cut


def drop_a_frame(folder):
    pq.write_table(pq.read_table(folder / DATA).slice(1), folder / DATA)


def drop_an_episode(folder):
    pq.write_table(pq.read_table(folder / EPISODES).slice(1), folder / EPISODES)


def put_nan(folder):
    state = np.arange(16, dtype=np.float32)
    state[13] = np.nan  # row 6: frame 1 of episode 1
    values = pa.FixedSizeListArray.from_arrays(pa.array(state, from_pandas=False), 2)
    edit_table(folder / DATA, **{"observation.state": values})


def put_null(folder):
    edit_table(folder / DATA, **{"observation.force": pa.array([1.0, None, *[0.0] * 6])})


def shuffle_frames(folder):
    edit_table(folder / DATA, frame_index=pa.array([0, 1, 3, 2, 4, 0, 1, 2]))


def damage_timestamps(folder):
    name = "videos/observation.image/to_timestamp"
    edit_table(folder / EPISODES, **{name: pa.array([1.0, 1.6, 1.0, 2.0])})


def edit_feature(folder, name, **changes):
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    edit_info(folder, features=features | {name: features[name] | changes})


def put_nan_into_timestamps(folder):
    name = "videos/observation.image/from_timestamp"
    edit_table(folder / EPISODES, **{name: pa.array([0.0, float("nan"), 0.0, 1.2])})


def repeat_an_episode(folder):
    edit_table(folder / EPISODES, episode_index=pa.array([0, 1, 1, 3]))


BAD = {
    "no info": (lambda f: (f / "meta/info.json").unlink(), r"meta/info\.json: expected .*, got no such file; pass"),
    "bad JSON": (lambda f: (f / "meta/info.json").write_text('{"fps":'), r"meta/info\.json: expected JSON, got Exp"),
    "not an object": (lambda f: (f / "meta/info.json").write_text("[]"), r"info\.json: features: expected a dict"),
    "version 2.1": (
        lambda f: edit_info(f, codebase_version="v2.1", chunks_size=1000),
        r"meta/episodes\.jsonl: expected a LeRobot v2\.x data set's file, got no such file",
    ),
    "version 4": (
        lambda f: edit_info(f, codebase_version="v4.0"),
        r"expected v3\.0, got v4\.0; this version is not read; v3\.0, v2\.1 and v2\.0 are",
    ),
    "no fps": (lambda f: edit_info(f, fps=0), r"info\.json: fps: expected a number above 0, got 0"),
    "no shape": (
        lambda f: edit_info(f, features={"action": {"dtype": "float32"}}),
        r"info\.json: features\.action: expected a dtype and a shape, got \{'dtype': 'float32'\}",
    ),
    "no action": (without_action, r"info\.json: features: expected `action` among them, got \['observation\.state'"),
    "no task": (
        lambda f: pq.write_table(pq.read_table(f / "meta/tasks.parquet").slice(0, 1), f / "meta/tasks.parquet"),
        r"meta/tasks\.parquet: task_index: expected \[1\] among them, got \[0\]",
    ),
    "bad statistics": (
        lambda f: (f / "meta/stats.json").write_text('{"action": {"min": [1, [2]]}}'),
        r"meta/stats\.json: action: expected numbers, got",
    ),
    "frames": (lambda f: edit_info(f, total_frames=19), r"total_frames: expected 19, got 18 in meta/episodes"),
    "episodes": (drop_an_episode, r"total_episodes: expected 4, got 3 in meta/episodes"),
    "a row less": (drop_a_frame, r"chunk-000/file-000\.parquet: expected 8 frames as in meta/episodes, got 7"),
    "order": (shuffle_frames, r"file-000\.parquet: frame_index, row 2: expected 2, got 3"),
    "NaN": (put_nan, r"observation\.state, episode 1, frame 1: expected finite numbers, got \[12\. nan\]"),
    "null": (put_null, r"file-000\.parquet: observation\.force: expected 8 numbers .* got 8 with 1 empty"),
    "no column": (
        lambda f: edit_table(f / DATA, action=None),
        r"file-000\.parquet: columns: expected \['action'\] among them, got \['observation\.state'",
    ),
    "cut data": (truncate(DATA), r"data/chunk-000/file-000\.parquet: expected a parquet file, got .* cut off"),
    "cut episodes": (truncate(EPISODES), r"meta/episodes/.*\.parquet: expected a parquet file, got .* cut off"),
    "cut tasks": (truncate("meta/tasks.parquet"), r"meta/tasks\.parquet: expected a parquet file, got .* cut off"),
    "no data": (lambda f: (f / DATA).unlink(), r"file-000\.parquet: expected a parquet file, got no such file"),
    "no episodes": (lambda f: shutil.rmtree(f / "meta/episodes"), r"meta/episodes: expected parquet files, got none"),
    "no video": (lambda f: (f / video_name(1)).unlink(), r"chunk-001/file-000\.mp4: expected a video of obs"),
    "timestamps": (damage_timestamps, r"videos/observation\.image, episode 2: expected 6 frames, got 1\.000 s at 5"),
    "outside": (
        lambda f: edit_info(f, data_path="../{chunk_index}/{file_index}.parquet"),
        r"info\.json: data_path: expected a path inside the data set, .* got \.\./0/0\.parquet",
    ),
    "absolute": (lambda f: edit_info(f, video_path="/etc/{video_key}"), r"video_path: expected a path inside"),
    "no dtype of ours": (
        lambda f: edit_feature(f, "observation.state", dtype="quaternion"),
        r"features\.observation\.state: expected a dtype of numbers, string, video or image, got quaternion",
    ),
    "no whole numbers": (
        lambda f: edit_feature(f, "task_index", dtype="float32"),
        r"features\.task_index: expected int64 of shape \[1\], got float32",
    ),
    "no truth": (
        lambda f: edit_table(f / DATA, **{"next.done": pa.array([0, 1, 2, 0, 1, 0, 0, 1])}),
        r"next\.done: expected true and false, got values to 2",
    ),
    "no fractions": (
        lambda f: edit_table(f / DATA, task_index=pa.array([0.5] * 8)),
        r"task_index: expected a column of int64, got double",
    ),
    "a column twice": (
        lambda f: pq.write_table((t := pq.read_table(f / DATA)).append_column("action", t["action"]), f / DATA),
        r"columns: expected \['action'\] among them, got \[.*'action', .*'action'\]",
    ),
    "NaN seconds": (put_nan_into_timestamps, r"from_timestamp, row 1: expected 0 to 1e\+09, got nan"),
    "an episode twice": (repeat_an_episode, r"meta/episodes: expected every episode once, got 1 twice"),
    "text for numbers": (
        lambda f: edit_table(f / EPISODES, length=pa.array(["5", "3", "6", "4"])),
        r"file-000\.parquet: length: expected numbers, got string with 0 empty",
    ),
    "old template": (lambda f: edit_info(f, data_path="data/{episode_chunk}"), r"data_path: .* got data/\{episode"),
    "no template": (lambda f: edit_info(f, video_path=None), r"video_path: expected a path inside .* got None"),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write_lerobot(tmp_path_factory.mktemp("good"), "video")


@pytest.mark.parametrize("case", BAD)
def test_what_is_damaged_is_refused_by_name(good, tmp_path, case):
    damage, message = BAD[case]
    folder = tmp_path / "bad"
    shutil.copytree(good, folder)
    damage(folder)
    with pytest.raises(DatasetError, match=message) as raised:
        load_dataset(folder)
    assert len(str(raised.value).splitlines()) == 1


def test_a_truncated_video_leaves_nothing_in_the_cache(good, tmp_path, cache):
    folder = tmp_path / "bad"
    shutil.copytree(good, folder)
    truncate(video_name(1))(folder)
    found = load_dataset(folder)
    with pytest.raises(DatasetError, match=r"chunk-001/file-000\.mp4: expected .* cut off"):
        found.frames["observation.image"]
    assert os.listdir(cache / "frames") == []


def test_a_changed_video_is_decoded_again(tmp_path):
    folder = write_lerobot(tmp_path, "video")
    check_images(load_dataset(folder).frames["observation.image"], ROWS, 3)
    write_lerobot(tmp_path, "video", lengths=LENGTHS[::-1])
    shutil.copyfile(folder / video_name(0), folder / video_name(1))
    images = load_dataset(folder).frames["observation.image"]
    check_images(images[10:], range(8), 3)


def test_damaged_images_are_refused(tmp_path, cache):
    folder = write_lerobot(tmp_path, "image")
    cells = pq.read_table(folder / DATA)["observation.image"].to_pylist()
    for content, message in ((cells[4]["bytes"][:60], "expected images, got"), (None, "expected the image's bytes")):
        cells[4] = {"bytes": content, "path": "4.png"}
        edit_table(folder / DATA, **{"observation.image": pa.array(cells)})
        with pytest.raises(DatasetError, match=rf"file-000\.parquet: observation\.image: {message}"):
            load_dataset(folder).frames["observation.image"]
    assert os.listdir(cache / "frames") == []


@pytest.mark.parametrize("episodes", [[4], [0, -1], []])
def test_episodes_that_are_not_there_are_refused(good, episodes):
    with pytest.raises(DatasetError, match="episodes: expected some of 0 to 3, got"):
        load_dataset(good, episodes=episodes)


def test_numbers_of_a_small_set_with_video_equal_lerobots(shared):
    """Samples of the whole set, of which three episodes are at hand, in a video of their own."""
    asked, items = samples(shared / "lerobot/samples", "video")
    found = load_dataset(shared / "lerobot/datasets/pusht_v30_video", asked["delta_timestamps"])
    indices = [index for index in asked["indices"] if index < len(found)]
    assert indices == [0, 1, 160, 161]
    for index in indices:
        item = found[index]
        expected = {key.split("/")[1]: value for key, value in items.items() if key.startswith(f"{index}/")}
        assert set(item) == {*expected, "task"}
        for name in set(expected) - {"observation.image"}:
            np.testing.assert_array_equal(item[name].numpy(), expected[name], strict=True)
