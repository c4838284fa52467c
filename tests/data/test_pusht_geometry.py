"""Push-T's corners and its reflection."""

import math

import numpy as np
import pytest
import torch

from visuomotor.data import pusht_geometry
from visuomotor.data.dataset import load_dataset
from visuomotor.data.pusht_geometry import block_keypoints, block_pose, mirror
from visuomotor.errors import ConfigError


def test_corners_of_a_turned_block():
    found = block_keypoints(np.array([[100.0, 200.0, math.pi / 2]])).reshape(8, 2)
    # A quarter turn: (x, y) of the block's own frame goes to (-y, x).
    assert found.tolist() == [
        pytest.approx(corner, abs=1e-4)
        for corner in ([100, 140], [100, 260], [70, 260], [70, 140], [70, 185], [70, 215], [-20, 215], [-20, 185])
    ]
    assert found.dtype == np.float32


def test_the_pose_follows_from_the_corners():
    pose = np.random.default_rng(2).uniform([0, 0, -math.pi], [512, 512, math.pi], (50, 3))
    np.testing.assert_allclose(block_pose(block_keypoints(pose)), pose, atol=1e-4)
    assert block_pose(block_keypoints(np.array([[1, 2, 2 * math.pi + 1]])))[0, 2] == pytest.approx(1, abs=1e-6)


def test_corners_are_gym_pushts():
    pusht = pytest.importorskip("gym_pusht.envs.pusht")
    pymunk = pytest.importorskip("pymunk")
    pose = np.random.default_rng(0).uniform(-5, 500, (20, 3))
    for x, y, angle in pose:
        body, shapes = pusht.PushTEnv.add_tee(pymunk.Space(), (0, 0), 0)
        body.angle = angle
        body.position = x, y
        expected = pusht.PushTEnv.get_keypoints(shapes).astype(np.float32)
        np.testing.assert_allclose(block_keypoints(np.array([[x, y, angle]])).reshape(8, 2), expected, rtol=1e-6)


def test_corners_equal_lerobots_bit_for_bit(shared):
    pytest.importorskip("zarr")
    original = load_dataset(shared / "pusht/pusht_cchi_v7_replay.zarr.zip")
    lerobot = load_dataset(shared / "pusht/lerobot_v30_keypoints")
    name = "observation.environment_state"
    np.testing.assert_array_equal(original.arrays[name], lerobot.arrays[name])


def a_batch() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    poses = torch.rand(3, 2, 3, generator=random, dtype=torch.float64) * torch.tensor([512, 512, 6])
    corners = block_keypoints(poses.reshape(6, 3).numpy()).reshape(3, 2, 16)
    return {
        "observation.state": torch.rand(3, 2, 2, generator=random) * 512,
        "observation.environment_state": torch.from_numpy(corners),
        "observation.image": torch.randint(0, 256, (3, 2, 3, 4, 4), generator=random, dtype=torch.uint8),
        "action": torch.rand(3, 5, 2, generator=random) * 512,
        "action_is_pad": torch.rand(3, 5, generator=random) > 0.5,
    }


def test_only_the_chosen_samples_are_reflected():
    batch = a_batch()
    before = {name: value.clone() for name, value in batch.items()}
    found = mirror(batch, torch.tensor([True, False, True]))
    for name, value in before.items():
        assert torch.equal(batch[name], value), "the batch given stays as it was"
        assert torch.equal(found[name][1], value[1])
        assert found[name].dtype == value.dtype
    assert torch.equal(found["action_is_pad"], before["action_is_pad"])
    x, y = before["action"][2, 4].tolist()
    assert found["action"][2, 4].tolist() == pytest.approx([512 - y, 512 - x])
    image, reflected = before["observation.image"][0, 1], found["observation.image"][0, 1]
    for row in range(4):
        for column in range(4):
            assert torch.equal(reflected[:, 3 - column, 3 - row], image[:, row, column])


def test_without_knowing_which_they_are_it_is_the_same():
    """As on a GPU, whose host must not ask."""
    batch, where = a_batch(), torch.tensor([True, False, True])
    for name, value in mirror(batch, where).items():
        if name != "action_is_pad":
            assert torch.equal(pusht_geometry._reflect_where(name, batch[name], where), value)


def test_reflected_twice_is_as_before():
    batch, where = a_batch(), torch.tensor([True, True, False])
    found = mirror(mirror(batch, where), where)
    for name, value in batch.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-4)


def test_reflected_corners_are_those_of_the_reflected_pose():
    pose = np.random.default_rng(1).uniform([0, 0, -7], [512, 512, 7], (50, 3))
    reflected_pose = np.stack([512 - pose[:, 1], 512 - pose[:, 0], math.pi / 2 - pose[:, 2]], axis=1)
    corners = torch.from_numpy(block_keypoints(pose))[:, None]
    found = mirror({"observation.environment_state": corners}, torch.ones(50, dtype=torch.bool))
    expected = block_keypoints(reflected_pose)
    np.testing.assert_allclose(found["observation.environment_state"][:, 0], expected, atol=1e-3)


def test_the_goal_is_its_own_reflection():
    goal = block_keypoints(np.array([[256, 256, math.pi / 4]]))
    found = mirror({"observation.environment_state": torch.from_numpy(goal)[None]}, torch.tensor([True]))
    np.testing.assert_allclose(found["observation.environment_state"][0], goal, atol=1e-3)


def test_a_reflected_picture_is_the_picture_of_the_reflected_state():
    simulation = pytest.importorskip("visuomotor.simulation.pusht")
    pytest.importorskip("gym_pusht")
    state = np.array([[100, 340, 200, 260, 0.7]])
    reflected = np.array([[512 - 340, 512 - 100, 512 - 260, 512 - 200, math.pi / 2 - 0.7]])
    image, expected = (torch.from_numpy(simulation.render_states(s)).movedim(-1, 1)[None] for s in (state, reflected))
    found = mirror({"observation.image": image}, torch.tensor([True]))["observation.image"]
    difference = (found.int() - expected.int()).abs()
    # Edges fall on other pixels; the two pictures themselves differ in 8 % of them.
    assert (difference > 60).float().mean() < 0.02


def test_an_unknown_observation_is_refused():
    with pytest.raises(ConfigError, match=r"observation\.force: .* set augmentation to none"):
        mirror({"observation.force": torch.zeros(1, 2, 3)}, torch.tensor([True]))
