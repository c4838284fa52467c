"""Items as LeRobot gives them, batches of windows, and the way to each source."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from visuomotor.config import Feature
from visuomotor.data.dataset import load_dataset
from visuomotor.errors import DatasetError

from .lerobot_samples import check_samples, samples
from .synthetic import HEIGHT, LENGTHS, WIDTH, picture, write_lerobot

REFERENCE = Path(__file__).parent / "reference"
N = sum(LENGTHS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_lerobot(tmp_path_factory.mktemp("set"), "image")


def test_features_have_types_and_shapes(folder):
    found = load_dataset(folder)
    assert found.features == {
        "observation.state": Feature("STATE", (2,)),
        "observation.force": Feature("STATE", (1,)),
        "action": Feature("ACTION", (2,)),
        "observation.image": Feature("VISUAL", (3, HEIGHT, WIDTH)),
    }
    corners = load_dataset(REFERENCE / "keypoints").features["observation.environment_state"]
    assert corners == Feature("ENV", (16,))


def test_a_window_at_an_episodes_end(folder):
    deltas = {"action": [-0.4, 0.0, 0.2], "observation.image": [0.0, 0.2], "observation.force": [0.0, 0.2]}
    item = load_dataset(folder, deltas)[4]  # the last frame of episode 0
    assert item["action"].tolist() == [[2, -2], [4, -4], [4, -4]]
    assert item["action_is_pad"].tolist() == [False, False, True]
    assert item["observation.force"].tolist() == [2, 2]
    assert item["observation.force_is_pad"].tolist() == [False, True]
    assert item["observation.state"].tolist() == [40, 7]
    assert "observation.state_is_pad" not in item
    image = item["observation.image"]
    assert (image.shape, image.dtype) == ((2, 3, HEIGHT, WIDTH), torch.float32)
    np.testing.assert_array_equal(image[1].permute(1, 2, 0) * 255, picture(4))
    assert [(item[name].shape, item[name].dtype) for name in ("next.done", "index", "timestamp")] == [
        ((), torch.bool),
        ((), torch.int64),
        ((), torch.float32),
    ]
    assert item["task"] == "Push."


def test_items_count_from_either_end_and_can_be_iterated(folder):
    found = load_dataset(folder, episodes=[1, 3])
    assert len(found) == 7
    assert [int(item["index"]) for item in found] == [5, 6, 7, 14, 15, 16, 17]
    assert int(found[-1]["index"]) == int(found[np.int64(6)]["index"]) == 17
    assert found[0]["observation.image"].shape == (3, HEIGHT, WIDTH)
    for index in (7, -8):
        with pytest.raises(IndexError, match="expected -7 to 6"):
            found[index]


def test_anchors_leave_the_last_frames_of_each_episode_out(folder):
    found = load_dataset(folder)
    assert found.anchors(0).tolist() == list(range(N))
    assert found.anchors(3).tolist() == [0, 1, 8, 9, 10, 14]
    assert found.anchors(3).dtype == np.int64
    with pytest.raises(DatasetError, match="more than drop_n_last_frames = 6 frames, got 6 at most"):
        found.anchors(6)


def test_a_batch_holds_the_windows_of_items(folder):
    steps = {"observation.image": [-1, 0], "observation.force": [0], "action": [-1, 0, 1, 2]}
    deltas = {name: [step / 5 for step in offsets] for name, offsets in steps.items()}
    found = load_dataset(folder, deltas)
    rows = np.array([17, 0, 5, 7, 7])
    batch = found.batch(rows, steps)
    assert list(batch) == [name + end for name in steps for end in ("", "_is_pad")]
    assert batch["observation.image"].shape == (5, 2, 3, HEIGHT, WIDTH)
    assert batch["observation.image"].dtype == torch.uint8
    assert batch["observation.force"].shape == (5, 1, 1)
    assert batch["action"].dtype == torch.float32
    for position, row in enumerate(rows):
        item = found[row]
        assert torch.equal(batch["observation.image"][position].float() / 255, item["observation.image"])
        assert torch.equal(batch["observation.force"][position, :, 0], item["observation.force"])
        assert torch.equal(batch["action"][position], item["action"])
        for name in steps:
            assert torch.equal(batch[f"{name}_is_pad"][position], item[f"{name}_is_pad"])


def test_a_batch_without_images_decodes_nothing(tmp_path, cache):
    found = load_dataset(write_lerobot(tmp_path, "video"))
    batch = found.batch(np.array([3, 4]), {"action": [0, 1], "observation.force": [0, 1]})
    assert batch["action"].tolist() == [[[3, -3], [4, -4]], [[4, -4], [4, -4]]]
    assert batch["observation.force"].tolist() == [[[1.5], [2]], [[2], [2]]]
    assert os.listdir(cache) == []


def test_statistics_of_images_are_computed_where_none_are_stored(folder):
    pictures = np.stack([picture(row) for row in range(N)]) / 255
    found = load_dataset(folder).statistics["observation.image"]
    np.testing.assert_allclose(found["mean"].ravel(), pictures.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(found["std"].ravel(), pictures.std((0, 1, 2)), rtol=1e-6)
    assert found["max"].shape == (3, 1, 1)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing/folder/here", "missing/folder/here: expected a folder of LeRobot v3.0, .* got no such folder; pass"),
        ("./pusht", "./pusht: expected a folder of LeRobot v3.0, .* got no such folder"),
        ("missing.zarr", "missing.zarr: expected a replay buffer, got no such file or folder"),
        (__file__, "test_dataset.py: expected a folder of LeRobot v3.0, .* got another kind of file"),
        (os.path.dirname(__file__), "meta/info.json: expected a LeRobot v3.0 data set's file, got no such file"),
    ],
)
def test_sources_that_are_not_there_are_refused(source, message):
    with pytest.raises(DatasetError, match=message):
        load_dataset(source)


def test_unknown_names_and_offsets_are_refused(folder):
    with pytest.raises(DatasetError, match=r"'observation.stat': .* did you mean observation.state\?"):
        load_dataset(folder, {"observation.stat": [0.0]})
    with pytest.raises(DatasetError, match=r"'action': expected multiples of 1 / 5 s"):
        load_dataset(folder, {"action": [0.0, 0.1]})


def test_items_equal_lerobots_anywhere():
    asked, items = samples(REFERENCE, "keypoints_samples")
    found = load_dataset(REFERENCE / "keypoints", asked["delta_timestamps"])
    check_samples(found, items, asked["indices"])


def test_items_of_all_key_points_equal_lerobots(shared):
    asked, items = samples(shared / "lerobot/samples", "keypoints")
    found = load_dataset(shared / "pusht/lerobot_v30_keypoints", asked["delta_timestamps"])
    assert len(found) == 25650
    check_samples(found, items, asked["indices"])


@pytest.mark.parametrize("backend", ["video_pyav", "video"])  # LeRobot's two decoders agree to the byte
def test_items_of_the_video_set_equal_lerobots(shared, backend):
    asked, items = samples(shared / "lerobot/samples", backend)
    source = shared / "pusht/lerobot_v30"
    episodes = np.unique(load_dataset(source).arrays["episode_index"][asked["indices"]])  # decoding all takes seconds
    found = load_dataset(source, asked["delta_timestamps"], episodes.tolist())
    check_samples(found, items, asked["indices"], grey_levels=1)


def test_items_of_an_image_set_equal_lerobots(shared):
    """Samples of the whole set, of which three episodes are at hand; these lack `next.*`."""
    asked, items = samples(shared / "lerobot/samples", "image")
    found = load_dataset(shared / "lerobot/datasets/pusht_v30_image", asked["delta_timestamps"])
    indices = [index for index in asked["indices"] if index < len(found)]
    assert indices == [0, 1, 160, 161]
    kept = {key: value for key, value in items.items() if "/next." not in key}
    check_samples(found, kept, indices)
