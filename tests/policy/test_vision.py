"""Crop, ResNet and SpatialSoftmax against formulas written out here; LeRobot's own figures are in test_lerobot.py."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from visuomotor.config import DiffusionConfig, Feature
from visuomotor.errors import CheckpointError, ConfigError
from visuomotor.policy.vision import (
    RgbEncoder,
    SpatialSoftmax,
    _gather_crops,
    draw_offsets,
    load_pretrained,
    resize_and_crop,
    resnet_trunk,
)

from .small import small_batch, small_config, small_policy

BLOCKS = {"resnet18": [2, 2, 2, 2], "resnet34": [3, 4, 6, 3]}


# Crop and resize


def crop_config(**changes: Any) -> DiffusionConfig:
    return dataclasses.replace(DiffusionConfig(), **changes)


def numbered(size: int, steps: int, height: int, width: int) -> Tensor:
    """uint8 (B, N, 3, H, W) whose first two channels say where each pixel came from, the third which image it is."""
    images = torch.empty(size, steps, 3, height, width, dtype=torch.uint8)
    images[:, :, 0] = torch.arange(height, dtype=torch.uint8)[:, None]
    images[:, :, 1] = torch.arange(width, dtype=torch.uint8)
    images[:, :, 2] = torch.arange(size * steps, dtype=torch.uint8).reshape(size, steps, 1, 1)
    return images


@pytest.mark.parametrize(
    ("height", "width", "crop", "top", "left"),
    [
        (96, 96, (84, 84), 6, 6),
        (96, 128, (84, 84), 6, 22),
        (10, 12, (10, 12), 0, 0),
        (7, 5, (4, 4), 2, 0),  # half a pixel goes to the even side, as torchvision's center_crop rounds
        (9, 11, (4, 4), 2, 4),
    ],
)
def test_centre_crop(height: int, width: int, crop: tuple[int, int], top: int, left: int) -> None:
    images = numbered(2, 2, height, width)
    found = resize_and_crop(images, crop_config(crop_shape=crop))
    assert found.dtype == torch.uint8
    assert found.shape == (2, 2, 3, *crop)
    assert torch.equal(found, images[..., top : top + crop[0], left : left + crop[1]])


def test_random_crop() -> None:
    """Whole windows of the image, one offset a sample, the same for its frames, every offset reached."""
    images = numbered(40, 2, 8, 9)
    config = crop_config(crop_shape=(6, 5))
    generator = torch.Generator().manual_seed(0)
    offsets, samples = set(), []
    for _ in range(5):
        found = resize_and_crop(images, config, draw_offsets((8, 9), 40, config, generator))
        assert found.dtype == torch.uint8
        assert found.shape == (40, 2, 3, 6, 5)
        for i, sample in enumerate(found):
            top, left = int(sample[0, 0, 0, 0]), int(sample[0, 1, 0, 0])
            assert torch.equal(sample, images[i, :, :, top : top + 6, left : left + 5])
            offsets.add((top, left))
            samples.append((top, left))
    assert offsets == {(top, left) for top in range(3) for left in range(5)}
    tops = np.bincount([top for top, _ in samples]) / len(samples)
    assert np.abs(tops - 1 / 3).max() < 0.15  # 200 draws: more than four deviations
    assert len(set(samples[:40])) > 8  # within one batch


@pytest.mark.parametrize("order", ["channels last", "channels first"])
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_a_gather_cuts_the_same_crops(order: str, kind: torch.dtype) -> None:
    """As on a GPU, whose host must not ask for the offsets."""
    images, config = numbered(40, 2, 8, 9).to(kind), crop_config(crop_shape=(6, 5))
    if order == "channels last":
        images = images.movedim(2, -1).contiguous().movedim(-1, 2)
    offsets = draw_offsets((8, 9), 40, config, torch.Generator().manual_seed(0))
    found = _gather_crops(images, offsets, 6, 5)
    assert found.dtype == kind and found.movedim(2, -1).is_contiguous()  # channels last, as the encoder wants it
    assert torch.equal(found, resize_and_crop(images, config, offsets))


def test_random_crop_follows_its_generator() -> None:
    config = crop_config(crop_shape=(5, 5))
    runs = [draw_offsets((20, 20), 8, config, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert runs[0].shape == (8, 2)
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_no_crop() -> None:
    images = numbered(2, 1, 8, 8)
    config = crop_config(crop_shape=None)
    assert draw_offsets((8, 8), 2, config, torch.Generator()) is None
    assert resize_and_crop(images, config) is images


def triangle_resize(rows: np.ndarray, size: int) -> np.ndarray:
    """Antialiased linear interpolation along the first axis: a triangle as wide as the shrinking, cut at the border."""
    scale = max(len(rows) / size, 1.0)
    result = np.zeros((size, *rows.shape[1:]))
    for i in range(size):
        centre = (i + 0.5) * len(rows) / size
        share = np.maximum(0, 1 - np.abs(np.arange(len(rows)) + 0.5 - centre) / scale)
        result[i] = np.tensordot(share / share.sum(), rows, 1)
    return result


@pytest.mark.parametrize("shape", [(8, 10), (5, 7), (16, 20), (24, 15)])
def test_resize(shape: tuple[int, int]) -> None:
    images = torch.randint(256, (2, 2, 3, 16, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    config = crop_config(resize_shape=shape)
    found = resize_and_crop(images, config)
    rows = np.moveaxis(images.numpy() / 255.0, -2, 0)
    columns = np.moveaxis(triangle_resize(rows, shape[0]), -1, 0)  # (W, h, B, N, C)
    expected = np.transpose(triangle_resize(columns, shape[1]), (2, 3, 4, 1, 0))
    assert found.shape == (2, 2, 3, *shape)
    if shape == (16, 20):  # nothing to resize: bytes stay bytes, which the normaliser takes as [0, 1]
        assert found.dtype == torch.uint8
        found = found / 255
    assert np.abs(found.numpy() - expected).max() < 1e-5
    assert torch.allclose(resize_and_crop(images / 255, config), found)


def test_crop_ratio_cuts_what_was_resized() -> None:
    config = crop_config(resize_shape=(10, 20), crop_ratio=0.75, crop_shape=(84, 84))
    images = torch.rand(2, 1, 3, 16, 20, generator=torch.Generator().manual_seed(0))
    whole = resize_and_crop(images, crop_config(resize_shape=(10, 20)))
    found = resize_and_crop(images, config)
    assert torch.equal(found, whole[..., 2:9, 2:17])  # int(7.5) = 7 of 10 rows, 15 of 20 columns
    offsets = draw_offsets((16, 20), 2, config, torch.Generator().manual_seed(0))
    for sample, part, (top, left) in zip(
        whole, resize_and_crop(images, config, offsets), offsets.tolist(), strict=True
    ):
        assert torch.equal(part, sample[..., top : top + 7, left : left + 15])


# ResNet


def resnet_config(**changes: Any) -> DiffusionConfig:
    return small_config(cameras=1, crop_shape=None, **changes)


def formula(weights: dict[str, Tensor], config: DiffusionConfig, images: Tensor, training: bool = False) -> Tensor:
    """He et al. 2015, table 1 and figure 5, with torchvision's choice of padding, up to the stages that are kept."""

    def norm(name: str, x: Tensor) -> Tensor:
        if config.use_group_norm:
            grouped = x.unflatten(1, (-1, 16))
            mean, variance = grouped.mean((2, 3, 4), keepdim=True), grouped.var((2, 3, 4), keepdim=True, correction=0)
            x = ((grouped - mean) / (variance + 1e-5).sqrt()).flatten(1, 2)
        elif training:
            variance = x.var((0, 2, 3), keepdim=True, correction=0)
            x = (x - x.mean((0, 2, 3), keepdim=True)) / (variance + 1e-5).sqrt()
        else:
            mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
            x = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
        return x * weights[f"{name}.weight"][:, None, None] + weights[f"{name}.bias"][:, None, None]

    x = F.conv2d(images, weights["0.weight"], stride=2, padding=3)
    x = F.max_pool2d(norm("1", x).clamp(min=0), 3, stride=2, padding=1)
    for stage, blocks in enumerate(BLOCKS[config.vision_backbone][: config.backbone_stages]):
        for i in range(blocks):
            name, stride = f"{4 + stage}.{i}", 2 if stage > 0 and i == 0 else 1
            out = F.conv2d(x, weights[f"{name}.conv1.weight"], stride=stride, padding=1)
            out = F.conv2d(norm(f"{name}.bn1", out).clamp(min=0), weights[f"{name}.conv2.weight"], padding=1)
            if f"{name}.downsample.0.weight" in weights:
                x = F.conv2d(x, weights[f"{name}.downsample.0.weight"], stride=stride)
                x = norm(f"{name}.downsample.1", x)
            x = (norm(f"{name}.bn2", out) + x).clamp(min=0)
    return x


def random_trunk(config: DiffusionConfig) -> nn.Sequential:
    torch.manual_seed(0)
    trunk = resnet_trunk(config, 3)
    for name, tensor in trunk.state_dict().items():
        if tensor.dim() == 1:  # norms: away from 1 and 0, where an error would not show
            tensor.copy_(torch.rand_like(tensor) + (0.5 if name.endswith(("weight", "var")) else -0.5))
    return trunk


def images_for_trunk() -> Tensor:
    return torch.randn(3, 3, 70, 52, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("use_group_norm", [True, False], ids=["group", "batch"])
@pytest.mark.parametrize(
    ("backbone", "width", "stages", "shape"),
    [
        ("resnet18", 16, 4, (128, 3, 2)),
        ("resnet34", 16, 4, (128, 3, 2)),
        ("resnet18", 32, 3, (128, 5, 4)),
        ("resnet34", 16, 2, (32, 9, 7)),
        ("resnet18", 64, 1, (64, 18, 13)),
    ],
)
def test_trunk_by_its_formula(
    backbone: str, width: int, stages: int, shape: tuple[int, ...], use_group_norm: bool, training: bool
) -> None:
    config = resnet_config(
        vision_backbone=backbone, backbone_width=width, backbone_stages=stages, use_group_norm=use_group_norm
    )
    trunk = random_trunk(config).train(training)
    weights = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    found = trunk(images_for_trunk())
    expected = formula(weights, config, images_for_trunk(), training)
    assert found.shape == (3, *shape)
    assert (found - expected).abs().max() <= 1e-5 * max(1, expected.abs().max().item())


def test_batch_norm_keeps_running_statistics() -> None:
    trunk = random_trunk(resnet_config(use_group_norm=False)).train()
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    x = F.conv2d(images_for_trunk(), before["0.weight"], stride=2, padding=3)
    trunk(images_for_trunk())
    after = trunk.state_dict()
    assert torch.allclose(after["1.running_mean"], 0.9 * before["1.running_mean"] + 0.1 * x.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(after["1.running_var"], 0.9 * before["1.running_var"] + 0.1 * x.var((0, 2, 3)), atol=1e-5)
    assert after["1.num_batches_tracked"] == 1


@pytest.mark.parametrize(("backbone", "count"), [("resnet18", 11_176_512), ("resnet34", 21_284_672)])
def test_the_paper_s_networks_have_the_known_number_of_weights(backbone: str, count: int) -> None:
    """torchvision's 11,689,512 and 21,797,672 less the classifier's 513,000."""
    config = resnet_config(vision_backbone=backbone, backbone_width=64, backbone_stages=4)
    assert sum(p.numel() for p in resnet_trunk(config, 3).parameters()) == count


def test_initial_weights() -> None:
    """He et al. 2015b: convolutions normal with variance 2 / fan-out; norms 1 and 0."""
    torch.manual_seed(0)
    trunk = resnet_trunk(resnet_config(backbone_width=64, backbone_stages=4), 3)
    for name, parameter in trunk.named_parameters():
        if parameter.dim() == 4:
            deviation = (2 / (parameter.shape[0] * parameter.shape[2] * parameter.shape[3])) ** 0.5
            assert parameter.std().item() == pytest.approx(deviation, rel=0.03)
        else:
            assert (parameter == (1 if name.endswith("weight") else 0)).all()


def test_group_norm_has_sixteen_channels_a_group() -> None:
    trunk = resnet_trunk(resnet_config(backbone_width=32), 3)
    groups = [(norm.num_channels, norm.num_groups) for norm in trunk.modules() if isinstance(norm, nn.GroupNorm)]
    assert set(groups) == {(32, 2), (64, 4)}
    assert not any(isinstance(module, nn.BatchNorm2d) for module in trunk.modules())


# SpatialSoftmax and the whole encoder


def test_spatial_softmax_by_its_formula() -> None:
    pool = SpatialSoftmax((6, 3, 5), 4)
    features = torch.randn(2, 6, 3, 5, generator=torch.Generator().manual_seed(0)) * 3
    found = pool(features).detach().numpy()
    weight, bias = (tensor.detach().numpy() for tensor in pool.nets.parameters())
    weight = weight[:, :, 0, 0]
    for b in range(2):
        for k in range(4):
            scores = np.exp(np.tensordot(weight[k], features[b].numpy(), 1) + bias[k])
            scores /= scores.sum()
            x = sum(scores[i, j] * (-1 + 2 * j / 4) for i in range(3) for j in range(5))
            y = sum(scores[i, j] * (-1 + 2 * i / 2) for i in range(3) for j in range(5))
            assert found[b, k] == pytest.approx([x, y], abs=1e-5)


def test_a_bright_corner_is_found_there() -> None:
    pool = SpatialSoftmax((1, 4, 6), 1)
    nn.init.constant_(pool.nets.weight, 1.0)
    features = torch.zeros(1, 1, 4, 6)
    features[0, 0, 0, 5] = 100  # the upper right
    assert pool(features).flatten().tolist() == pytest.approx([1, -1], abs=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"crop_shape": (84, 84), "backbone_stages": 4},
        {"crop_shape": (65, 33), "backbone_stages": 3},
        {"crop_shape": None, "backbone_stages": 2},
        {"resize_shape": (50, 71), "crop_ratio": 0.9, "backbone_stages": 1},
        {"resize_shape": (50, 71), "backbone_stages": 4},
    ],
    ids=str,
)
def test_encoder_knows_the_size_of_its_maps(changes: dict[str, Any]) -> None:
    features = {"observation.image": Feature("VISUAL", (3, 97, 90))}
    config = dataclasses.replace(small_config(), input_features=features, **changes)
    encoder = RgbEncoder(config)
    images = resize_and_crop(torch.rand(2, 1, 3, 97, 90), config).flatten(0, 1)
    maps = encoder.backbone(images)
    assert maps.shape[-2] * maps.shape[-1] == len(encoder.pool.pos_grid)
    found = encoder(images)
    assert found.shape == (2, encoder.feature_dim) == (2, 8)
    expected = F.linear(encoder.pool(maps).flatten(1), encoder.out.weight, encoder.out.bias).clamp(min=0)
    assert torch.allclose(found, expected, atol=1e-6)


# Several cameras


def prepared(config: DiffusionConfig) -> dict[str, Tensor]:
    batch = small_batch(config)
    return {
        name: resize_and_crop(batch[name], config) / 255 if f.type == "VISUAL" else batch[name]
        for name, f in config.input_features.items()
    }


@torch.no_grad()
@pytest.mark.parametrize("separate", [False, True], ids=["shared", "separate"])
def test_condition_lists_state_cameras_environment_of_each_step(separate: bool) -> None:
    config = small_config(cameras=3, environment=4, use_separate_rgb_encoder_per_camera=separate)
    model = small_policy(config).eval().diffusion
    observation = prepared(config)
    found = model.global_cond(observation)
    numbers = []
    for step in range(2):
        numbers.append(observation["observation.state"][:, step])
        for i, camera in enumerate("abc"):
            encoder = model.rgb_encoder[i] if isinstance(model.rgb_encoder, nn.ModuleList) else model.rgb_encoder
            numbers.append(encoder(observation[f"observation.images.{camera}"][:, step]))
        numbers.append(observation["observation.environment_state"][:, step])
    assert found.shape == (3, 2 * (2 + 3 * 8 + 4))
    assert torch.allclose(found, torch.cat(numbers, 1), atol=1e-5)
    assert isinstance(model.rgb_encoder, nn.ModuleList) == separate


def test_a_shared_encoder_sees_batch_step_camera_in_that_order() -> None:
    """BatchNorm's statistics are over all cameras together, in one pass."""
    config = small_config(cameras=2, use_group_norm=False)
    model = small_policy(config).train().diffusion
    observation = prepared(config)
    seen = []
    model.rgb_encoder.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].clone()))
    model.global_cond(observation)
    expected = [observation[f"observation.images.{c}"][b, t] for b in range(3) for t in range(2) for c in "ab"]
    assert len(seen) == 1
    assert torch.equal(seen[0], torch.stack(expected))


def test_separate_encoders_start_different() -> None:
    model = small_policy(small_config(cameras=2, use_separate_rgb_encoder_per_camera=True)).diffusion
    first, second = (module.out.weight for module in model.modules() if isinstance(module, RgbEncoder))
    assert not torch.equal(first, second)


# Pretrained weights


def torchvision_weights(backbone: str = "resnet18") -> dict[str, Tensor]:
    """ImageNet weights as timm and torchvision name them, made up."""
    generator = torch.Generator().manual_seed(0)
    weights = {"conv1.weight": torch.randn(64, 3, 7, 7, generator=generator)}

    def norm(name: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            weights[f"{name}.{part}"] = torch.rand(channels, generator=generator)
        weights[f"{name}.num_batches_tracked"] = torch.tensor(7)

    norm("bn1", 64)
    size = 64
    for stage, count in enumerate(BLOCKS[backbone], start=1):
        wide = 64 * 2 ** (stage - 1)
        for i in range(count):
            name = f"layer{stage}.{i}"
            weights[f"{name}.conv1.weight"] = torch.randn(wide, size, 3, 3, generator=generator)
            weights[f"{name}.conv2.weight"] = torch.randn(wide, wide, 3, 3, generator=generator)
            norm(f"{name}.bn1", wide)
            norm(f"{name}.bn2", wide)
            if size != wide:
                weights[f"{name}.downsample.0.weight"] = torch.randn(wide, size, 1, 1, generator=generator)
                norm(f"{name}.downsample.1", wide)
            size = wide
    weights["fc.weight"], weights["fc.bias"] = torch.zeros(1000, 512), torch.zeros(1000)
    return weights


def pretrained_config(backbone: str = "resnet18") -> DiffusionConfig:
    return resnet_config(vision_backbone=backbone, backbone_width=64, backbone_stages=4, use_group_norm=False)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet34"])
def test_pretrained_weights_from_a_file(tmp_path: Path, backbone: str) -> None:
    weights = torchvision_weights(backbone)
    save_file(weights, tmp_path / "weights.safetensors")
    trunk = resnet_trunk(pretrained_config(backbone), 3)
    load_pretrained(trunk, str(tmp_path / "weights.safetensors"))
    loaded = trunk.state_dict()
    assert len(loaded) == len(weights) - 2  # all but the classifier
    assert torch.equal(loaded["0.weight"], weights["conv1.weight"])
    assert torch.equal(loaded["1.running_var"], weights["bn1.running_var"])
    assert torch.equal(loaded["5.0.downsample.1.bias"], weights["layer2.0.downsample.1.bias"])
    assert torch.equal(loaded["7.1.conv2.weight"], weights["layer4.1.conv2.weight"])


def test_every_camera_s_encoder_starts_from_the_pretrained_weights(tmp_path: Path) -> None:
    weights, path = torchvision_weights(), tmp_path / "weights.safetensors"
    save_file(weights, path)
    pretrained: dict[str, Any] = {"backbone_width": 64, "backbone_stages": 4, "pretrained_backbone_weights": str(path)}
    config = small_config(2, use_group_norm=False, use_separate_rgb_encoder_per_camera=True, **pretrained)
    encoders = [module for module in small_policy(config).modules() if isinstance(module, RgbEncoder)]
    assert len(encoders) == 2
    for encoder in encoders:
        assert torch.equal(encoder.backbone.state_dict()["4.0.conv1.weight"], weights["layer1.0.conv1.weight"])


def test_pretrained_weights_go_with_batch_norm_only() -> None:
    with pytest.raises(
        ConfigError, match="use_group_norm: expected False with pretrained_backbone_weights, got True; "
    ):
        DiffusionConfig(pretrained_backbone_weights="timm/resnet18.tv_in1k")


def test_pretrained_weights_without_counters(tmp_path: Path) -> None:
    """torchvision's own files know no `num_batches_tracked`."""
    weights = {n: t for n, t in torchvision_weights().items() if not n.endswith("num_batches_tracked")}
    save_file(weights, tmp_path / "weights.safetensors")
    trunk = resnet_trunk(pretrained_config(), 3)
    load_pretrained(trunk, str(tmp_path / "weights.safetensors"))
    assert torch.equal(trunk.state_dict()["7.1.conv2.weight"], weights["layer4.1.conv2.weight"])


def test_pretrained_weights_of_another_network(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(torchvision_weights("resnet18"), path)
    trunk = resnet_trunk(pretrained_config("resnet34"), 3)
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(trunk, str(path))
    assert str(caught.value).startswith(
        f"{path}: 4.2.conv1.weight: expected (64, 64, 3, 3), got nothing; choose weights"
    )


def test_pretrained_weights_of_another_shape(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(torchvision_weights(), path)
    trunk = resnet_trunk(pretrained_config(), 4)  # four channels
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"0.weight: expected \(64, 4, 7, 7\), got \(64, 3, 7, 7\); "):
        load_pretrained(trunk, str(path))
    assert all(torch.equal(tensor, before[name]) for name, tensor in trunk.state_dict().items())


def test_pretrained_weights_that_are_damaged(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(CheckpointError, match=r"weights.safetensors: expected safetensors, got "):
        load_pretrained(resnet_trunk(pretrained_config(), 3), str(path))


def test_pretrained_weights_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(resnet_trunk(pretrained_config(), 3), "timm/resnet18.tv_in1k")
    message = str(caught.value)
    assert message.startswith("pretrained_backbone_weights timm/resnet18.tv_in1k: expected weights, got ")
    assert "pass the path of a safetensors file" in message
    assert "\n" not in message
