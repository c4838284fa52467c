"""Policies written for LeRobot: its own files come out byte for byte, and its arithmetic gives our actions."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from visuomotor.config import DiffusionConfig, Feature
from visuomotor.errors import CheckpointError
from visuomotor.policy import checkpoint
from visuomotor.policy.checkpoint import load_policy, read_config
from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.policy.lerobot import OURS_ALONE, SHARED
from visuomotor.policy.lerobot_export import FILES, STATE_AFTER, STATE_BEFORE, save_lerobot

from .lerobot_folders import (
    AFTER,
    BEFORE,
    CONFIG,
    LEGACY,
    WEIGHTS,
    WITH_PROCESSORS,
    actions,
    make_fixture,
    part,
    reference,
    small,
)
from .small import observation, small_batch, small_config, small_policy, small_statistics

Statistics = dict[str, dict[str, np.ndarray]]


def content(path: Path) -> Any:
    return json.loads(path.read_text())


# LeRobot's own policies


@pytest.mark.parametrize("name", WITH_PROCESSORS)
def test_lerobots_files_come_out_as_they_went_in(shared: Path, tmp_path: Path, name: str) -> None:
    source = make_fixture(shared / "lerobot" / "policies" / name, tmp_path / "in")
    save_lerobot(load_policy(source), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES)
    for file in set(FILES) - {WEIGHTS}:
        assert (tmp_path / "out" / file).read_bytes() == (source / file).read_bytes(), file
    weights, expected = (load_file(folder / WEIGHTS) for folder in (tmp_path / "out", source))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[tensor], expected[tensor]) for tensor in expected)
    if name == "state":  # whose weights LeRobot itself wrote
        assert (tmp_path / "out" / WEIGHTS).read_bytes() == (source / WEIGHTS).read_bytes()


@pytest.mark.parametrize(("name", "generation"), LEGACY)
def test_old_ones_become_new_ones(shared: Path, tmp_path: Path, name: str, generation: str) -> None:
    source = shared / "lerobot" / "policies" / name
    old = load_policy(make_fixture(source, tmp_path / "old", generation))
    save_lerobot(old, tmp_path / "new")
    new = load_policy(tmp_path / "new")
    assert new.config == old.config
    tensors = reference(source)
    arguments = part(tensors, "raw."), tensors["in.init_noise"]
    assert torch.equal(new.predict_action_chunk(*arguments), old.predict_action_chunk(*arguments))


# Ours


VARIANTS = {
    "state": small_config(environment=4),
    "sample, linear, DDIM": small_config(
        environment=4, prediction_type="sample", beta_schedule="linear", noise_scheduler_type="DDIM"
    ),
    "cameras": small_config(cameras=2, backbone_width=64, backbone_stages=4, use_separate_rgb_encoder_per_camera=True),
    "batch norm, resized": small_config(
        cameras=1,
        backbone_width=64,
        backbone_stages=4,
        use_group_norm=False,
        pretrained_backbone_weights="timm/resnet18.tv_in1k",
        resize_shape=(40, 48),
        crop_ratio=0.75,
    ),
    "a narrow trunk that no camera uses": small_config(environment=4, backbone_width=32, backbone_stages=2),
}


def untrained(config: DiffusionConfig) -> DiffusionPolicy:
    torch.manual_seed(0)
    return DiffusionPolicy(config, small_statistics(config), pretrained=False).eval()


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_what_is_written_acts_the_same(tmp_path: Path, config: DiffusionConfig) -> None:
    policy = untrained(config)
    save_lerobot(policy, tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert torch.equal(actions(loaded), actions(policy))
    same = {name: getattr(config, name) for name in SHARED if name != "crop_shape"}
    assert {name: getattr(loaded.config, name) for name in same} == same
    assert loaded.config.crop == config.crop


def test_shapes_that_follow_from_others_are_written_out(tmp_path: Path) -> None:
    """LeRobot works them out when it reads its config, and writes them."""
    save_lerobot(untrained(VARIANTS["batch norm, resized"]), tmp_path / "policy")
    written = content(tmp_path / "policy" / CONFIG)
    assert written["crop_shape"] == [30, 36]
    assert written["pretrained_backbone_weights"] == "ResNet18_Weights.IMAGENET1K_V1"


@pytest.mark.parametrize("weights", ["timm/resnet18.a1_in1k", "weights.safetensors"])
def test_pretrained_weights_that_lerobot_cannot_fetch_are_not_named(tmp_path: Path, weights: str) -> None:
    policy = untrained(dataclasses.replace(VARIANTS["batch norm, resized"], pretrained_backbone_weights=weights))
    save_lerobot(policy, tmp_path / "policy")
    assert content(tmp_path / "policy" / CONFIG)["pretrained_backbone_weights"] is None


def test_every_field_of_ours_is_written_or_refused(tmp_path: Path) -> None:
    save_lerobot(small(), tmp_path / "policy")
    written = content(tmp_path / "policy" / CONFIG)
    fields = {spec.name for spec in dataclasses.fields(DiffusionConfig)}
    assert fields - written.keys() == set(OURS_ALONE)
    assert read_config(tmp_path / "policy") == dataclasses.replace(small().config, backbone_width=64, backbone_stages=4)


# LeRobot's arithmetic, as its processors do it in float32


def lerobot_normalise(values: np.ndarray, statistics: dict[str, np.ndarray], mode: str) -> np.ndarray:
    if mode == "MEAN_STD":
        return (values - statistics["mean"]) / (statistics["std"] + np.float32(1e-8))
    if mode == "MIN_MAX":
        size = statistics["max"] - statistics["min"]
        return 2 * (values - statistics["min"]) / np.where(size == 0, np.float32(1e-8), size) - 1
    return values


def lerobot_unnormalise(values: np.ndarray, statistics: dict[str, np.ndarray], mode: str) -> np.ndarray:
    if mode == "MEAN_STD":
        return values * statistics["std"] + statistics["mean"]
    if mode == "MIN_MAX":
        size = statistics["max"] - statistics["min"]
        return (values + 1) / 2 * np.where(size == 0, np.float32(1e-8), size) + statistics["min"]
    return values


def read_processor(folder: Path, file: str) -> tuple[dict[str, str], Statistics]:
    """Modes by feature and statistics of the one normalizer in a processor."""
    step = next(step for step in content(folder / file)["steps"] if "state_file" in step)
    options, statistics = step["config"], {}
    for name, tensor in load_file(folder / step["state_file"]).items():
        assert tensor.dtype == torch.float32
        feature, _, key = name.rpartition(".")
        statistics.setdefault(feature, {})[key] = tensor.numpy()
    modes = {name: options["norm_map"].get(f["type"], "IDENTITY") for name, f in options["features"].items()}
    return modes, statistics


def lerobot_actions(folder: Path, policy: DiffusionPolicy, seen: dict[str, Tensor], noise: Tensor) -> np.ndarray:
    """LeRobot's preprocessor, the network (equal to LeRobot's by other tests), LeRobot's postprocessor."""
    modes, statistics = read_processor(folder, BEFORE)
    inputs = {
        name: torch.from_numpy(lerobot_normalise(values.numpy(), statistics.get(name, {}), modes[name]))
        for name, values in seen.items()
    }
    chunk = policy.sample(policy.diffusion.global_cond(inputs), noise).numpy()
    start = policy.config.n_obs_steps - 1
    modes, statistics = read_processor(folder, AFTER)
    chunk = chunk[:, start : start + policy.config.n_action_steps]
    return lerobot_unnormalise(chunk, statistics["action"], modes["action"])


@torch.no_grad()
@pytest.mark.parametrize("stray", [0.0, 0.25])
@pytest.mark.parametrize("constant", [None, 0.0, 7.0, -0.3])
@pytest.mark.parametrize("mode", ["MIN_MAX", "MEAN_STD"])
def test_lerobots_arithmetic_gives_our_actions(tmp_path: Path, mode: Any, constant: float | None, stray: float) -> None:
    """With dimensions that never changed too, and observations that stray from them."""
    config = small_config(
        environment=4,
        noise_scheduler_type="DDIM",
        num_inference_steps=4,
        normalization_mapping={"STATE": mode, "ENV": mode, "ACTION": mode},
    )
    statistics, seen = small_statistics(config), observation(small_batch(config))
    if constant is not None:
        for name in statistics:
            for key in statistics[name]:
                statistics[name][key][1] = 0 if key == "std" else constant
        for values in seen.values():
            values[..., 1] = constant + stray
    policy = DiffusionPolicy(config, statistics).eval()
    save_lerobot(policy, tmp_path / "policy")
    noise = torch.randn(3, 8, 3, generator=torch.Generator().manual_seed(0))
    expected = policy.predict_action_chunk(seen, noise).numpy()
    found = lerobot_actions(tmp_path / "policy", policy, seen, noise)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    if constant is not None:
        assert (expected[..., 1] == np.float32(constant)).all()  # whatever the network says, in both


# Refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"cameras": 1, "backbone_stages": 4},
            "backbone_width, for LeRobot: expected 64, got 16; LeRobot has no",
        ),
        (
            {"cameras": 1, "backbone_width": 64},
            "backbone_stages, for LeRobot: expected 4, got 2; LeRobot has no",
        ),
        (
            {"environment": 4, "state": 0},
            "input_features, for LeRobot: expected observation.state among them, got ['observation.environment_state']",
        ),
        (
            {},
            "input_features, for LeRobot: expected a camera or observation.environment_state among them, got ['observa",
        ),
        (
            {"environment": 4, "prediction_type": "v_prediction"},
            "prediction_type, for LeRobot: expected one of ['epsilon', 'sample'], got v_prediction; LeRobot has",
        ),
        (
            {"environment": 4, "prediction_type": "sample", "noise_scheduler_type": "FlowMatchEuler"},
            "noise_scheduler_type, for LeRobot: expected one of ['DDPM', 'DDIM'], got FlowMatchEuler; LeRobot has no",
        ),
        (
            {"environment": 4, "noise_scheduler_type": "DPMSolverMultistep"},
            "noise_scheduler_type, for LeRobot: expected one of ['DDPM', 'DDIM'], got DPMSolverMultistep; the weights "
            "are the same however they act: choose what it knows by policy.with_sampler(...)",
        ),
        (
            {"environment": 4, "noise_scheduler_type": "DDIM", "ddim_eta": 0.5},
            "ddim_eta, for LeRobot: expected 0, got 0.5; the weights are the same",
        ),
        (
            {"environment": 4, "warm_start": 0.5},
            "warm_start, for LeRobot: expected 1, got 0.5; the weights are the same",
        ),
        (
            {"environment": 4, "denoiser": "transformer"},
            "denoiser, for LeRobot: expected unet, got transformer; LeRobot has no such policy: keep it in",
        ),
        (
            {
                "backbone_width": 64,
                "backbone_stages": 4,
                "resize_shape": (32, 32),
                "input_features": {
                    "observation.state": Feature("STATE", (2,)),
                    "observation.images.a": Feature("VISUAL", (3, 32, 40)),
                    "observation.images.b": Feature("VISUAL", (3, 64, 40)),
                },
            },
            "input_features, for LeRobot: expected cameras of one shape, got [(3, 32, 40), (3, 64, 40)]; LeRobot",
        ),
    ],
)
def test_what_lerobot_cannot_express_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    policy = small_policy(small_config(**changes))
    with pytest.raises(CheckpointError) as caught:
        save_lerobot(policy, tmp_path / "policy")
    assert str(caught.value).startswith(message)
    assert not (tmp_path / "policy").exists()


@pytest.mark.parametrize("name", ["vision_backbone", "noise_scheduler_type", "beta_schedule", "prediction_type"])
def test_choices_that_only_we_may_come_to_have_are_named(tmp_path: Path, name: str) -> None:
    policy = small()
    object.__setattr__(policy.config, name, "new")  # frozen, and checked when it is made
    with pytest.raises(CheckpointError, match=rf"^{name}, for LeRobot: expected one of \['\w+', '\w+'\], got new; "):
        save_lerobot(policy, tmp_path / "policy")


def test_the_shipped_policy_of_key_points_can_go_and_that_of_images_cannot(tmp_path: Path) -> None:
    save_lerobot(load_policy("pusht-keypoints-small").with_sampler("DDIM"), tmp_path / "keypoints")
    assert read_config(tmp_path / "keypoints").noise_scheduler_type == "DDIM"
    with pytest.raises(CheckpointError, match=r"^backbone_width, for LeRobot: expected 64, got 32; "):
        save_lerobot(load_policy("pusht-image-small").with_sampler("DDIM"), tmp_path / "image")


def test_an_earlier_one_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "policy"
    for seed in (0, 1):
        policy = small_policy(small_config(environment=4), seed)
        save_lerobot(policy, target)
        assert torch.equal(actions(load_policy(target)), actions(policy.eval()))
    (target / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="policy: expected a new folder or an earlier policy for LeRobot, got "):
        save_lerobot(small(), target)
    assert (target / "notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="file: expected a new folder or an earlier policy for LeRobot, got "):
        save_lerobot(small(), tmp_path / "file")


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    with pytest.raises(OSError, match="no space left"):
        save_lerobot(small(), tmp_path / "policy")
    assert list(tmp_path.iterdir()) == []


def test_a_policy_in_double_precision_is_written_in_single_and_stays_as_it_is(tmp_path: Path) -> None:
    policy = small().double()
    save_lerobot(policy, tmp_path / "policy")
    assert {tensor.dtype for tensor in load_file(tmp_path / "policy" / WEIGHTS).values()} == {torch.float32}
    assert {tensor.dtype for tensor in policy.state_dict().values()} == {torch.float64}


def test_statistics_that_we_alone_need_come_along(tmp_path: Path) -> None:
    policy = small()
    statistics = {name: dict(values) | {"count": np.array([420])} for name, values in policy.statistics.items()}
    policy.statistics = statistics
    save_lerobot(policy, tmp_path / "policy")
    for file in (STATE_BEFORE, STATE_AFTER):
        assert load_file(tmp_path / "policy" / file)["action.count"].tolist() == [420.0]
    assert load_policy(tmp_path / "policy").statistics["action"]["count"] == 420
