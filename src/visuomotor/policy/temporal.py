"""Layers over time for sequences in time-major memory, (T, B, C): the fastest order on processors (see products.py)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from visuomotor.policy.products import convolve, is_fast, linear

FEW = 4
"""Sequences at once up to which the number of calls takes the time, not the work in them."""
MOST_KEPT = 2**21
"""Numbers in a weight, above which reading it once takes the time, and a second one in memory is dear."""


class Kept:
    """Mixed into a layer that has its weight once more, in the order in which one product for all taps reads it.

    `keep` makes it, before a chunk of actions is planned. It stands until the weight changes.
    """

    weight: Tensor
    _kept: tuple[tuple[int, int], tuple[Tensor, ...]] | None = None

    def keep(self) -> None:
        """Does nothing where it would not be used, or is there already."""
        usable = is_fast(self.weight) and not self.weight.is_inference() and self.weight.numel() <= MOST_KEPT
        if usable and self.kept() is None:
            self._kept = self._stamp(), tuple(part.contiguous() for part in self.arranged())

    def kept(self) -> tuple[Tensor, ...] | None:
        """What was kept, if it is that of the weight as it is now."""
        return self._kept[1] if self._kept is not None and self._kept[0] == self._stamp() else None

    def kept_for(self, x: Tensor) -> tuple[Tensor, ...] | None:
        """The same, if it is the faster way for (T, B, C)."""
        return self.kept() if is_fast(x) and _are_few(x) else None

    def arranged(self) -> tuple[Tensor, ...]:
        """Of matrices (C', taps C), those that the layer multiplies with."""
        raise NotImplementedError

    def _stamp(self) -> tuple[int, int]:
        return self.weight.data_ptr(), self.weight._version


def _are_few(x: Tensor) -> bool:
    return x.shape[1] <= FEW and not torch.is_grad_enabled()


class TemporalConv(Kept, nn.Module):
    """`nn.Conv1d` with as much padding as keeps the number of steps: (T, B, C) -> (T, B, C').

    The kernel's memory is (K, C', C), in the order in which taps are read. In a state dict it is (C', C, K), as
    `nn.Conv1d` has it. Initial values are those of `nn.Conv1d`.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int):
        super().__init__()
        made = nn.Conv1d(channels_in, channels_out, kernel_size)
        assert made.bias is not None
        self.weight = nn.Parameter(made.weight.detach().permute(2, 0, 1).contiguous())
        self.bias = nn.Parameter(made.bias.detach())
        self.register_state_dict_post_hook(_store_kernel)
        self.register_load_state_dict_pre_hook(_load_kernel)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.kept_for(x)
        if kept is not None:
            reach = len(self.weight) // 2
            padded = functional.pad(x, (0, 0, 0, 0, reach, reach))
            windows = torch.cat([padded[tap : tap + len(x)] for tap in range(len(self.weight))], dim=-1)
            return linear(windows, kept[0], self.bias)
        if is_fast(x, self.weight):
            return convolve(x, self.weight, self.bias)
        weight = self.weight.permute(1, 2, 0)
        return functional.conv1d(x.permute(1, 2, 0), weight, self.bias, padding=len(self.weight) // 2).permute(2, 0, 1)

    def arranged(self) -> tuple[Tensor, ...]:
        return (self.weight.permute(1, 0, 2).flatten(1),)


def _store_kernel(module: nn.Module, state: dict[str, Tensor], prefix: str, _metadata: Any) -> None:
    state[f"{prefix}weight"] = state[f"{prefix}weight"].permute(1, 2, 0)


def _load_kernel(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    if f"{prefix}weight" in state:
        state[f"{prefix}weight"] = state[f"{prefix}weight"].permute(2, 0, 1)


class Shrink(Kept, nn.Conv1d):
    """Half as many steps, by a convolution of 3 taps with stride 2: (T, B, C) -> (T / 2, B, C)."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, stride=2, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        x = input
        if not is_fast(x, self.weight):
            return super().forward(x.permute(1, 2, 0)).permute(2, 0, 1)
        # Every output step sees the even step of its number, the odd one after it, and the odd one before.
        before = functional.pad(x[1:-1:2], (0, 0, 0, 0, 1, 0))
        windows = torch.cat([before, x[0::2], x[1::2]], dim=-1)  # (T / 2, B, 3 C)
        (weight,) = self.kept_for(x) or self.arranged()
        return linear(windows, weight, self.bias)

    def arranged(self) -> tuple[Tensor, ...]:
        return (self.weight.permute(0, 2, 1).flatten(1),)


class Grow(Kept, nn.ConvTranspose1d):
    """Twice as many steps, by a transposed convolution of 4 taps with stride 2: (T, B, C) -> (2 T, B, C)."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 4, stride=2, padding=1)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        x = input
        if not is_fast(x, self.weight):
            return super().forward(x.permute(1, 2, 0)).permute(2, 0, 1)
        # An even output step sees the input step of its number and the one before, an odd one that and the one after.
        padded = functional.pad(x, (0, 0, 0, 0, 1, 1))
        for_even, for_odd = self.kept_for(x) or self.arranged()
        even = linear(torch.cat([padded[:-2], x], dim=-1), for_even, self.bias)
        odd = linear(torch.cat([x, padded[2:]], dim=-1), for_odd, self.bias)
        return torch.stack([even, odd], dim=1).flatten(0, 1)

    def arranged(self) -> tuple[Tensor, ...]:
        weight = self.weight.permute(1, 2, 0)  # (C', 4, C)
        return weight[:, [3, 1]].flatten(1), weight[:, [2, 0]].flatten(1)


class NormMish(nn.GroupNorm):
    """GroupNorm over the steps and each group's channels, then Mish: (T, B, C) -> (T, B, C)."""

    def forward(self, input: Tensor) -> Tensor:
        if is_fast(input, self.weight) and not _are_few(input):
            return _NormMish.apply(input, self.weight, self.bias, self.num_groups, self.eps)
        return functional.mish(super().forward(input.permute(1, 2, 0))).permute(2, 0, 1)


class _NormMish(torch.autograd.Function):
    """Statistics are sums over the steps first, each over memory that lies side by side."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        count = len(x) * x.shape[2] // groups
        mean = _spread(x.sum(0), groups) / count  # (B, C), equal within a group
        x = x - mean  # before squares are taken, which would cancel otherwise
        inverse = (_spread((x * x).sum(0), groups) / count + eps).rsqrt_()
        normal = torch.addcmul(bias, x, inverse * weight)
        # mish(y) = y tanh(log(1 + e^y)) = y r / (2 - r), where r = s (2 - s) and s is the sigmoid of y.
        sigmoid = normal.sigmoid()
        ratio = (2 - sigmoid).mul_(sigmoid)
        rest = (2 - ratio).reciprocal_()
        ratio.mul_(rest)
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            rest.mul_(1 - sigmoid)  # and its slope is ratio + 4 y s ((1 - s) / (2 - r))^2
            slope = rest.mul_(rest).mul_(sigmoid).mul_(normal).mul_(4).add_(ratio)
            ctx.groups = groups
            ctx.save_for_backward(x, weight, inverse, slope)
        return normal.mul_(ratio)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, inverse, slope = ctx.saved_tensors
        count = len(x) * x.shape[2] // ctx.groups
        grad = grad * slope
        along = (grad * x).sum(0) * inverse  # (B, C)
        total = grad.sum(0)
        scale = inverse * weight
        mean = _spread(total * weight, ctx.groups) * inverse / -count
        tilt = _spread(along * weight, ctx.groups) * inverse.square() / -count
        grad_x = torch.addcmul(mean, x, tilt).addcmul_(grad, scale)
        return grad_x, along.sum(0), total.sum(0), None, None


def _spread(values: Tensor, groups: int) -> Tensor:
    """(B, C) -> (B, C): for each channel the sum over its group."""
    grouped = values.unflatten(1, (groups, -1))
    return grouped.sum(-1, keepdim=True).expand_as(grouped).flatten(1)
