"""The denoising network: a conditional U-Net over time (Chi et al. 2023, section IV; tested against LeRobot's)."""

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from visuomotor.config import DiffusionConfig
from visuomotor.policy.products import Linear
from visuomotor.policy.temporal import Grow, NormMish, Shrink, TemporalConv

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

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(T, B, C) and the condition (B, E), which has been through Mish already, once for all blocks."""
        out = self.conv1(x)
        film = self.cond_encoder[1](condition)  # (B, C' or 2 C')
        if self.scales:
            scale, bias = film.chunk(2, dim=1)
            out = torch.addcmul(bias, out, scale)
        else:
            out = out + film
        return self.conv2(out) + self.residual_conv(x)


def run_block(recompute: bool, block: nn.Module, x: Tensor, condition: Tensor) -> Tensor:
    """block(x, condition), whose activations are computed again in the backward pass if `recompute` says so."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, x, condition, use_reentrant=False)
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

    def forward(self, x: Tensor, step: Tensor, global_cond: Tensor) -> Tensor:
        """Predicts for a batch.

        Args:
            x: (B, Tp, Da) noisy actions, normalised.
            step: (B,) denoising steps, 0 (clean) to num_train_timesteps - 1 (noise).
            global_cond: (B, G) what the policy observed.

        Returns:
            (B, Tp, Da).
        """
        condition = torch.cat([self.diffusion_step_encoder(step), global_cond], dim=-1)
        condition = nn.functional.mish(condition)
        run = partial(run_block, self.recompute)
        x = x.transpose(0, 1)  # (Tp, B, Da)
        skips: list[Tensor] = []
        for stage in self.down_modules:
            first, second, shrink = stage.children()
            x = run(second, run(first, x, condition), condition)
            skips.append(x)
            x = shrink(x)
        for block in self.mid_modules:
            x = run(block, x, condition)
        for stage in self.up_modules:
            first, second, grow = stage.children()
            x = torch.cat([x, skips.pop()], dim=-1)
            x = grow(run(second, run(first, x, condition), condition))
        return self.final_conv(x).transpose(0, 1)
