"""The original Push-T replay buffer, as a folder and as a zip."""

import builtins
import os
import shutil

import numpy as np
import pytest

from visuomotor.data.dataset import load_dataset
from visuomotor.data.pusht_geometry import block_keypoints
from visuomotor.errors import DatasetError

from .lerobot_samples import check_samples, samples
from .synthetic import LENGTHS, picture, write_replay_buffer

pytest.importorskip("zarr")
N = sum(LENGTHS)
ROWS = np.arange(N)


@pytest.fixture(scope="module")
def buffer(tmp_path_factory):
    return write_replay_buffer(tmp_path_factory.mktemp("buffer") / "pusht.zarr")


@pytest.mark.parametrize("form", ["folder", "zip of its content", "zip of the folder"])
def test_columns_and_frames(buffer, tmp_path, form):
    source = buffer
    if form != "folder":
        root, base = (buffer, None) if form == "zip of its content" else (buffer.parent, buffer.name)
        source = shutil.make_archive(str(tmp_path / "pusht.zarr"), "zip", root, base)
    found = load_dataset(source, {"action": [0.0, 0.1]})
    assert (found.fps, len(found), found.episode_ends.tolist()) == (10, N, [5, 8, 14, 18])
    np.testing.assert_array_equal(found.arrays["observation.state"], np.stack([ROWS, ROWS + 1], 1).astype(np.float32))
    pose = np.stack([ROWS + 200, ROWS + 300, ROWS / 10], axis=1).astype(np.float32)
    np.testing.assert_array_equal(found.arrays["observation.environment_state"], block_keypoints(pose))
    np.testing.assert_array_equal(found.frames["observation.image"], np.stack([picture(row) for row in ROWS]))
    item = found[4]
    assert item["action"].tolist() == [[4, -4], [4, -4]]
    assert item["next.done"].item() is True
    assert item["task"] == "Push the T-shaped block onto the T-shaped target."


def test_some_episodes(buffer):
    found = load_dataset(buffer, episodes=[3, 1])
    assert found.arrays["index"].tolist() == [5, 6, 7, 14, 15, 16, 17]
    assert found.episodes.tolist() == [1, 3]
    expected = np.stack([picture(row) for row in found.arrays["index"]])
    np.testing.assert_array_equal(found.frames["observation.image"], expected)


@pytest.mark.parametrize("name", ["data/img", "data/state", "data/action", "meta/episode_ends"])
def test_an_absent_array_is_named(tmp_path, name):
    write_replay_buffer(tmp_path / "a.zarr", leave_out=name)
    with pytest.raises(DatasetError, match=rf"a\.zarr: arrays: expected \['{name}'\] among them, got \["):
        load_dataset(tmp_path / "a.zarr")


@pytest.mark.parametrize("ends", [[5, 8, 7, 18], [5, 8, 14], [0, 18], [18, 18], [5, 30]])
def test_episode_ends_must_ascend_to_the_last_row(tmp_path, ends):
    write_replay_buffer(tmp_path / "a.zarr", episode_ends=ends)
    with pytest.raises(DatasetError, match=r"a\.zarr: episode_ends: expected ascending row numbers up to 18, got \["):
        load_dataset(tmp_path / "a.zarr")


def test_damaged_files_are_refused(buffer, tmp_path, cache):
    whole = shutil.make_archive(str(tmp_path / "a.zarr"), "zip", buffer)
    with open(whole, "r+b") as file:
        file.truncate(os.path.getsize(whole) // 2)
    with pytest.raises(DatasetError, match=r"a\.zarr\.zip: expected a zarr group .* cut off"):
        load_dataset(whole)
    with pytest.raises(DatasetError, match=r"empty\.zarr: expected a zarr group"):
        (tmp_path / "empty.zarr").mkdir()
        load_dataset(tmp_path / "empty.zarr")
    shutil.copytree(buffer, tmp_path / "b.zarr")
    (tmp_path / "b.zarr/data/img/1.0.0.0").write_bytes(b"damaged")
    found = load_dataset(tmp_path / "b.zarr")
    with pytest.raises(DatasetError, match=r"b\.zarr: expected data/img that can be read, got"):
        found.frames["observation.image"]
    assert os.listdir(cache / "frames") == []


def test_grey_levels_must_be_bytes(tmp_path):
    import zarr

    write_replay_buffer(tmp_path / "a.zarr")
    zarr.open_group(str(tmp_path / "a.zarr"), mode="r+")["data/img"][5, 0, 0, 0] = np.nan
    with pytest.raises(DatasetError, match=r"a\.zarr: data/img, rows 4 to 7: expected grey levels from 0 to 255"):
        load_dataset(tmp_path / "a.zarr").frames["observation.image"]


def test_without_zarr_the_extra_is_named(buffer, monkeypatch):
    real = builtins.__import__

    def missing(name, *rest, **options):
        if name.startswith("zarr"):
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(DatasetError, match=r"pip install 'visuomotor\[zarr\]'"):
        load_dataset(buffer)


def test_the_original_equals_lerobots_conversion(shared):
    """Low-dimensional columns of all frames; images of three episodes."""
    original = load_dataset(shared / "pusht/pusht_cchi_v7_replay.zarr.zip")
    lerobot = load_dataset(shared / "pusht/lerobot_v30_keypoints")
    for name, values in original.arrays.items():
        np.testing.assert_array_equal(values, lerobot.arrays[name], strict=True)
    for name in ("observation.state", "action"):
        for key in ("min", "max", "mean", "std"):  # LeRobot joins the deviations of episodes
            np.testing.assert_allclose(original.statistics[name][key], lerobot.statistics[name][key], rtol=1e-5)
    images = load_dataset(shared / "lerobot/datasets/pusht_v30_image")
    some = load_dataset(shared / "pusht/pusht_cchi_v7_replay.zarr.zip", episodes=images.episodes.tolist())
    np.testing.assert_array_equal(some.frames["observation.image"], images.frames["observation.image"])


def test_images_equal_lerobots_samples_of_the_image_set(shared):
    asked, items = samples(shared / "lerobot/samples", "image")
    source = shared / "pusht/pusht_cchi_v7_replay.zarr.zip"
    episodes = np.unique(load_dataset(source).arrays["episode_index"][asked["indices"]])
    found = load_dataset(source, asked["delta_timestamps"], episodes.tolist())
    # The replay buffer has no reward, and adds the corners of the block.
    found.arrays.pop("observation.environment_state")
    known = {name: value for name, value in items.items() if not name.endswith(("next.reward", "next.success"))}
    check_samples(found, known, asked["indices"])
