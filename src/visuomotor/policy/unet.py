"""The denoising network: a conditional U-Net over time (Chi et al. 2023, section IV; tested against LeRobot's)."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from visuomotor.config import DiffusionConfig
from visuomotor.policy.products import Linear
from visuomotor.policy.temporal import Grow, Kept, NormMish, Shrink, TemporalConv

FINAL_GROUPS = 8  # of the last GroupNorm, whatever n_groups is: so it is in LeRobot and in the original code


class SinusoidalEmbedding(nn.Module):
    """(B,) denoising steps -> (B, size): sines, then cosines, of frequencies from 1 down to 1/10,000."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, step: Tensor) -> Tensor:
        half = self.size // 2
        exponents = torch.arange(half, device=step.device) * -(math.log(10_000) / (half - 1))
        angles = step[:, None] * exponents.exp()[None]
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class ConvBlock(nn.Module):
    """Convolution over time, GroupNorm, Mish: (T, B, C) -> (T, B, C')."""

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int, n_groups: int):
        super().__init__()
        self.block = nn.Sequential(
            TemporalConv(channels_in, channels_out, kernel_size), NormMish(n_groups, channels_out)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class ResidualBlock(nn.Module):
    """Two convolutions; between them the condition scales and shifts each channel (FiLM, Perez et al. 2017)."""

    def __init__(self, channels_in: int, channels_out: int, condition_size: int, config: DiffusionConfig):
        super().__init__()
        self.scales = config.use_film_scale_modulation
        self.conv1 = ConvBlock(channels_in, channels_out, config.kernel_size, config.n_groups)
        film_size = channels_out * 2 if self.scales else channels_out
        self.cond_encoder = nn.Sequential(nn.Mish(), Linear(condition_size, film_size))
        self.conv2 = ConvBlock(channels_out, channels_out, config.kernel_size, config.n_groups)
        self.residual_conv: nn.Module = nn.Identity()
        if channels_in != channels_out:
            self.residual_conv = TemporalConv(channels_in, channels_out, 1)

    def film(self, condition: Tensor) -> Tensor:
        """What scales and shifts, (B, C' or 2 C'), of a condition (B, E + G) that has been through Mish."""
        return self.cond_encoder[1](condition)

    def film_shares(self, step: Tensor, global_cond: Tensor) -> tuple[Tensor, Tensor]:
        """`film` as a sum, since it is linear: what steps (S, E) and observations (B, G), after Mish, contribute."""
        layer = self.cond_encoder[1]
        assert isinstance(layer, nn.Linear)
        of_step, of_cond = layer.weight.split([step.shape[1], global_cond.shape[1]], dim=1)
        return nn.functional.linear(step, of_step), nn.functional.linear(global_cond, of_cond, layer.bias)

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        """(T, B, C) and what `film` gives."""
        out = self.conv1(x)
        if self.scales:
            scale, bias = film.chunk(2, dim=1)
            out = torch.addcmul(bias, out, scale)
        else:
            out = out + film
        return self.conv2(out) + self.residual_conv(x)


def run_block(recompute: bool, block: nn.Module, x: Tensor, condition: Tensor) -> Tensor:
    """block(x, condition), whose activations are computed again in the backward pass if `recompute` says so."""
    if recompute and torch.is_grad_enabled():
        # Nothing in a block is random; a GPU's generator could not be asked while a CUDA graph is recorded.
        return checkpoint(block, x, condition, use_reentrant=False, preserve_rng_state=False)
    return block(x, condition)


class ConditionalUnet1d(nn.Module):
    """Noisy actions, the denoising step and the observation -> the noise in the actions, or the clean actions.

    Submodules carry LeRobot's names, so that its checkpoints load as they are.
    """

    def __init__(self, config: DiffusionConfig, action_size: int, global_cond_size: int):
        super().__init__()
        dims, embed = config.down_dims, config.diffusion_step_embed_dim
        self.recompute = config.gradient_checkpointing
        self.diffusion_step_encoder = nn.Sequential(
            SinusoidalEmbedding(embed), nn.Linear(embed, embed * 4), nn.Mish(), nn.Linear(embed * 4, embed)
        )

        def block(channels_in: int, channels_out: int) -> ResidualBlock:
            return ResidualBlock(channels_in, channels_out, embed + global_cond_size, config)

        self.down_modules = nn.ModuleList()
        for i, (size_in, size_out) in enumerate(zip((action_size, *dims), dims, strict=False)):
            last = i == len(dims) - 1
            shrink = nn.Identity() if last else Shrink(size_out)
            self.down_modules.append(nn.ModuleList([block(size_in, size_out), block(size_out, size_out), shrink]))
        self.mid_modules = nn.ModuleList([block(dims[-1], dims[-1]), block(dims[-1], dims[-1])])
        self.up_modules = nn.ModuleList()
        for size_in, size_out in zip(dims[:0:-1], dims[-2::-1], strict=True):
            grow = Grow(size_out)
            self.up_modules.append(nn.ModuleList([block(size_in * 2, size_out), block(size_out, size_out), grow]))
        self.final_conv = nn.Sequential(
            ConvBlock(dims[0], dims[0], config.kernel_size, FINAL_GROUPS), TemporalConv(dims[0], action_size, 1)
        )

    def forward(self, x: Tensor, step: Tensor, global_cond: Tensor, told: Sequence[Tensor] | None = None) -> Tensor:
        """Predicts for a batch.

        Args:
            x: (B, Tp, Da) noisy actions, normalised.
            step: (B,) denoising steps, 0 (clean) to num_train_timesteps - 1 (noise).
            global_cond: (B, G) what the policy observed.
            told: Of `prepare` for this step and `global_cond`, which then are not looked at.

        Returns:
            (B, Tp, Da).
        """
        if told is None:
            condition = torch.cat([self.diffusion_step_encoder(step), global_cond], dim=-1)
            condition = nn.functional.mish(condition)
            told = [block.film(condition) for block in self._blocks()]
        films = iter(told)
        x = x.transpose(0, 1)  # (Tp, B, Da)
        skips: list[Tensor] = []
        for stage in self.down_modules:
            first, second, shrink = stage.children()
            x = self._run(second, self._run(first, x, films), films)
            skips.append(x)
            x = shrink(x)
        for block in self.mid_modules:
            x = self._run(block, x, films)
        for stage in self.up_modules:
            first, second, grow = stage.children()
            x = torch.cat([x, skips.pop()], dim=-1)
            x = grow(self._run(second, self._run(first, x, films), films))
        return self.final_conv(x).transpose(0, 1)

    def prepare(self, steps: Tensor, global_cond: Tensor) -> Callable[[int], Sequence[Tensor]]:
        """Computes what the blocks are told at several steps, for all of them at once, and orders weights for acting.

        Args:
            steps: (S,) denoising steps.
            global_cond: (B, G) what the policy observed.

        Returns:
            Given 0 to S - 1, the `told` of that step: the same as without, to rounding.
        """
        for module in self.modules():
            if isinstance(module, Kept):
                module.keep()
        step, cond = nn.functional.mish(self.diffusion_step_encoder(steps)), nn.functional.mish(global_cond)
        shares = [block.film_shares(step, cond) for block in self._blocks()]
        sizes = [of_step.shape[1] for of_step, _ in shares]
        of_steps, of_cond = (torch.cat(parts, dim=1) for parts in zip(*shares, strict=True))
        return lambda i: (of_steps[i] + of_cond).split(sizes, dim=1)

    def _blocks(self) -> list[ResidualBlock]:
        """In the order in which they run."""
        return [module for module in self.modules() if isinstance(module, ResidualBlock)]

    def _run(self, block: nn.Module, x: Tensor, films: Iterator[Tensor]) -> Tensor:
        return run_block(self.recompute, block, x, next(films))
