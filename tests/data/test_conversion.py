"""Conversion to LeRobot v3.0: the same demonstrations afterwards, from every source."""

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from visuomotor.data import conversion
from visuomotor.data.conversion import convert
from visuomotor.data.dataset import load_dataset
from visuomotor.data.writer import DatasetWriter
from visuomotor.errors import DatasetError

from . import synthetic
from .recording import FEATURES, HAND, TOP, picture, record, rows_of

CAMERA = "observation.image"
FIXTURES = ("pusht_v30_video", "pusht_v30_image", "dataset_v21_video/dataset", "dataset_v20_video/dataset")


def packets(folder: Path) -> list[bytes]:
    """Every packet of all videos, file after file."""
    found = []
    for path in sorted(folder.rglob("*.mp4")):
        with av.open(str(path)) as container:
            found += [bytes(packet) for packet in container.demux(video=0) if packet.pts is not None]
    return found


def check_equal(source: Path | str, target: Path, episodes: list[int] | None = None, frames: bool = True) -> None:
    """Columns, tasks and frames are those of the source, but for the numbers that count anew."""
    before, after = load_dataset(source, episodes=episodes), load_dataset(target)
    assert (after.fps, after.features) == (before.fps, before.features)
    assert list(after.arrays) == list(before.arrays) or set(after.arrays) == set(before.arrays)
    for name, values in before.arrays.items():
        if name == "index" and episodes:
            values = np.arange(len(values))
        if name == "episode_index" and episodes:
            values = np.unique(values, return_inverse=True)[1]
        np.testing.assert_array_equal(after.arrays[name], values, err_msg=name, strict=True)
    assert [after[row]["task"] for row in range(len(after))] == [before[row]["task"] for row in range(len(after))]
    if frames:
        for name in before.camera_keys:
            np.testing.assert_array_equal(after.frames[name], before.frames[name])


@pytest.mark.parametrize("name", FIXTURES)
def test_lerobots_sets_keep_every_value_and_every_frame(shared, tmp_path, name):
    source, target = shared / "lerobot/datasets" / name, tmp_path / "set"
    assert convert(source, target) == target
    check_equal(source, target)
    assert packets(target) == packets(source)
    before, after = (json.loads((folder / "meta/info.json").read_text()) for folder in (source, target))
    assert after["codebase_version"] == "v3.0"
    for key in ("fps", "robot_type", "total_episodes", "total_frames", "total_tasks", "splits"):
        assert after[key] == before[key], key
    for key, feature in before["features"].items():
        assert {**after["features"][key], "info": None} == {**feature, "info": None}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]
    assert sorted(path.name for path in target.iterdir()) == sorted({"meta", "data", *(["videos"] * ("video" in name))})


def test_statistics_are_lerobots(shared, tmp_path):
    """Its own of the same demonstrations, as far as it computes exactly.

    Its quantiles are of 5000 bins. Of images it takes 100 an episode, and adds a million levels up in float32, by which
    its means and deviations are off: 0.0912 instead of 0.1002 for red.
    """
    source = shared / "lerobot/datasets/pusht_v30_image"
    convert(source, tmp_path / "set")
    theirs, ours = (json.loads((folder / "meta/stats.json").read_text()) for folder in (source, tmp_path / "set"))
    assert set(ours) == set(theirs)
    for name, expected in theirs.items():
        found, image = ours[name], name == CAMERA
        assert list(found) == list(expected)
        assert found["count"] == ([420] if image else expected["count"])
        width = (np.array(expected["max"]) - expected["min"]) / (255 if image else 5000)
        for key in set(expected) - {"count"}:
            coarse = {"mean": 5e-3, "std": 2e-2}.get(key, 0) if image else 0
            tolerance = width * 1.01 if key.startswith("q") else coarse + 1e-5 * np.abs(expected[key])
            assert (np.abs(np.array(found[key]) - expected[key]) <= tolerance + 1e-6).all(), (name, key)


def test_a_subset_counts_anew(shared, tmp_path):
    source = shared / "lerobot/datasets/dataset_v21_video/dataset"
    convert(source, tmp_path / "set", [2, 1])
    check_equal(source, tmp_path / "set", [1, 2])
    assert load_dataset(tmp_path / "set").episodes.tolist() == [0, 1]
    with pytest.raises(DatasetError, match=r"episodes: expected some of 0 to 2, got \[7\]"):
        convert(source, tmp_path / "other", [7])
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("video", "codec"), [("h264", "h264"), ("av1", "av1"), (None, None)])
def test_the_codec_may_be_chosen(tmp_path, video, codec):
    with DatasetWriter.create(tmp_path / "source", 29.97, FEATURES, video_codec="h264") as writer:
        record(writer, 5, 3)
    convert(tmp_path / "source", tmp_path / "set", video=video)
    check_equal(tmp_path / "source", tmp_path / "set", frames=codec in ("h264", None) and video is None)
    found = load_dataset(tmp_path / "set")
    assert rows_of(found.frames[TOP]) == rows_of(found.frames[HAND]) == list(range(8))
    features = json.loads((tmp_path / "set/meta/info.json").read_text())["features"]
    for name in (TOP, HAND):  # images too become videos where a codec is asked for
        assert features[name]["dtype"] == ("video" if video else "image")
        if video:
            assert features[name]["info"]["video.codec"] == codec
    if video == "h264":
        assert packets(tmp_path / "set" / "videos" / TOP) == packets(tmp_path / "source")
    with pytest.raises(DatasetError, match=r"video: expected one of .* got 'h265'; did you mean h264\?"):
        convert(tmp_path / "source", tmp_path / "other", video="h265")


@pytest.mark.parametrize("form", ["zarr", "robomimic"])
def test_other_formats(tmp_path, monkeypatch, form):
    monkeypatch.setattr(os, "cpu_count", lambda: 3)  # several parts at a time, whatever the machine
    if form == "zarr":
        source, names = synthetic.write_replay_buffer(tmp_path / "pusht.zarr"), None
    else:
        from . import test_robomimic

        source = test_robomimic.write(tmp_path / "lift.hdf5")
        names = ["robot0_eef_pos_0", "robot0_eef_pos_1", "robot0_eef_pos_2", "robot0_gripper"]
    convert(source, tmp_path / "images", video=None)
    episodes = load_dataset(source).episodes.tolist()
    check_equal(source, tmp_path / "images", episodes)
    convert(source, tmp_path / "video")
    check_equal(source, tmp_path / "video", episodes, frames=False)
    before, after = load_dataset(source), load_dataset(tmp_path / "video")
    for name in before.camera_keys:
        assert np.abs(before.frames[name].astype(int) - after.frames[name]).mean() < 2
    info = json.loads((tmp_path / "video/meta/info.json").read_text())
    assert info["features"]["observation.state"]["names"] == names
    assert info["features"][before.camera_keys[0]]["info"]["video.crf"] == 30


def test_an_episode_that_begins_between_key_frames_is_encoded(tmp_path):
    # Key frames are 0, 4, ...: the second episode of a file begins at 5, or 6. And of the first one of the second file
    # the last frames, 4 and 5, need a later one: they are B-frames.
    source = synthetic.write_lerobot(tmp_path / "source", "video")
    convert(source, tmp_path / "set", video="h264")
    check_equal(source, tmp_path / "set", frames=False)
    before, after = load_dataset(source).frames[CAMERA], load_dataset(tmp_path / "set").frames[CAMERA]
    np.testing.assert_array_equal(after[:5], before[:5])
    assert np.abs(after.astype(int) - before).max() <= 4
    feature = json.loads((tmp_path / "set/meta/info.json").read_text())["features"][CAMERA]
    assert "video.crf" not in feature["info"]  # it is not that of every video


def encode(path: Path, first: int, last: int, encoder: str, **options: str) -> None:
    """Rows' pictures with something that moves, so that frames are predicted from others."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=synthetic.FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = synthetic.WIDTH, synthetic.HEIGHT, "yuv420p"
        stream.time_base = Fraction(1, synthetic.FPS)
        for row in range(first, last):
            image = np.roll(synthetic.picture(row), 5 * row, axis=1)
            image[:, 3 * row : 3 * row + 8] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def times(path: Path) -> list[int]:
    with av.open(str(path)) as container:
        return [packet.pts for packet in container.demux(video=0) if packet.pts is not None]


@pytest.mark.parametrize(("encoder", "options"), [("libx264", {"bf": "3"}), ("libx265", {"x265-params": "bframes=4"})])
def test_frames_encoded_out_of_order_are_copied(tmp_path, encoder, options):
    """B-frames: packets do not lie in the order of time, and each file begins with a delay of its own."""
    source = synthetic.write_legacy(tmp_path / "source", "v2.1", "video", lengths=(12, 1, 9))
    for episode, rows in enumerate([(0, 12), (12, 13), (13, 22)]):
        encode(source / synthetic.legacy_video_name(episode), *rows, encoder, g="12", **options)
    found = times(source / synthetic.legacy_video_name(0))
    assert found != sorted(found)
    convert(source, tmp_path / "set")
    check_equal(source, tmp_path / "set")
    assert packets(tmp_path / "set") == packets(source)
    convert(tmp_path / "set", tmp_path / "again", [2])
    expected = load_dataset(source, episodes=[2]).frames[CAMERA]
    np.testing.assert_array_equal(load_dataset(tmp_path / "again").frames[CAMERA], expected)


def test_frames_that_lead_up_to_a_key_frame_stay_with_their_own_episode(tmp_path):
    """Open groups: behind a key frame lie frames that are shown before it. They belong to the episode before."""
    source = synthetic.write_lerobot(tmp_path / "source", "video", lengths=(6, 9))
    path = source / synthetic.video_name(0)
    encode(path, 0, 15, "libx264", **{"x264-params": "open-gop=1:keyint=6:min-keyint=6:bframes=3:b-adapt=0:scenecut=0"})
    found = times(path)
    assert found.index(sorted(found)[6]) < found.index(sorted(found)[5])
    convert(source, tmp_path / "set", video="h264")
    before, after = load_dataset(source).frames[CAMERA], load_dataset(tmp_path / "set").frames[CAMERA]
    np.testing.assert_array_equal(after[6:], before[6:])  # copied
    assert 0 < np.abs(after[:6].astype(int) - before[:6]).mean() < 3  # encoded: it ends with such frames


def test_without_cameras(tmp_path):
    source = Path(__file__).parent / "reference/keypoints"
    convert(source, tmp_path / "set")
    check_equal(source, tmp_path / "set")
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["data", "meta"]


def test_a_converted_set_is_gone_on_with(tmp_path):
    with DatasetWriter.create(tmp_path / "source", 10, FEATURES) as writer:
        record(writer, 3)
    convert(tmp_path / "source", tmp_path / "set")
    with DatasetWriter.append(tmp_path / "set") as writer:
        record(writer, 4)
    found = load_dataset(tmp_path / "set")
    assert rows_of(found.frames[TOP]) == list(range(7))
    np.testing.assert_array_equal(found.frames[HAND], np.stack([picture(row) for row in range(7)]))
    assert len([path for path in (tmp_path / "set").rglob("*") if path.is_file()]) == 6


def test_a_target_with_files_is_refused_and_an_empty_one_taken(tmp_path):
    source = Path(__file__).parent / "reference/keypoints"
    (tmp_path / "set").mkdir()
    convert(source, tmp_path / "set")
    content = {path: path.read_bytes() for path in (tmp_path / "set").rglob("*") if path.is_file()}
    for target in (tmp_path / "set", next(iter(content))):
        with pytest.raises(DatasetError, match="expected a new or an empty folder, got one with files; take another"):
            convert(source, target)
    assert {path: path.read_bytes() for path in content} == content


def test_failures_leave_nothing_behind(tmp_path, monkeypatch):
    source = synthetic.write_lerobot(tmp_path / "source", "video")
    path = source / synthetic.video_name(1)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(DatasetError, match=r"chunk-001/file-000\.mp4"):
        convert(source, tmp_path / "set")
    path.write_bytes(content)

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion.DatasetFiles, "add", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_a_killed_conversion_left_is_deleted_by_the_next(tmp_path):
    source = Path(__file__).parent / "reference/keypoints"
    code = (
        "import os, sys\nfrom visuomotor.data.writer_files import DatasetFiles\n"
        "from visuomotor.data.conversion import convert\n"
        "DatasetFiles.add = lambda *arguments: os._exit(9)\nconvert(*sys.argv[1:])"
    )
    paths = os.pathsep.join([str(Path(conversion.__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "set")]
    assert subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}).returncode == 9
    (draft,) = tmp_path.iterdir()
    assert draft.name.startswith(".set.")
    (tmp_path / ".set.other").mkdir()
    convert(source, tmp_path / "set")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".set.other", "set"]
    check_equal(source, tmp_path / "set")


@pytest.mark.parametrize("column", ["action", "next.reward"])
def test_numbers_that_are_none_are_named(shared, tmp_path, monkeypatch, column):
    real = conversion.read

    def damaged(*arguments, **options):
        found = real(*arguments, **options)
        found.arrays[column][200] = np.nan
        return found

    monkeypatch.setattr(conversion, "read", damaged)
    source = shared / "lerobot/datasets/pusht_v30_video"
    with pytest.raises(DatasetError, match=rf"{column}, episode 1, frame 39: expected finite numbers, got .*nan"):
        convert(source, tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_number_text_or_image_is_named(tmp_path):
    source = synthetic.write_lerobot(tmp_path / "source")
    features = json.loads((source / "meta/info.json").read_text())["features"]
    synthetic.edit_info(source, features=features | {"language_events": {"dtype": "language", "shape": [1]}})
    with pytest.raises(
        DatasetError, match=r"features\.language_events: expected numbers, text or images, got language"
    ):
        convert(source, tmp_path / "set")


def test_a_name_on_the_hub(tmp_path, monkeypatch):
    """Downloaded once, and read from there by every part of the work."""
    folder, asked = synthetic.write_lerobot(tmp_path / "source", "image"), []

    def read(source, episodes=None, revision=None):
        asked.append((str(source), revision))
        return real(folder, episodes)

    real = conversion.read
    monkeypatch.setattr(conversion, "read", read)
    convert("owner/name", tmp_path / "set", revision="v3.0")
    assert asked[0] == ("owner/name", "v3.0")
    assert set(asked[1:]) == {(str(folder), None)}
    check_equal(folder, tmp_path / "set")


@pytest.mark.slow
def test_the_original_push_t(shared, tmp_path):
    source = shared / "pusht/pusht_cchi_v7_replay.zarr.zip"
    convert(source, tmp_path / "set", [3, 200])
    check_equal(source, tmp_path / "set", [3, 200], frames=False)
    before = load_dataset(source, episodes=[3, 200]).frames[CAMERA].astype(int)
    after = load_dataset(tmp_path / "set").frames[CAMERA].astype(int)
    own, others, moved = (
        np.abs(a - b).mean(axis=(1, 2, 3))
        for a, b in ((before, after), (before[:-1], after[1:]), (before[:-1], before[1:]))
    )
    assert own.mean() < 1.2  # LeRobot's own conversion: 0.7 to 1.1
    # No frame stands at its neighbour's place, as far as the two can be told apart.
    assert (moved > 1).sum() > 20
    assert (own[1:] < others)[moved > 1].all()
