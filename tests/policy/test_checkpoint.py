"""Policies on disk: what is written comes back, and anything else is answered with one clear error."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from visuomotor.config import DiffusionConfig
from visuomotor.errors import CheckpointError, ConfigError
from visuomotor.policy import checkpoint
from visuomotor.policy.checkpoint import load_policy, newest_checkpoint, save_policy
from visuomotor.policy.diffusion import DiffusionPolicy

from .small import observation, small_batch, small_config, small_policy

CONFIGS = {
    "state": small_config(environment=4),
    "image": small_config(cameras=1, use_group_norm=False),
    "every kind of value": small_config(
        cameras=2,
        use_separate_rgb_encoder_per_camera=True,
        resize_shape=(30, 30),
        crop_ratio=0.9,
        crop_shape=None,
        num_inference_steps=7,
        beta_start=1e-5 / 3,
        noise_scheduler_type="DDIM",
        normalization_mapping={"VISUAL": "IDENTITY", "STATE": "MEAN_STD"},
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved policy that the test may damage."""
    target = tmp_path / "policy"
    save_policy(small_policy(small_config()).eval(), target)
    return target


def acts_alike(first: DiffusionPolicy, second: DiffusionPolicy) -> bool:
    seen = observation(small_batch(first.config))
    noise = torch.randn(first.noise_draws(), 3, 8, 3, generator=torch.Generator().manual_seed(0))
    return torch.equal(first.predict_action_chunk(seen, noise), second.predict_action_chunk(seen, noise))


# Round trips


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_round_trip_is_exact(config: DiffusionConfig, tmp_path: Path) -> None:
    policy = small_policy(config)
    save_policy(policy, tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert loaded.config == config
    assert not loaded.training
    own, found = policy.state_dict(), loaded.state_dict()
    assert own.keys() == found.keys()
    for name, tensor in own.items():
        assert tensor.dtype == found[name].dtype
        assert torch.equal(tensor, found[name]), name
    assert acts_alike(policy.eval(), loaded)


def test_three_files_and_no_other(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "statistics.json"]
    assert [path.name for path in folder.parent.iterdir()] == ["policy"]  # no draft beside it
    assert json.loads((folder / "config.json").read_text())["format_version"] == 1


def test_saved_twice_is_the_same_bytes(tmp_path: Path) -> None:
    policy = small_policy(CONFIGS["image"])
    for name in ("a", "b"):
        save_policy(policy, tmp_path / name)
    save_policy(load_policy(tmp_path / "a"), tmp_path / "c")
    for name in ("config.json", "model.safetensors", "statistics.json"):
        assert len({(tmp_path / copy / name).read_bytes() for copy in "abc"}) == 1


def test_half_precision(tmp_path: Path) -> None:
    policy = small_policy(CONFIGS["image"]).eval()
    save_policy(policy, tmp_path / "whole")
    save_policy(policy, tmp_path / "half", dtype=torch.float16)
    size = {name: (tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half")}
    assert size["half"] < 0.65 * size["whole"]
    loaded = load_policy(tmp_path / "half").state_dict()
    for name, tensor in policy.state_dict().items():
        assert loaded[name].dtype == tensor.dtype  # float32 again; counters stay integers
        expected = tensor.half().float() if tensor.is_floating_point() else tensor
        assert torch.equal(loaded[name], expected)
    # What was rounded once is not rounded again.
    save_policy(load_policy(tmp_path / "half"), tmp_path / "again", dtype=torch.float16)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("half", "again")]
    assert files[0] == files[1]


def test_a_policy_is_replaced_whole(folder: Path) -> None:
    other = small_policy(CONFIGS["image"]).eval()
    save_policy(other, folder)
    assert acts_alike(load_policy(folder), other)
    assert [path.name for path in folder.parent.iterdir()] == ["policy"]


def test_a_failed_save_leaves_the_old_policy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / "model.safetensors").read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    with pytest.raises(OSError, match="no space left"):
        save_policy(small_policy(small_config(), seed=1), folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert [path.name for path in folder.parent.iterdir()] == ["policy"]


def test_another_sampler_is_saved_with_the_policy(folder: Path) -> None:
    policy = load_policy(folder).with_sampler("DDIM", 5, 6)
    save_policy(policy, folder)
    assert load_policy(folder).config == policy.config


# Pretrained weights are for the beginning of training only


def test_a_trained_policy_does_not_ask_for_its_pretrained_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    config = small_config(
        cameras=1,
        backbone_width=64,
        backbone_stages=4,
        use_group_norm=False,
        pretrained_backbone_weights="timm/resnet18.tv_in1k",
    )
    with pytest.raises(CheckpointError, match=r"pretrained_backbone_weights timm/resnet18.tv_in1k: expected weights"):
        small_policy(config)
    plain = small_config(cameras=1, backbone_width=64, backbone_stages=4, use_group_norm=False)
    policy = small_policy(plain).eval()
    policy.config = config
    save_policy(policy, tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert loaded.config == config
    assert acts_alike(loaded, policy)


# Damage


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def rename_tensor(folder: Path) -> None:
    weights = weights_of(folder)
    weights["diffusion.unet.final_conv.2.bias"] = weights.pop("diffusion.unet.final_conv.1.bias")
    save_file(weights, folder / "model.safetensors")


def extra_tensor(folder: Path) -> None:
    save_file(weights_of(folder) | {"diffusion.more": torch.zeros(1)}, folder / "model.safetensors")


def misshapen_tensor(folder: Path) -> None:
    weights = weights_of(folder)
    weights["diffusion.unet.final_conv.1.bias"] = torch.zeros(4)
    save_file(weights, folder / "model.safetensors")


def truncate(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return damage


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def change_config(**changes: Any) -> Callable[[Path], None]:
    """Changes the policy's config, or `format_version`."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        for name, value in changes.items():
            (content if name == "format_version" else content["policy"])[name] = value
        (folder / "config.json").write_text(json.dumps(content))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate("model.safetensors"), "model.safetensors: expected safetensors, got "),
        (write("model.safetensors", b""), "model.safetensors: expected safetensors, got "),
        (
            rename_tensor,
            "model.safetensors: diffusion.unet.final_conv.1.bias: expected a tensor, got none; config.json",
        ),
        (extra_tensor, "model.safetensors: diffusion.more: expected no such tensor, got one; config.json and weights"),
        (misshapen_tensor, "diffusion.unet.final_conv.1.bias: expected (3,), got (4,); config.json differs"),
        (change_config(down_dims=[16, 48]), "; config.json differs"),
        (change_config(down_dims=[16, 32, 32]), ": expected a tensor, got none; config.json and weights do not match"),
        (truncate("config.json"), "config.json: expected JSON, got "),
        (write("config.json", b"\xff\xfe"), "config.json: expected JSON, got "),
        (write("config.json", "[1, 2]"), "config.json: format_version: expected 1, got None; "),
        (write("config.json", "{}"), "config.json: format_version: expected 1, got None; "),
        (change_config(format_version=2), "config.json: format_version: expected 1, got 2; "),
        (truncate("statistics.json"), "statistics.json: expected JSON, got "),
        (write("statistics.json", "[]"), "statistics.json: expected numbers by feature and statistic, got "),
        (write("statistics.json", '{"action": 3}'), "statistics.json: expected numbers by feature and statistic, got "),
        (write("statistics.json", '{"action": {"min": "low"}}'), "statistics.json: expected numbers by feature and "),
        (
            write("statistics.json", "{}"),
            "statistics of observation.state: min: expected numbers of shape (2,), got {}",
        ),
        (
            write("statistics.json", '{"observation.state": {"min": [0, NaN], "max": [1, 1]}}'),
            "statistics of observation.state: min: expected finite numbers of (2,), got [0.0, nan]; ",
        ),
    ],
)
def test_damage(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        load_policy(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"horizn": 8}, "horizn: expected a known field, got an unknown one; did you mean horizon?"),
        ({"prediction_type": "epsilom"}, "prediction_type: expected "),
        ({"horizon": 9}, "horizon: expected a multiple of 4 = "),
        ({"horizon": "long"}, "horizon: expected "),
    ],
)
def test_a_config_that_was_edited_wrongly(folder: Path, changes: dict[str, Any], message: str) -> None:
    change_config(**changes)(folder)
    with pytest.raises(ConfigError) as caught:
        load_policy(folder)
    assert str(caught.value).startswith(f"{folder}/config.json: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "statistics.json"])
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError) as caught:
        load_policy(folder)
    message = str(caught.value)
    assert message.startswith(str(folder))
    assert name in message
    assert "expected" in message and "got" in message


class Trap:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_refused_and_never_opened(folder: Path, tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    (folder / "model.safetensors").write_bytes(pickle.dumps({"weights": Trap(trap)}))
    with pytest.raises(CheckpointError, match=r"model.safetensors: expected safetensors, got "):
        load_policy(folder)
    torch.save({"weights": Trap(trap)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model.safetensors: expected safetensors, got "):
        load_policy(folder)
    assert not trap.exists()
    pickle.loads(pickle.dumps(Trap(trap)))
    assert trap.exists()  # the trap works


# Where a policy is looked for


def test_a_run_gives_its_newest_checkpoint(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert newest_checkpoint(run) is None
    for step in ("000050", "000100", "999950", "1000000"):
        shutil.copytree(folder, run / "checkpoints" / f"step_{step}" / "policy")
    (run / "config.json").write_text("{}")  # a run's, not a policy's
    newest = small_policy(small_config(), seed=7).eval()
    save_policy(newest, run / "checkpoints" / "step_1000000" / "policy")
    assert newest_checkpoint(run) == run / "checkpoints" / "step_1000000"
    assert acts_alike(load_policy(run), newest)
    assert acts_alike(load_policy(str(run)), newest)


def test_a_checkpoint_that_was_never_finished_does_not_count(folder: Path, tmp_path: Path) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    shutil.copytree(folder, checkpoints / "step_000050" / "policy")
    shutil.copytree(folder, checkpoints / ".step_000100.0123abcd.tmp" / "policy")
    (checkpoints / "step_000150").mkdir()
    assert newest_checkpoint(tmp_path / "run") == checkpoints / "step_000050"


def test_a_run_without_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError) as caught:
        load_policy(tmp_path)
    expected = (
        f"{tmp_path}: expected config.json and model.safetensors, or checkpoints/, got ['config.json']; pass a policy"
    )
    assert str(caught.value).startswith(expected)


@pytest.fixture
def shipped(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two policies as if they shipped with the package."""
    assets = tmp_path / "assets"
    for name in ("pusht-keypoints-small", "pusht-image-small"):
        shutil.copytree(folder, assets / name)
    monkeypatch.setattr(checkpoint, "ASSETS", assets)
    return assets


def test_a_shipped_policy_by_its_name(shipped: Path, folder: Path) -> None:
    assert acts_alike(load_policy("pusht-image-small"), load_policy(folder))


def test_an_unknown_name_is_answered_with_the_nearest(shipped: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_policy("pusht-keypoint-smal")
    assert str(caught.value) == (
        "pusht-keypoint-smal: expected a policy's folder, a shipped policy or a hub name, got none; "
        "shipped policies are ['pusht-image-small', 'pusht-keypoints-small']; did you mean pusht-keypoints-small?"
    )


def test_a_folder_that_is_not_there(shipped: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"/nowhere: expected a policy's folder, a shipped policy or a hub name"):
        load_policy(tmp_path / "nowhere")


def test_a_hub_name_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        load_policy("somebody/diffusion_pusht")
    message = str(caught.value)
    assert message.startswith("somebody/diffusion_pusht: expected a folder here, or a policy on the hub, got ")
    assert message.endswith("; check the name and the network, or pass the path of a downloaded folder")
    assert "\n" not in message


def test_a_hub_policy(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    asked = []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options["allow_patterns"]))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert acts_alike(load_policy("somebody/diffusion_pusht"), load_policy(folder))
    assert asked == [("somebody/diffusion_pusht", ["*.json", "*.safetensors"])]  # and nothing that could be a pickle


def test_a_hub_policy_of_another_kind(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / "config.json").write_text('{"type": "act"}')
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folder))
    with pytest.raises(CheckpointError, match=r"config.json: type: expected diffusion, got .act.; only Diffusion"):
        load_policy("lerobot/act_aloha")
