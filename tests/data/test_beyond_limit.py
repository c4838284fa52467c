"""Data sets whose frames stay encoded give the batches of those whose frames are stored."""

import numpy as np
import pytest
import torch

from visuomotor.data.dataset import load_dataset
from visuomotor.errors import DatasetError

from .synthetic import HEIGHT, LENGTHS, WIDTH, video_name, write_legacy, write_lerobot, write_replay_buffer

CAMERA = "observation.image"
STEPS = {CAMERA: [-1, 0, 2], "action": [0, 1]}
MAKERS = {
    "video": lambda folder: write_lerobot(folder, "video"),
    "av1": lambda folder: write_lerobot(folder, "video", "libsvtav1"),
    "images": lambda folder: write_lerobot(folder, "image"),
    "v2.1 video": lambda folder: write_legacy(folder, "v2.1", "video"),
    "v2.0 images": lambda folder: write_legacy(folder, "v2.0", "image"),
}


@pytest.mark.parametrize("resize", [None, (24, 40)], ids=["whole", "resized"])
@pytest.mark.parametrize("episodes", [None, [1, 2]], ids=["all", "some"])
@pytest.mark.parametrize("kind", MAKERS)
def test_batches_are_equal(tmp_path, monkeypatch, kind, episodes, resize):
    folder = MAKERS[kind](tmp_path)
    stored = load_dataset(folder, episodes=episodes, resize=resize)
    rows = np.random.default_rng(0).permutation(len(stored))
    expected, statistics = stored.batch(rows, STEPS), stored.statistics[CAMERA]
    assert expected[CAMERA].shape[3:] == (resize or (HEIGHT, WIDTH))
    # In the first cache there is room for the encoded images, in the second for nothing.
    for limit in (0.9 * stored.frames[CAMERA].nbytes / 1e9, 0):
        monkeypatch.setenv("VISUOMOTOR_CACHE", str(tmp_path / f"cache {limit}"))
        monkeypatch.setenv("VISUOMOTOR_CACHE_LIMIT", str(limit))
        encoded = load_dataset(folder, episodes=episodes, resize=resize)
        assert encoded.features == stored.features
        found = encoded.batch(rows, STEPS)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        few = encoded.batch(rows[:2], STEPS)
        assert all(torch.equal(few[name], expected[name][:2]) for name in expected)
        for name, value in statistics.items():
            np.testing.assert_array_equal(encoded.statistics[CAMERA][name], value)
        assert list((tmp_path / f"cache {limit}/frames").glob("*.npy")) == []


def test_items_are_equal_too(tmp_path, monkeypatch):
    folder, deltas = write_lerobot(tmp_path, "video"), {CAMERA: [-0.2, 0.0]}
    expected = [item[CAMERA] for item in load_dataset(folder, deltas)]
    monkeypatch.setenv("VISUOMOTOR_CACHE", str(tmp_path / "other"))
    monkeypatch.setenv("VISUOMOTOR_CACHE_LIMIT", "0")
    found = load_dataset(folder, deltas)
    assert all(torch.equal(found[row][CAMERA], image) for row, image in enumerate(expected))
    assert found[5][CAMERA].shape == (2, 3, HEIGHT, WIDTH)


def test_encoded_images_are_kept_where_there_is_room(tmp_path, monkeypatch, cache):
    folder = write_lerobot(tmp_path, "image")
    monkeypatch.setenv("VISUOMOTOR_CACHE_LIMIT", "1e-4")  # 100 KB: the frames take 276
    load_dataset(folder).batch(np.array([3]), STEPS)
    assert sorted(path.suffix for path in (cache / "frames").iterdir()) == [".arrow", ".json"]


def test_a_damaged_video_is_refused_when_its_frames_are_wanted(tmp_path, monkeypatch):
    folder = write_lerobot(tmp_path, "video")
    monkeypatch.setenv("VISUOMOTOR_CACHE_LIMIT", "0")
    path = folder / video_name(1)
    path.write_bytes(path.read_bytes()[:-2000])
    found = load_dataset(folder)
    found.batch(np.array([0, 3]), {CAMERA: [0]})
    for _ in range(2):
        with pytest.raises(DatasetError, match=r"chunk-001/file-000\.mp4: expected"):
            found.batch(np.arange(sum(LENGTHS)), {CAMERA: [0]})


def test_a_source_that_is_not_read_in_parts_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("VISUOMOTOR_CACHE_LIMIT", "0")
    found = load_dataset(write_replay_buffer(tmp_path / "a.zarr"))
    with pytest.raises(DatasetError, match=r"observation\.image: expected room for .* visuomotor convert"):
        found.batch(np.array([0]), {CAMERA: [0]})
