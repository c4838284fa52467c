"""LeRobot itself reads what we write, goes on with it, and acts with the policies we give it: `make lerobot`."""

import dataclasses
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from visuomotor.data.conversion import convert
from visuomotor.data.dataset import load_dataset
from visuomotor.data.writer import DatasetWriter
from visuomotor.policy.checkpoint import load_policy
from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.policy.lerobot_export import save_lerobot

from ..policy.small import observation, small_batch, small_config, small_policy

PYTHON = os.environ.get("VISUOMOTOR_LEROBOT", "")
pytestmark = [pytest.mark.lerobot, pytest.mark.skipif(not PYTHON, reason="VISUOMOTOR_LEROBOT: see CONTRIBUTING.md")]

LENGTHS = (12, 7, 9)
SHAPE = (64, 80, 3)


def lerobot(*arguments: object) -> None:
    """Runs LeRobot's side."""
    command = [PYTHON, str(Path(__file__).with_name("lerobot_side.py")), *map(str, arguments)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def picture(number: int) -> np.ndarray:
    """A grey slope with a bright bar at a place that tells the number."""
    image = np.tile(np.linspace(20, 120, SHAPE[1], dtype=np.uint8)[None, :, None], (SHAPE[0], 1, 3))
    image[:, 2 * number : 2 * number + 4] = 240
    return image


def write(folder: Path, camera: str, codec: str, lengths: tuple[int, ...] = LENGTHS) -> Path:
    """Episodes by our writer, the last one by `append`."""
    features = {
        "observation.image": {"dtype": camera, "shape": SHAPE, "names": ["height", "width", "channels"]},
        "observation.state": {"dtype": "float32", "shape": (3,), "names": ["x", "y", "z"]},
        "action": {"dtype": "float32", "shape": (3,), "names": None},
        "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
        "next.done": {"dtype": "bool", "shape": (1,), "names": None},
    }
    for episode, length in enumerate(lengths):
        if episode == 0:
            writer = DatasetWriter.create(folder, 10, features, "arm", video_codec=codec)
        elif episode == len(lengths) - 1:
            writer.finalize()
            writer = DatasetWriter.append(folder)
        for row in range(length):
            number = sum(lengths[:episode]) + row
            frame = {"observation.image": picture(number), "action": np.float32([number, -number, 0.5])}
            frame |= {"observation.state": np.float32([number / 3, row, 1]), "next.reward": np.float32([row / length])}
            writer.add_frame(frame | {"next.done": np.array([row == length - 1])}, task=f"Task {episode % 2}.")
        writer.save_episode()
    writer.finalize()
    return folder


def check_equal(folder: Path, output: Path, image: str | None, grey_levels: float) -> None:
    """LeRobot's items and statistics against ours."""
    steps = [-2, 0, 3]
    delta = {name: [step / 10 for step in steps] for name in ("action", *([image] if image else []))}
    ours = load_dataset(folder, delta_timestamps=delta)
    indices = sorted({0, 1, len(ours) // 2, *(int(end) - 1 for end in ours.episode_ends)})
    lerobot("read", folder, output, json.dumps(delta), *indices)
    with safe_open(output, "pt") as file:
        tasks = file.metadata()
    theirs = load_file(output)
    assert int(theirs["length"]) == len(ours)
    for index in indices:
        item = ours[index]
        assert item.pop("task") == tasks[str(index)]
        assert {name.partition("/")[2] for name in theirs if name.startswith(f"{index}/")} == set(item)
        for name, value in item.items():
            expected = theirs[f"{index}/{name}"]
            assert value.shape == expected.shape, name
            if name == image:
                assert (value - expected).abs().max() * 255 <= grey_levels + 1e-3, (index, name)
            else:
                assert torch.equal(value, expected), (index, name)
    for name in ("observation.state", "action"):
        for key in ("min", "max", "mean", "std"):
            found = torch.as_tensor(ours.statistics[name][key])
            torch.testing.assert_close(found, theirs[f"stats/{name}/{key}"].float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("camera", "codec"), [("video", "av1"), ("video", "h264"), ("image", "av1")])
def test_lerobot_reads_what_we_write(tmp_path: Path, camera: str, codec: str) -> None:
    folder = write(tmp_path / "set", camera, codec)
    check_equal(folder, tmp_path / "items.safetensors", "observation.image", 0 if camera == "image" else 1)


@pytest.mark.parametrize(("camera", "codec"), [("video", "av1"), ("image", "av1")])
def test_lerobot_goes_on_with_what_we_wrote_and_we_with_that(tmp_path: Path, camera: str, codec: str) -> None:
    folder = write(tmp_path / "set", camera, codec)
    before = load_dataset(folder)
    images = np.array(before.frames["observation.image"])
    frames = {
        "observation.image": torch.from_numpy(np.stack([picture(30 + row) for row in range(6)])),
        "observation.state": torch.rand(6, 3),
        "action": torch.rand(6, 3),
        "next.reward": torch.rand(6, 1),
        "next.done": torch.arange(6)[:, None] == 5,
    }
    save_file(frames, tmp_path / "frames.safetensors")
    lerobot("record", folder, tmp_path / "frames.safetensors")
    with DatasetWriter.append(folder) as writer:
        for row in range(5):
            frame = {name: values[row].numpy() for name, values in frames.items()}
            writer.add_frame(frame, task="Ours again.")
        writer.save_episode()
    found = load_dataset(folder)
    assert found.episode_ends.tolist() == [12, 19, 28, 34, 39]
    np.testing.assert_array_equal(found.frames["observation.image"][:28], images)
    np.testing.assert_array_equal(found.arrays["action"][28:34], frames["action"].numpy())
    assert [found[row]["task"] for row in (0, 12, 28, 34)] == ["Task 0.", "Task 1.", "LeRobot's.", "Ours again."]
    for row in range(6):  # the bar stands where LeRobot drew it
        assert found.frames["observation.image"][28 + row, 32].mean(axis=1).argmax() in range(
            60 + 2 * row, 64 + 2 * row
        )
    check_equal(folder, tmp_path / "items.safetensors", "observation.image", 0 if camera == "image" else 1)


@pytest.mark.parametrize("name", ["dataset_v20_video", "dataset_v21_video", "zarr"])
def test_lerobot_reads_what_we_convert(shared: Path, tmp_path: Path, name: str) -> None:
    if name == "zarr":
        convert(shared / "pusht/pusht_cchi_v7_replay.zarr.zip", tmp_path / "set", episodes=[0, 5, 205])
    else:
        convert(shared / "lerobot/datasets" / name / "dataset", tmp_path / "set")
    check_equal(tmp_path / "set", tmp_path / "items.safetensors", "observation.image", 1)


def check_actions(policy: DiffusionPolicy, batch: dict[str, torch.Tensor], folder: Path) -> None:
    """Our chunk against LeRobot's, from what we wrote for it."""
    save_lerobot(policy, folder / "policy")
    noise = torch.randn(3, policy.config.horizon, *policy.config.output_features["action"].shape)
    ours = policy.predict_action_chunk(batch, noise)
    floats = {name: values.float() / 255 if values.dtype == torch.uint8 else values for name, values in batch.items()}
    save_file(floats | {"noise": noise}, folder / "batch.safetensors")
    lerobot("act", folder / "policy", folder / "batch.safetensors", folder / "chunk.safetensors")
    theirs = load_file(folder / "chunk.safetensors")["chunk"]
    extent = torch.as_tensor(policy.statistics["action"]["max"] - policy.statistics["action"]["min"])
    assert ours.shape == theirs.shape
    assert ((ours - theirs).abs() / extent).max() <= 1e-4
    again = load_policy(folder / "policy").predict_action_chunk(batch, noise)
    assert ((ours - again).abs() / extent).max() <= 1e-6


@pytest.mark.parametrize("cameras", [1, 2])
@pytest.mark.parametrize("group_norm", [True, False])
def test_lerobot_acts_with_our_image_policies(tmp_path: Path, cameras: int, group_norm: bool) -> None:
    config = dataclasses.replace(
        small_config(cameras=cameras, environment=5, use_group_norm=group_norm),
        backbone_width=64,
        backbone_stages=4,
        resize_shape=(64, 72),
        crop_ratio=0.9,
        noise_scheduler_type="DDIM",
        prediction_type="sample",
        num_inference_steps=4,
    )
    check_actions(small_policy(config).eval(), observation(small_batch(config)), tmp_path)


def test_lerobot_acts_with_the_policy_that_ships(tmp_path: Path) -> None:
    torch.manual_seed(0)
    batch = {
        "observation.state": 512 * torch.rand(3, 2, 2),
        "observation.environment_state": 512 * torch.rand(3, 2, 16),
    }
    check_actions(load_policy("pusht-keypoints-small").with_sampler("DDIM"), batch, tmp_path)
