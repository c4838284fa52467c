"""The U-Net against its formulas, written out from the tensors' names; LeRobot's own figures are in test_lerobot.py."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from visuomotor.config import DiffusionConfig
from visuomotor.policy.unet import ConditionalUnet1d, ResidualBlock, SinusoidalEmbedding

from .small import SMALL

Weights = dict[str, Tensor]


def formula(weights: Weights, config: DiffusionConfig, x: Tensor, step: Tensor, global_cond: Tensor) -> Tensor:
    """The whole network as functions of its tensors."""
    half = config.diffusion_step_embed_dim // 2
    frequencies = torch.tensor([10_000 ** (-i / (half - 1)) for i in range(half)])
    angles = step[:, None] * frequencies
    embedded = linear(weights, "diffusion_step_encoder.1", torch.cat([angles.sin(), angles.cos()], 1))
    embedded = linear(weights, "diffusion_step_encoder.3", mish(embedded))
    condition = torch.cat([embedded, global_cond], 1)

    def block(name: str, x: Tensor) -> Tensor:
        out = conv_block(weights, f"{name}.conv1.block", x, config.n_groups)
        film = linear(weights, f"{name}.cond_encoder.1", mish(condition))[..., None]
        scale, bias = film.tensor_split([out.shape[1]], 1) if config.use_film_scale_modulation else (1, film)
        out = conv_block(weights, f"{name}.conv2.block", scale * out + bias, config.n_groups)
        residual = f"{name}.residual_conv"
        return out + (conv(weights, residual, x) if f"{residual}.weight" in weights else x)

    stages, skips = len(config.down_dims), []
    x = x.transpose(1, 2)
    for i in range(stages):
        x = block(f"down_modules.{i}.1", block(f"down_modules.{i}.0", x))
        skips.append(x)
        if i < stages - 1:
            x = F.conv1d(x, *tensors(weights, f"down_modules.{i}.2"), stride=2, padding=1)
    x = block("mid_modules.1", block("mid_modules.0", x))
    for i in range(stages - 1):
        x = torch.cat([x, skips[stages - 1 - i]], 1)
        x = block(f"up_modules.{i}.1", block(f"up_modules.{i}.0", x))
        x = F.conv_transpose1d(x, *tensors(weights, f"up_modules.{i}.2"), stride=2, padding=1)
    x = conv_block(weights, "final_conv.0.block", x, 8)  # as in LeRobot, whatever n_groups is
    return conv(weights, "final_conv.1", x).transpose(1, 2)


def tensors(weights: Weights, name: str) -> tuple[Tensor, Tensor]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    weight, bias = tensors(weights, name)
    return x @ weight.T + bias


def mish(x: Tensor) -> Tensor:
    return x * torch.tanh(torch.log1p(torch.exp(x)))


def conv(weights: Weights, name: str, x: Tensor) -> Tensor:
    weight, bias = tensors(weights, name)
    return F.conv1d(x, weight, bias, padding=weight.shape[-1] // 2)


def conv_block(weights: Weights, name: str, x: Tensor, groups: int) -> Tensor:
    x = conv(weights, f"{name}.0", x)
    grouped = x.unflatten(1, (groups, -1))
    mean = grouped.mean((2, 3), keepdim=True)
    variance = grouped.var((2, 3), keepdim=True, unbiased=False)
    x = ((grouped - mean) / torch.sqrt(variance + 1e-5)).flatten(1, 2)
    weight, bias = tensors(weights, f"{name}.1")
    return mish(x * weight[:, None] + bias[:, None])


def unet(config: DiffusionConfig, global_cond_size: int = 5) -> ConditionalUnet1d:
    torch.manual_seed(0)
    network = ConditionalUnet1d(config, 3, global_cond_size)
    for parameter in network.parameters():  # GroupNorm starts at 1 and 0, where an error would not show
        torch.nn.init.normal_(parameter, mean=0.1, std=0.2)
    return network


def inputs(config: DiffusionConfig, size: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, config.horizon, 3, generator=generator)
    step = torch.randint(config.num_train_timesteps, (size,), generator=generator)
    return x, step, torch.randn(size, 5, generator=generator)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_film_scale_modulation": False},
        {"down_dims": (16,)},
        {"down_dims": (8, 16, 16)},  # a stage that changes no channels
        {"down_dims": (8, 24, 40), "horizon": 16, "kernel_size": 5, "n_groups": 8},
        {"diffusion_step_embed_dim": 4},
    ],
    ids=str,
)
def test_network_by_its_formula(changes: dict[str, object]) -> None:
    config = dataclasses.replace(SMALL, **changes)
    network = unet(config)
    x, step, condition = inputs(config)
    with torch.no_grad():
        found = network(x, step, condition)
        expected = formula(network.state_dict(), config, x, step, condition)
    assert found.shape == x.shape
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5)


def test_bias_only_film_is_film_with_a_scale_of_one() -> None:
    """The same network with scales, all of them 1: the form that is held equal to LeRobot."""
    config = dataclasses.replace(SMALL, use_film_scale_modulation=False)
    bias_only, scaled = unet(config), unet(SMALL)
    weights = bias_only.state_dict()
    for name in weights:
        if "cond_encoder.1" in name:
            scale = torch.zeros_like(weights[name]) if name.endswith("weight") else torch.ones_like(weights[name])
            weights[name] = torch.cat([scale, weights[name]])
    scaled.load_state_dict(weights)
    with torch.no_grad():
        assert torch.allclose(scaled(*inputs(SMALL)), bias_only(*inputs(config)), atol=1e-6)


def test_sinusoidal_embedding() -> None:
    found = SinusoidalEmbedding(6)(torch.tensor([0, 1, 99])).numpy()
    frequencies = np.array([1, 1e-2, 1e-4])
    for row, step in zip(found, (0, 1, 99), strict=True):
        assert row == pytest.approx([*np.sin(step * frequencies), *np.cos(step * frequencies)], abs=1e-5)


def test_gradient_checkpointing_changes_no_number() -> None:
    plain = unet(SMALL)
    saving = copy.deepcopy(plain)
    saving.recompute = True
    runs = []
    for network in (plain, saving):
        calls = []
        block = next(module for module in network.modules() if isinstance(module, ResidualBlock))
        block.conv1.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        x, step, condition = (tensor.clone() for tensor in inputs(SMALL))
        condition.requires_grad_()
        loss = (network(x, step, condition) ** 2).mean()
        loss.backward()
        gradients = [tensor.grad for tensor in (condition, *network.parameters()) if tensor.grad is not None]
        runs.append((len(calls), [loss.detach(), *gradients]))
    (once, expected), (twice, found) = runs
    assert (once, twice) == (1, 2)  # it did recompute
    assert len(expected) == 2 + len(list(plain.parameters()))
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_gradient_checkpointing_is_asked_for_by_the_config() -> None:
    assert unet(dataclasses.replace(SMALL, gradient_checkpointing=True)).recompute
    assert not unet(SMALL).recompute


def test_samples_do_not_see_each_other() -> None:
    network = unet(SMALL)
    x, step, condition = inputs(SMALL)
    with torch.no_grad():
        whole = network(x, step, condition)
        for i in range(len(x)):
            alone = network(x[i : i + 1], step[i : i + 1], condition[i : i + 1])
            assert torch.allclose(alone, whole[i : i + 1], atol=1e-5)
