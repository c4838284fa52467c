"""robomimic's HDF5 files."""

import builtins
import json
import os

import numpy as np
import pytest

from visuomotor.data.dataset import Dataset
from visuomotor.data.robomimic import is_robomimic, read
from visuomotor.errors import DatasetError

h5py = pytest.importorskip("h5py")
LENGTHS = {"demo_0": 3, "demo_2": 2, "demo_10": 4}
SHAPE = (8, 10, 3)
ENVIRONMENT = {"env_name": "Lift", "env_kwargs": {"control_freq": 50}}


def columns(number: int, length: int) -> dict[str, np.ndarray]:
    """What a demonstration holds; every value tells its number and frame."""
    value = 100.0 * number + np.arange(length)
    return {
        "actions": np.stack([value, -value], axis=1),
        "rewards": value / 4,
        "dones": np.arange(length) == length - 1,
        "states": np.zeros((length, 30)),
        "obs/robot0_eef_pos": np.stack([value, value + 1, value + 2], axis=1),
        "obs/robot0_gripper": value + 3,
        "obs/object": np.stack([value + 4, value + 5], axis=1),
        "obs/agentview_image": picture(number, length),
        "obs/hand_image": picture(number, length) + 1,
        "next_obs/object": np.zeros((length, 2)),
    }


def picture(number: int, length: int) -> np.ndarray:
    return np.broadcast_to((10 * number + np.arange(length))[:, None, None, None], (length, *SHAPE)).astype(np.uint8)


def write(path, lengths=LENGTHS, environment=ENVIRONMENT, **changes):
    """Changes replace columns of the first demonstration, or with None leave them out."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        if environment is not None:
            data.attrs["env_args"] = json.dumps(environment)
        for name, length in lengths.items():
            content = columns(int(name.removeprefix("demo_")), length)
            content |= changes if name == next(iter(lengths)) else {}
            for key, values in content.items():
                if values is not None:
                    data.create_dataset(f"{name}/{key}", data=values)
    return path


def test_columns_names_and_frames(tmp_path):
    path = write(tmp_path / "lift.hdf5")
    assert is_robomimic(path)
    found = read(path)
    assert (found.fps, found.tasks, found.episodes.tolist()) == (50, {0: "Lift"}, [0, 2, 10])
    assert found.lengths.tolist() == [3, 2, 4]
    parts = [columns(int(name.removeprefix("demo_")), length) for name, length in LENGTHS.items()]
    expected = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    state = np.concatenate([expected["obs/robot0_eef_pos"], expected["obs/robot0_gripper"][:, None]], axis=1)
    for name, values in {
        "observation.state": state,
        "observation.environment_state": expected["obs/object"],
        "action": expected["actions"],
        "next.reward": expected["rewards"],
    }.items():
        np.testing.assert_array_equal(found.arrays[name], values.astype(np.float32), strict=True)
    assert found.arrays["next.done"].tolist() == [False, False, True, False, True, False, False, False, True]
    assert found.arrays["frame_index"].tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 3]
    assert found.names == {
        "observation.state": ["robot0_eef_pos_0", "robot0_eef_pos_1", "robot0_eef_pos_2", "robot0_gripper"],
        "observation.environment_state": ["object_0", "object_1"],
    }
    frames = Dataset(found).frames
    assert list(frames) == ["observation.images.agentview", "observation.images.hand"]
    np.testing.assert_array_equal(frames["observation.images.agentview"], expected["obs/agentview_image"])
    np.testing.assert_array_equal(frames["observation.images.hand"], expected["obs/hand_image"])


def test_some_episodes_and_nothing_but_actions_and_one_observation(tmp_path):
    leave = dict.fromkeys(["rewards", "dones", "obs/object", "obs/agentview_image", "obs/hand_image"])
    path = write(tmp_path / "a.h5", {"demo_3": 2, "demo_4": 2}, None, **leave)
    found = read(path, [3])
    assert (found.fps, found.tasks, found.episodes.tolist()) == (20, {0: "robomimic"}, [3])
    assert (sorted(found.cameras), found.arrays["action"].tolist()) == ([], [[300, -300], [301, -301]])
    assert found.arrays["next.done"].tolist() == [False, True]
    assert "observation.environment_state" not in found.arrays
    with pytest.raises(DatasetError, match=r"a\.h5: episodes: expected some of 3 to 4, got \[5\]"):
        read(path, [5])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": None}, r"/data/demo_0/actions: expected \(T, Da\) numbers, got none"),
        ({"actions": np.zeros(3)}, r"/data/demo_0/actions: expected \(T, Da\) numbers, got \(3,\)"),
        ({"rewards": np.zeros(2)}, "/data/demo_0/rewards: expected 3 rows, got 2"),
        ({"obs/object": np.zeros((4, 2))}, "/data/demo_0/obs/object: expected 3 rows, got 4"),
        ({"obs/object": np.zeros((3, 5))}, "expected robomimic's HDF5 that can be read, got all the input array dim"),
        ({"obs/hand_image": np.zeros((3, 8, 10, 3))}, r"hand_image: expected uint8 \(3, H, W, 3\), got float64"),
        ({"obs/hand_image": np.zeros((3, 8, 9, 3), np.uint8)}, "hand_image: expected images of one size"),
        ({"obs/hand_depth": np.zeros((3, 8, 10, 1))}, r"demo_0/obs: .* colour images, got \['hand_depth'\]"),
        ({"obs/hand_depth": np.array(b"text"), "obs/object": None}, "expected robomimic's HDF5 that can be read"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, changes, message):
    with pytest.raises(DatasetError, match=message):
        read(write(tmp_path / "a.hdf5", **changes))


def test_damaged_files_are_refused(tmp_path, cache):
    path = write(tmp_path / "a.hdf5")
    found = read(path)
    with open(path, "r+b") as file:
        file.truncate(os.path.getsize(path) // 2)
    with pytest.raises(DatasetError, match=r"a\.hdf5: expected robomimic's HDF5 that can be read, got"):
        read(path)
    with pytest.raises(DatasetError, match=r"a\.hdf5: expected /data/demo_\d+/obs/hand_image that can be read"):
        _ = Dataset(found).frames["observation.images.hand"]
    assert os.listdir(cache / "frames") == []
    with pytest.raises(DatasetError, match=r"b\.hdf5: expected a robomimic HDF5 file, got no such file"):
        read(tmp_path / "b.hdf5")
    with h5py.File(tmp_path / "c.hdf5", "w") as file:
        file["mask/train"] = [1]
    with pytest.raises(DatasetError, match=r"c\.hdf5: data: expected demo_0, demo_1, \.\.\., got \['mask'\]"):
        read(tmp_path / "c.hdf5")
    for environment in ([], {"env_kwargs": {"control_freq": 0}}, {"env_kwargs": {"control_freq": "fast"}}):
        with pytest.raises(DatasetError, match=r"d\.hdf5: expected robomimic's HDF5 that can be read"):
            read(write(tmp_path / "d.hdf5", environment=environment))


def test_without_h5py_the_extra_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *rest, **options):
        if name == "h5py":
            raise ImportError(name)
        return real(name, *rest, **options)

    path = write(tmp_path / "a.hdf5")
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(DatasetError, match=r"pip install 'visuomotor\[hdf5\]'"):
        read(path)
