"""Matrix products and small convolutions on processors, at the speed that the hardware has.

oneDNN's product reaches twice the speed of the one that torch takes for `nn.Linear` on AMD processors. And a
convolution over few positions is a product for each tap of its kernel, over the positions that the tap reaches: nothing
is spent on padding, which is a third of the work at 4 steps and 5 taps, and 40 % on a 3 x 3 map. Wherever this does not
apply (GPUs, float64, bfloat16, compiled or exported graphs) the callers use torch's own layers.
"""

from itertools import product as combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

Place = tuple[slice, ...]


def is_fast(*tensors: Tensor) -> bool:
    """Whether the matrix products of oneDNN apply to these."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_autocast_enabled("cpu"):
        return False
    plain = all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors)
    return plain and torch.backends.mkldnn.is_available()


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(M, K) times (N, K) transposed, plus (N,). Each matrix is contiguous, or the transpose of one that is."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`functional.linear`: (..., K) and (N, K) -> (..., N)."""
    if is_fast(x, weight):
        return _Linear.apply(x.contiguous(), weight.contiguous(), bias)
    return functional.linear(x, weight, bias)


class Linear(nn.Linear):
    """`nn.Linear`, by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def convolve(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution of stride 1 that keeps the number of positions, where `is_fast` holds.

    Args:
        x: (T, B, C) over time, or (H, W, B, C); in this order of memory a tap's positions lie side by side.
        kernel: (K, C', C) or (K, K, C', C), K odd.
        bias: (C',) or None.

    Returns:
        (T, B, C') or (H, W, B, C').
    """
    return _Convolution.apply(x.contiguous(), kernel.contiguous(), bias)


def _taps(positions: tuple[int, ...], sizes: tuple[int, ...]) -> list[tuple[tuple[int, ...], Place, Place]]:
    """For each tap that reaches any position its place in the kernel, its outputs and its inputs; the middle first."""
    along = []
    for steps, size in zip(positions, sizes, strict=True):
        shifts = sorted(range(-(size // 2), size // 2 + 1), key=abs)
        along.append([(shift + size // 2, _part(-shift, steps), _part(shift, steps)) for shift in shifts])
    found = [tuple(zip(*choice, strict=True)) for choice in combinations(*along)]
    return [(tap, out, source) for tap, out, source in found if all(part.start < part.stop for part in out)]


def _part(shift: int, steps: int) -> slice:
    return slice(max(0, shift), steps + min(0, shift))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return multiply(x.flatten(0, -2), weight, bias).unflatten(0, x.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous().flatten(0, -2)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            multiply(grad, weight.t()).view(x.shape) if needs_x else None,
            multiply(grad.t(), x.flatten(0, -2).t()) if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, kernel)
        positions, channels = x.shape[:-2], x.shape[-1]
        (middle, _, _), *others = _taps(positions, kernel.shape[:-2])
        out = multiply(x.view(-1, channels), kernel[middle], bias).view(*x.shape[:-1], -1)
        for tap, outputs, inputs in others:
            place = out[outputs]
            place += multiply(x[inputs].reshape(-1, channels), kernel[tap]).view(place.shape)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, kernel = ctx.saved_tensors
        grad = grad.contiguous()
        needs_x, needs_kernel, needs_bias = ctx.needs_input_grad
        grad_x, grad_kernel = None, torch.zeros_like(kernel) if needs_kernel else None
        for tap, outputs, inputs in _taps(x.shape[:-2], kernel.shape[:-2]):
            outer = grad[outputs].reshape(-1, grad.shape[-1])
            if grad_kernel is not None:
                grad_kernel[tap] = multiply(outer.t(), x[inputs].reshape(-1, x.shape[-1]).t())
            if needs_x:
                part = multiply(outer, kernel[tap].t())
                if grad_x is None:  # the middle tap, which reaches everything
                    grad_x = part.view(x.shape)
                else:
                    place = grad_x[inputs]
                    place += part.view(place.shape)
        return grad_x, grad_kernel, grad.flatten(0, -2).sum(0) if needs_bias else None
