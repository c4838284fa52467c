"""The demonstrations that come with Visuomotor."""

import os

import numpy as np
import pytest

from visuomotor.data import bundled
from visuomotor.data.dataset import Dataset, load_dataset
from visuomotor.data.pusht_geometry import block_keypoints
from visuomotor.errors import DatasetError

AGENT = np.array([[100, 100], [110, 120], [200, 300], [210, 300], [220, 310]], np.float32)
BLOCK = np.array([[250, 260, 0.1], [251, 262, 0.2], [300, 200, 2], [301, 201, 2.1], [305, 203, 2.2]], np.float32)


@pytest.fixture
def file(tmp_path):
    columns = {"agent": AGENT, "block": BLOCK, "action": AGENT + 5}
    np.savez(tmp_path / "some.npz", **columns, episode_ends=np.array([2, 5]), seed=np.array([1_000_000, 1_000_001]))
    return tmp_path / "some.npz"


def test_columns_follow_from_states(file, cache):
    found = Dataset(bundled.read(file))
    assert (found.fps, found.episode_ends.tolist()) == (10, [2, 5])
    np.testing.assert_array_equal(found.arrays["observation.state"], AGENT)
    np.testing.assert_array_equal(found.arrays["observation.environment_state"], block_keypoints(BLOCK))
    np.testing.assert_array_equal(found.arrays["action"], AGENT + 5)
    assert found.features["observation.image"].shape == (3, 96, 96)
    assert Dataset(bundled.read(file, [1])).arrays["index"].tolist() == [2, 3, 4]
    assert os.listdir(cache) == [], "images are drawn only when they are looked at"


def test_images_are_drawn_on_first_use(file):
    pytest.importorskip("gym_pusht")
    from visuomotor.simulation.pusht import render_states

    expected = render_states(np.concatenate([AGENT, BLOCK], axis=1), size=96)
    np.testing.assert_array_equal(Dataset(bundled.read(file)).frames["observation.image"], expected)
    np.testing.assert_array_equal(Dataset(bundled.read(file, [1])).frames["observation.image"], expected[2:])


def test_a_missing_or_damaged_file_is_refused(file, tmp_path):
    with pytest.raises(DatasetError, match=r"none\.npz: expected an npz file of agent, .* got no such file"):
        bundled.read(tmp_path / "none.npz")
    content = file.read_bytes()
    for damaged in (content[:300], b""):
        file.write_bytes(damaged)
        with pytest.raises(DatasetError, match=r"some\.npz: expected an npz file of agent"):
            bundled.read(file)
    np.savez(file, agent=AGENT, block=BLOCK)
    with pytest.raises(DatasetError, match=r"some\.npz: expected an npz file of agent, block, action, episode_ends"):
        bundled.read(file)
    np.savez(file, agent=AGENT, block=BLOCK, action=AGENT[:4], episode_ends=np.array([5]))
    with pytest.raises(DatasetError, match=r"some\.npz: action: expected \(5, 2\), got \(4, 2\)"):
        bundled.read(file)


@pytest.mark.skipif(not bundled.FILE.exists(), reason="the demonstrations are not recorded yet")
def test_what_ships_is_read():
    found = load_dataset(bundled.NAME)
    assert len(found.episodes) >= 200
    assert bundled.FILE.stat().st_size < 1e6
    assert np.load(bundled.FILE)["seed"].min() >= 1_000_000
