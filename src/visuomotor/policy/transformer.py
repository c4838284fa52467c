"""The other denoising network: a transformer over the noisy actions, conditioned by adaLN-Zero.

DiT (Peebles and Xie 2023), a token an action in place of a patch of an image, as Dasari et al. 2024 use it for robots.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from visuomotor.config import DiffusionConfig
from visuomotor.policy.products import Linear
from visuomotor.policy.unet import SinusoidalEmbedding, run_block


class TransformerBlock(nn.Module):
    """Attention among the actions, then an MLP of each; the condition shifts, scales and gates both (adaLN-Zero)."""

    def __init__(self, size: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = _norm(size), _norm(size)
        self.qkv, self.out = Linear(size, 3 * size), Linear(size, size)
        self.mlp = nn.Sequential(Linear(size, 4 * size), nn.GELU(approximate="tanh"), Linear(4 * size, size))
        self.modulation = Linear(size, 6 * size)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, Tp, E) and the condition (B, E), which has been through SiLU already, once for all blocks."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, dim=-1)  # (B, 1, E)
        x = x + gate1 * self._attend(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)

    def _attend(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, Tp, E / heads)
        return self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class DiffusionTransformer(nn.Module):
    """Noisy actions, the denoising step and the observation -> what `prediction_type` says.

    Every block begins as the identity and the whole as 0, as in DiT. Differs from it: positions are learned, from its
    sinusoids on.
    """

    def __init__(self, config: DiffusionConfig, action_size: int, global_cond_size: int):
        super().__init__()
        size, embed = config.transformer_dim, config.diffusion_step_embed_dim
        self.recompute = config.gradient_checkpointing
        self.diffusion_step_encoder = nn.Sequential(
            SinusoidalEmbedding(embed), Linear(embed, size), nn.SiLU(), Linear(size, size)
        )
        self.cond_encoder = nn.Sequential(Linear(global_cond_size, size), nn.SiLU(), Linear(size, size))
        self.action_encoder = Linear(action_size, size)
        self.positions = nn.Parameter(SinusoidalEmbedding(size)(torch.arange(config.horizon)))  # (Tp, E)
        self.blocks = nn.ModuleList(
            TransformerBlock(size, config.transformer_heads) for _ in range(config.transformer_layers)
        )
        self.final_norm, self.final_modulation = _norm(size), Linear(size, 2 * size)
        self.final = Linear(size, action_size)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        zero = [block.modulation for block in self.blocks if isinstance(block, TransformerBlock)]
        for module in (*zero, self.final_modulation, self.final):
            nn.init.zeros_(module.weight)

    def forward(self, x: Tensor, step: Tensor, global_cond: Tensor, told: Tensor | None = None) -> Tensor:
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
            told = self.diffusion_step_encoder(step) + self.cond_encoder(global_cond)
        condition = nn.functional.silu(told)
        x = self.action_encoder(x) + self.positions
        for block in self.blocks:
            x = run_block(self.recompute, block, x, condition)
        shift, scale = self.final_modulation(condition)[:, None].chunk(2, dim=-1)
        return self.final(self.final_norm(x) * (1 + scale) + shift)

    def prepare(self, steps: Tensor, global_cond: Tensor) -> Callable[[int], Tensor]:
        """As for the U-Net: given 0 to S - 1, what the blocks are told at that one of the steps (S,), (B, E)."""
        of_steps, of_cond = self.diffusion_step_encoder(steps), self.cond_encoder(global_cond)
        return lambda i: of_steps[i] + of_cond


def _norm(size: int) -> nn.LayerNorm:
    return nn.LayerNorm(size, eps=1e-6, elementwise_affine=False)
