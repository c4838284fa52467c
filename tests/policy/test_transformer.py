"""The transformer against its formulas, written out in float64 from the tensors' names; and in a policy."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from visuomotor.config import DiffusionConfig
from visuomotor.policy.checkpoint import load_policy, save_policy
from visuomotor.policy.transformer import DiffusionTransformer, TransformerBlock
from visuomotor.presets import KEYPOINTS, preset
from visuomotor.recipe import Recipe
from visuomotor.simulation.rollout import rollout
from visuomotor.training.loop import train

from .small import SMALL, observation, small_batch, small_config, small_policy

Weights = dict[str, Tensor]
TINY = dataclasses.replace(SMALL, denoiser="transformer", transformer_dim=12, transformer_layers=2, transformer_heads=3)


def network(config: DiffusionConfig = TINY, trained: bool = True) -> DiffusionTransformer:
    """With 3 actions and 5 observed numbers; `trained`: no tensor at its beginning, where an error would not show."""
    torch.manual_seed(0)
    transformer = DiffusionTransformer(config, 3, 5)
    if trained:
        for parameter in transformer.parameters():
            torch.nn.init.normal_(parameter, mean=0.1, std=0.2)
    return transformer


def inputs(config: DiffusionConfig = TINY, size: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, config.horizon, 3, generator=generator)
    step = torch.rand(size, generator=generator) * 19
    return x, step, torch.randn(size, 5, generator=generator)


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def normalised(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-6)


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def block_formula(weights: Weights, name: str, heads: int, x: Tensor, condition: Tensor) -> Tensor:
    """One block for one sample: (Tp, E) and (E,), a head and a query at a time."""
    size = x.shape[-1]
    modulation = linear(weights, f"{name}modulation", condition)
    shift1, scale1, gate1, shift2, scale2, gate2 = (modulation[i * size : (i + 1) * size] for i in range(6))
    qkv = linear(weights, f"{name}qkv", normalised(x) * (1 + scale1) + shift1)
    attended = torch.zeros_like(x)
    for head in range(heads):
        part = slice(head * size // heads, (head + 1) * size // heads)
        q, k, v = (qkv[:, i * size : (i + 1) * size][:, part] for i in range(3))
        for i in range(len(x)):
            scores = k @ q[i] / math.sqrt(size // heads)
            weight = torch.exp(scores - scores.max())
            attended[i, part] = weight @ v / weight.sum()
    x = x + gate1 * linear(weights, f"{name}out", attended)
    inner = gelu(linear(weights, f"{name}mlp.0", normalised(x) * (1 + scale2) + shift2))
    return x + gate2 * linear(weights, f"{name}mlp.2", inner)


def formula(weights: Weights, config: DiffusionConfig, x: Tensor, step: Tensor, global_cond: Tensor) -> Tensor:
    """The whole network for one sample: (Tp, 3), a scalar, (5,)."""
    half = config.diffusion_step_embed_dim // 2
    angles = step * torch.tensor([10_000 ** (-i / (half - 1)) for i in range(half)], dtype=torch.float64)
    told = linear(weights, "diffusion_step_encoder.1", torch.cat([angles.sin(), angles.cos()]))
    told = linear(weights, "diffusion_step_encoder.3", silu(told))
    seen = linear(weights, "cond_encoder.2", silu(linear(weights, "cond_encoder.0", global_cond)))
    condition = silu(told + seen)
    x = linear(weights, "action_encoder", x) + weights["positions"]
    for i in range(config.transformer_layers):
        x = block_formula(weights, f"blocks.{i}.", config.transformer_heads, x, condition)
    shift, scale = linear(weights, "final_modulation", condition).tensor_split(2)
    return linear(weights, "final", normalised(x) * (1 + scale) + shift)


@torch.no_grad()
def test_block_by_its_formula() -> None:
    torch.manual_seed(0)
    block = TransformerBlock(12, 3)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, mean=0.1, std=0.2)
    weights = {name: tensor.double() for name, tensor in block.state_dict().items()}
    x, condition = torch.randn(2, 8, 12), torch.randn(2, 12)
    expected = [block_formula(weights, "", 3, a.double(), c.double()) for a, c in zip(x, condition, strict=True)]
    assert (block(x, condition) - torch.stack(expected)).abs().max() < 1e-5 * torch.stack(expected).abs().max()


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"transformer_heads": 1, "transformer_layers": 1},
        {"transformer_dim": 20, "transformer_heads": 5, "diffusion_step_embed_dim": 8},
        {"horizon": 9},  # which no U-Net could take
        {"horizon": 1, "n_obs_steps": 1, "n_action_steps": 1},
    ],
    ids=str,
)
def test_network_by_its_formula(changes: dict[str, Any]) -> None:
    config = dataclasses.replace(TINY, **changes)
    transformer = network(config)
    weights = {name: tensor.double() for name, tensor in transformer.state_dict().items()}
    given = inputs(config)
    expected = torch.stack([formula(weights, config, *(values[i].double() for values in given)) for i in range(4)])
    assert (transformer(*given) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_at_the_beginning_it_says_0_and_every_block_is_the_identity() -> None:
    transformer = network(trained=False)
    assert torch.equal(transformer(*inputs()), torch.zeros(4, 8, 3))
    x = torch.randn(4, 8, 12)
    for block in transformer.blocks:
        assert torch.equal(block(x, torch.randn(4, 12)), x)
    loss = (transformer(*inputs()) - 1).square().mean()
    loss.backward()
    reached = {name for name, p in transformer.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {"final.weight", "final.bias"}  # as in DiT: the rest follows once these have moved


def test_every_tensor_gets_a_gradient() -> None:
    transformer = network()
    (transformer(*inputs()) ** 2).mean().backward()
    assert [name for name, p in transformer.named_parameters() if p.grad is None or not p.grad.any()] == []


@torch.no_grad()
def test_actions_are_told_apart_by_their_positions_alone() -> None:
    """Moved together with their positions, actions only change places; without, they change."""
    transformer, (x, step, condition) = network(), inputs()
    order = torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    plain = transformer(x, step, condition)
    assert not torch.allclose(transformer(x[:, order], step, condition), plain[:, order], atol=1e-2)
    transformer.positions.copy_(transformer.positions[order])
    assert torch.allclose(transformer(x[:, order], step, condition), plain[:, order], atol=1e-5)


@torch.no_grad()
def test_samples_do_not_see_each_other() -> None:
    transformer, given = network(), inputs()
    whole = transformer(*given)
    for i in range(4):
        assert torch.allclose(transformer(*(values[i : i + 1] for values in given)), whole[i : i + 1], atol=1e-5)


def test_gradient_checkpointing_changes_no_number() -> None:
    results = []
    for recompute in (False, True):
        transformer = network(dataclasses.replace(TINY, gradient_checkpointing=recompute))
        calls: list[int] = []
        transformer.blocks[0].qkv.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        loss = (transformer(*inputs()) ** 2).mean()
        loss.backward()
        assert len(calls) == 1 + recompute
        results.append([loss.detach(), *(parameter.grad for parameter in transformer.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# In a policy

IN_A_POLICY = small_config(denoiser="transformer", transformer_dim=16, transformer_layers=2)


def test_a_policy_has_one_denoiser() -> None:
    names = small_policy(IN_A_POLICY).state_dict()
    assert all(name.startswith("diffusion.transformer.") for name in names)
    assert tuple(names["diffusion.transformer.blocks.1.modulation.weight"].shape) == (6 * 16, 16)
    assert tuple(names["diffusion.transformer.cond_encoder.0.weight"].shape) == (16, 2 * 2)
    assert all(name.startswith("diffusion.unet.") for name in small_policy(small_config()).state_dict())


def test_what_is_saved_acts_the_same(tmp_path: Path) -> None:
    policy = small_policy(IN_A_POLICY)
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_policy(policy, tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert loaded.config == IN_A_POLICY
    seen, noise = observation(small_batch(IN_A_POLICY)), torch.randn(loaded.noise_draws(), 3, 8, 3)
    assert torch.equal(loaded.predict_action_chunk(seen, noise), policy.eval().predict_action_chunk(seen, noise))


@pytest.mark.parametrize(
    "changes",
    [
        {"denoiser": "transformer", "transformer_dim": 16, "transformer_layers": 1, "horizon": 15},
        {"noise_scheduler_type": "FlowMatchEuler", "prediction_type": "v_prediction"},
    ],
    ids=["transformer", "flow"],
)
def test_trained_and_rolled_out(tmp_path: Path, changes: dict[str, Any]) -> None:
    recipe = preset("debug")
    training = dataclasses.replace(recipe.training, observations=KEYPOINTS)
    recipe = Recipe(dataclasses.replace(recipe.policy, **changes), training)
    policy = load_policy(train(recipe, "pusht-demonstrations", tmp_path / "run") / "policy")
    assert {name: getattr(policy.config, name) for name in changes} == changes
    (episode,) = rollout(policy, [500_000], max_steps=9, policy_batch=1)
    assert (episode.steps, episode.chunk_starts) == (9, [0, 8])
