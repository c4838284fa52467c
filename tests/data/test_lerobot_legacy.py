"""LeRobot's v2.0 and v2.1 folders: the same items as LeRobot's, and what those formats may hold."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from visuomotor.data.dataset import load_dataset, read
from visuomotor.errors import DatasetError

from .lerobot_samples import samples
from .synthetic import (
    LENGTHS,
    TASKS,
    edit_info,
    edit_table,
    legacy_video_name,
    picture,
    png,
    write_legacy,
    write_lerobot,
    write_lines,
)

N = sum(LENGTHS)
DATA = "data/chunk-000/episode_000001.parquet"
either = pytest.mark.parametrize("version", ["v2.0", "v2.1"])


@pytest.fixture(params=["dataset_v20_video", "dataset_v21_video"])
def written_by_lerobot(request, shared):
    return shared / "lerobot/datasets" / request.param


@pytest.mark.parametrize("decoder", ["expected", "expected_pyav"])
def test_items_equal_lerobots(written_by_lerobot, decoder):
    asked, items = samples(written_by_lerobot, decoder)
    found = load_dataset(written_by_lerobot / "dataset", asked["delta_timestamps"])
    assert len(found) == 420
    for index in asked["indices"]:
        item = found[index]
        assert item.pop("task") == asked["text_fields"][f"{index}/task"]
        expected = {key.split("/")[1]: value for key, value in items.items() if key.startswith(f"{index}/")}
        assert set(item) == set(expected)
        for name, value in expected.items():
            if name == "observation.image":
                assert item[name].numpy().dtype == value.dtype
                assert 255 * np.abs(item[name].numpy() - value).max() <= 1 + 1e-4
            else:
                np.testing.assert_array_equal(item[name].numpy(), value, strict=True)


def test_statistics_equal_lerobots(written_by_lerobot):
    expected = load_file(written_by_lerobot / "expected_stats.safetensors")
    found = read(written_by_lerobot / "dataset").statistics
    for key, value in expected.items():
        name, statistic = key.split("/")
        np.testing.assert_allclose(found[name][statistic], value.astype(np.float64), rtol=1e-7, atol=0)
        assert found[name][statistic].shape == value.shape
    assert set(found) == {key.split("/")[0] for key in expected}
    assert found["action"]["count"].tolist() == [420]


@either
@pytest.mark.parametrize(("camera", "codec"), [(None, ""), ("video", "libx264"), ("video", "libsvtav1"), ("image", "")])
def test_the_same_demonstrations_as_in_the_newest_format(tmp_path, version, camera, codec):
    old = load_dataset(write_legacy(tmp_path / "old", version, camera, codec), {"action": [-0.2, 0.0]})
    new = load_dataset(write_lerobot(tmp_path / "new", camera, codec), {"action": [-0.2, 0.0]})
    assert old.demonstrations.version == f"LeRobot {version}"
    assert old.features == new.features
    for row in range(N):
        assert old[row].keys() == new[row].keys()
        for name, value in new[row].items():
            if name == "observation.image":
                assert (255 * (old[row][name] - value).abs()).mean() <= (3 if camera == "video" else 0)
            else:
                np.testing.assert_array_equal(old[row][name], value)
    assert [old[row]["task"] for row in (0, 5, 8)] == [TASKS[0], TASKS[1], TASKS[0]]


def test_hevc_is_decoded(tmp_path):
    found = load_dataset(write_legacy(tmp_path, "v2.1", "video", "libx265")).frames["observation.image"]
    for row, image in enumerate(found):
        assert np.abs(image.astype(int) - picture(row)).mean() <= 3  # the next frame is 8 grey levels off


@either
def test_some_episodes(tmp_path, version):
    folder = write_legacy(tmp_path, version, "image")
    for episode in (0, 3):
        (folder / f"data/chunk-{episode // 2:03d}/episode_{episode:06d}.parquet").unlink()
    found = load_dataset(folder, episodes=[2, 1])
    assert found.episodes.tolist() == [1, 2]
    assert found.arrays["index"].tolist() == list(range(5, 14))
    np.testing.assert_array_equal(found.frames["observation.image"], [picture(row) for row in range(5, 14)])


def test_statistics_of_some_episodes(tmp_path):
    found = read(write_legacy(tmp_path / "a", "v2.1"), [1, 2]).statistics["action"]
    rows = np.arange(5, 14)
    expected = np.stack([rows, -rows], axis=1)
    for name in ("min", "max", "mean", "std"):
        np.testing.assert_allclose(found[name], getattr(expected, name)(axis=0), rtol=1e-6)
    assert found["count"].tolist() == [9]
    assert read(write_legacy(tmp_path / "b", "v2.0"), [1, 2]).statistics == {}


def test_statistics_that_an_episode_lacks_are_computed(tmp_path):
    folder = write_legacy(tmp_path, "v2.1")
    lines = [json.loads(line) for line in (folder / "meta/episodes_stats.jsonl").read_text().splitlines()]
    del lines[2]["stats"]["action"]["std"]
    write_lines(folder / "meta/episodes_stats.jsonl", lines)
    assert list(read(folder).statistics) == ["observation.state"]
    assert load_dataset(folder).statistics["action"]["max"].tolist() == [17, 0]


def test_statistics_are_recomputed_on_request(tmp_path):
    folder = write_legacy(tmp_path, "v2.0")
    stored = {"min": [1, 2], "max": [3, 4], "mean": [5, 6], "std": [7, 8]}
    (folder / "meta/stats.json").write_text(json.dumps({"action": stored}))
    assert load_dataset(folder).statistics["action"]["max"].tolist() == [3, 4]
    assert load_dataset(folder).statistics["action"]["count"].tolist() == [N]
    assert load_dataset(folder, recompute_statistics=True).statistics["action"]["max"].tolist() == [17, 0]


@either
def test_what_the_old_formats_may_lack_or_have_besides(tmp_path, version):
    """No index and no timestamps, names in a dictionary, scalars in lists, a stray folder of images."""
    folder = write_legacy(tmp_path, version, "image")
    (folder / "images/observation.image/episode_000000").mkdir(parents=True)
    (folder / "images/observation.image/episode_000000/frame_000000.png").write_bytes(png(picture(9)))
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    features["action"]["names"] = {"motors": ["a", "b"]}
    features["observation.state"]["names"] = {"x": 0, "y": 1}
    features["observation.image"] |= {"shape": [3, 64, 80], "names": None, "video_info": {"video.fps": 5.0}}
    del features["index"]
    edit_info(folder, features=features)
    for path in folder.glob("data/*/*.parquet"):
        forces = pq.read_table(path)["observation.force"].to_pylist()
        edit_table(path, index=None, timestamp=None, **{"observation.force": pa.array([[force] for force in forces])})
    found, expected = load_dataset(folder), load_dataset(write_legacy(tmp_path / "whole", version, "image"))
    assert set(found.arrays) == set(expected.arrays)
    for name, values in expected.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], values, strict=True)
    assert load_dataset(folder, episodes=[1]).arrays["index"].tolist() == [5, 6, 7]
    np.testing.assert_array_equal(found.frames["observation.image"], expected.frames["observation.image"])
    names = found.demonstrations.names
    assert (names["action"], names["observation.state"], names["observation.force"]) == (["a", "b"], ["x", "y"], [])


def beside(folder, path, file=None):
    """Episode 1's images as files of their own, which the parquet file names by `path`."""
    for frame in range(3):
        target = folder / (file or path).format(frame=frame)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(png(picture(5 + frame)))
    cells = [{"bytes": None, "path": path.format(frame=frame)} for frame in range(3)]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    edit_table(folder / DATA, **{"observation.image": pa.array(cells, kind)})


INSIDE = "images/observation.image/episode_000001/frame_{frame:06d}.png"


@pytest.mark.parametrize("before", ["", "/home/someone/images/", "../images/"])
def test_images_beside_the_parquet_files(tmp_path, before):
    folder = write_legacy(tmp_path, "v2.1", "image")
    beside(folder, before + INSIDE, INSIDE)
    np.testing.assert_array_equal(load_dataset(folder).frames["observation.image"][7], picture(7))
    replaced = folder / INSIDE.format(frame=2)
    replaced.unlink()
    replaced.write_bytes(png(picture(11)))
    np.testing.assert_array_equal(load_dataset(folder).frames["observation.image"][7], picture(11))


@pytest.mark.parametrize(
    ("path", "file"),
    [
        ("../outside/{frame}.png", None),
        ("images/../../outside/{frame}.png", None),
        ("elsewhere/{frame}.png", None),
        (INSIDE, "images/other/{frame}.png"),
    ],
)
def test_no_image_is_read_from_elsewhere(tmp_path, cache, path, file):
    folder = write_legacy(tmp_path / "set", "v2.1", "image")
    beside(folder, path, file)
    message = r"episode_000001\.parquet: observation\.image: expected the image's bytes, got the path .* alone, and no"
    with pytest.raises(DatasetError, match=message):
        load_dataset(folder).frames["observation.image"]


@either
def test_what_a_stopped_recorder_left_is_ignored(tmp_path, version):
    folder = write_legacy(tmp_path, version, "video")
    edit_info(folder, total_episodes=2, total_frames=8)
    for episode in (2, 3):
        (folder / legacy_video_name(episode)).write_bytes(b"begun")
    found = load_dataset(folder)
    assert found.arrays["index"].tolist() == list(range(8))
    assert found.frames["observation.image"].shape[0] == 8


def cut_line(folder):
    text = (folder / "meta/episodes.jsonl").read_text()
    (folder / "meta/episodes.jsonl").write_text(text[:-30])


def lengths(folder, *values):
    records = [{"episode_index": episode, "length": length} for episode, length in enumerate(values)]
    write_lines(folder / "meta/episodes.jsonl", records)


BAD = {
    "no episodes": (lambda f: (f / "meta/episodes.jsonl").unlink(), r"episodes\.jsonl: expected a LeRobot v2\.x .* no"),
    "no tasks": (
        lambda f: (f / "meta/tasks.jsonl").unlink(),
        r"meta/tasks\.jsonl: expected a LeRobot v2\.x data set's",
    ),
    "nothing": (
        lambda f: (f / "meta/tasks.jsonl").write_text("\n"),
        r"tasks\.jsonl: expected a line or more, got none",
    ),
    "cut": (cut_line, r"meta/episodes\.jsonl, line 4: expected a JSON object, got"),
    "no object": (lambda f: (f / "meta/tasks.jsonl").write_text("[]"), r"line 1: task_index: expected a whole number"),
    "no number": (lambda f: lengths(f, 5, "3", 6, 4), r"line 2: length: expected a whole number, got 3"),
    "negative": (lambda f: lengths(f, 5, -3, 6, 10), r"line 2: length: expected a whole number, got -3"),
    "too few": (lambda f: lengths(f, 5, 3, 6), r"total_episodes: expected 4, got 3 in meta/episodes\.jsonl"),
    "other lengths": (lambda f: lengths(f, 5, 4, 5, 4), r"episode_000001\.parquet: expected 4 frames .* got 3"),
    "no chunks": (lambda f: edit_info(f, chunks_size=None), r"chunks_size: expected a number above 0, got None"),
    "new template": (
        lambda f: edit_info(f, data_path="{chunk_index}"),
        r"data_path: .* \{episode_chunk\}, .* got \{chu",
    ),
    "wide": (lambda f: edit_info(f, data_path="{episode_index:999999999d}"), r"data_path: expected a path inside"),
    "outside": (lambda f: edit_info(f, video_path="../{episode_index}"), r"video_path: expected a path inside"),
    "no data": (lambda f: (f / DATA).unlink(), r"episode_000001\.parquet: expected a parquet file, got no such file"),
    "no video": (lambda f: (f / legacy_video_name(3)).unlink(), r"episode_000003\.mp4: expected a video of obs"),
    "statistics": (
        lambda f: write_lines(f / "meta/episodes_stats.jsonl", [{"episode_index": 0, "stats": {"action": 3}}]),
        r"episodes_stats\.jsonl, episode 0: action: expected numbers, got",
    ),
    "no task": (
        lambda f: write_lines(f / "meta/tasks.jsonl", [{"task_index": 0, "task": "Push."}]),
        r"meta/tasks\.jsonl: task_index: expected \[1\] among them, got \[0\]",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_damaged_is_refused_by_name(tmp_path, case):
    damage, message = BAD[case]
    damage(write_legacy(tmp_path, "v2.1", "video"))
    with pytest.raises(DatasetError, match=message) as raised:
        load_dataset(tmp_path)
    assert len(str(raised.value).splitlines()) == 1
