"""Products and convolutions against torch's own, values and gradients."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from visuomotor.policy.products import convolve, is_fast, linear
from visuomotor.policy.temporal import FEW, Grow, Kept, NormMish, Shrink, TemporalConv
from visuomotor.policy.vision import Conv3x3

from .small import observation, small_batch, small_config, small_policy

fast = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch is without oneDNN")


def assert_close(found: Tensor, expected: Tensor) -> None:
    found, expected = found.detach(), expected.detach()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def assert_same(ours, theirs, *inputs: Tensor) -> None:
    """Both functions of `inputs` have equal values and gradients."""
    outputs, gradients = [], []
    for function in (ours, theirs):
        leaves = [value.detach().clone().requires_grad_() for value in inputs]
        out = function(*leaves)
        weight = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out)
        outputs.append(out)
        gradients.append(torch.autograd.grad((out * weight).sum(), leaves))
    assert_close(outputs[0], outputs[1])
    for found, expected in zip(*gradients, strict=True):
        assert_close(found, expected)


def torch_conv1d(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """Of (T, B, C) and (K, C', C)."""
    padding = len(kernel) // 2
    return functional.conv1d(x.permute(1, 2, 0), kernel.permute(1, 2, 0), bias, padding=padding).permute(2, 0, 1)


@fast
@pytest.mark.parametrize("steps, size", [(1, 1), (1, 5), (2, 5), (3, 5), (4, 5), (8, 3), (16, 5), (16, 1)])
def test_convolve_over_time(steps, size):
    torch.manual_seed(0)
    assert_same(convolve, torch_conv1d, torch.randn(steps, 3, 6), torch.randn(size, 4, 6), torch.randn(4))


@fast
@pytest.mark.parametrize("height, width", [(1, 1), (1, 4), (2, 3), (3, 3), (5, 2)])
def test_convolve_over_a_map(height, width):
    torch.manual_seed(0)

    def theirs(x: Tensor, kernel: Tensor) -> Tensor:
        out = functional.conv2d(x.permute(2, 3, 0, 1), kernel.permute(2, 3, 0, 1), padding=1)
        return out.permute(2, 3, 0, 1)

    x, kernel = torch.randn(height, width, 3, 6), torch.randn(3, 3, 4, 6)
    assert_same(lambda x, kernel: convolve(x, kernel, None), theirs, x, kernel)


@fast
@pytest.mark.parametrize("shape", [(5, 6), (2, 3, 6)])
def test_linear(shape):
    torch.manual_seed(0)
    assert_same(linear, functional.linear, torch.randn(shape), torch.randn(4, 6), torch.randn(4))


def test_what_is_not_needed_gets_no_gradient():
    kernel = torch.randn(3, 4, 6, requires_grad=True)
    convolve(torch.randn(4, 2, 6), kernel, None).sum().backward()
    assert kernel.grad is not None
    x, weight = torch.randn(4, 6, requires_grad=True), torch.randn(3, 6)
    linear(x, weight, None).sum().backward()
    assert_close(x.grad, weight.sum(0).expand(4, 6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_layers_over_time_are_those_of_torch(dtype):
    """float32 takes the products, float64 torch's own convolutions: both are tested."""
    torch.manual_seed(0)
    x = torch.randn(8, 3, 16).to(dtype)
    for ours, theirs in (
        (TemporalConv(16, 24, 5), nn.Conv1d(16, 24, 5, padding=2)),
        (Shrink(16), nn.Conv1d(16, 16, 3, stride=2, padding=1)),
        (Grow(16), nn.ConvTranspose1d(16, 16, 4, stride=2, padding=1)),
    ):
        ours, theirs = ours.to(dtype), theirs.to(dtype)
        theirs.load_state_dict(ours.state_dict())

        def reference(x: Tensor, layer: nn.Module = theirs) -> Tensor:
            return layer(x.permute(1, 2, 0)).permute(2, 0, 1)

        assert_same(ours, reference, x)
        for layer, function in ((ours, ours), (theirs, reference)):
            layer.zero_grad()
            function(x).square().sum().backward()
        found = {name: parameter.grad for name, parameter in ours.named_parameters()}
        if isinstance(ours, TemporalConv):
            found["weight"] = found["weight"].permute(1, 2, 0)
        for name, parameter in theirs.named_parameters():
            assert_close(found[name], parameter.grad)


@fast
@pytest.mark.parametrize("make", [lambda: TemporalConv(16, 24, 5), lambda: Shrink(16), lambda: Grow(16)])
def test_kept_weights_give_the_same_and_follow_the_weight(make):
    torch.manual_seed(0)
    layer = make()
    assert layer.kept() is None
    plain = {few: layer(x).detach() for few, x in inputs().items()}
    layer.keep()
    kept = layer.kept()
    assert kept is not None
    with torch.no_grad():
        for few, x in inputs().items():
            assert (layer.kept_for(x) is kept) == few
            assert_close(layer(x), plain[few])
            kept[0].mul_(2)  # seen only where it is used
            assert torch.equal(layer(x), plain[few]) != few
            kept[0].div_(2)
        layer.weight.mul_(3)
        assert layer.kept() is None
        assert_close(layer(inputs()[True]) - layer.bias, 3 * (plain[True] - layer.bias))
        layer.keep()
        assert_close(layer(inputs()[True]) - layer.bias, 3 * (plain[True] - layer.bias))
        copied = copy.deepcopy(layer)
        copied.weight.zero_()
        assert_close(copied(inputs()[True]), layer.bias.expand_as(plain[True]))
    assert layer.kept_for(inputs()[True]) is None  # with gradients
    assert layer.state_dict().keys() == {"weight", "bias"}


def inputs() -> dict[bool, Tensor]:
    """Few sequences, and many."""
    generator = torch.Generator().manual_seed(1)
    return {few: torch.randn(8, FEW if few else FEW + 1, 16, generator=generator) for few in (True, False)}


@fast
def test_planning_keeps_weights_and_new_ones_act_at_once():
    policy = small_policy(small_config(environment=4)).eval()
    seen = observation(small_batch(policy.config, 2))
    noise = torch.randn(policy.noise_draws(), 2, policy.config.horizon, 3)
    before = policy.plan(seen, noise)
    layers = [module for module in policy.modules() if isinstance(module, Kept)]
    assert layers and all(layer.kept() is not None for layer in layers)
    with torch.no_grad():
        for layer in layers:
            layer.weight.mul_(1.5)
    after = policy.plan(seen, noise)
    assert not torch.equal(after, before)
    fresh = small_policy(small_config(environment=4)).eval()
    fresh.load_state_dict(policy.state_dict())
    assert_close(after, fresh.plan(seen, noise))


def test_weights_are_not_kept_where_that_would_cost_more_or_fail():
    small = TemporalConv(8, 8, 5)
    with torch.inference_mode():
        inferred = TemporalConv(8, 8, 5)
    for layer in (TemporalConv(1024, 512, 5), small.to(torch.bfloat16), inferred):
        layer.keep()
        assert layer.kept() is None


def test_a_kernel_begins_and_is_stored_as_in_torch():
    torch.manual_seed(0)
    ours = TemporalConv(6, 8, 5)
    torch.manual_seed(0)
    theirs = nn.Conv1d(6, 8, 5)
    stored = ours.state_dict()
    assert stored.keys() == theirs.state_dict().keys()
    assert torch.equal(stored["weight"], theirs.weight) and torch.equal(stored["bias"], theirs.bias)
    other = nn.Sequential(TemporalConv(6, 8, 5))
    other.load_state_dict({f"0.{name}": value for name, value in theirs.state_dict().items()})
    assert torch.equal(other[0].weight, ours.weight)
    assert torch.equal(copy.deepcopy(other).state_dict()["0.weight"], theirs.weight)


@pytest.mark.parametrize("groups, mean", [(1, 0), (4, 0), (8, 30)])
def test_norm_and_mish_are_those_of_torch(groups, mean):
    torch.manual_seed(0)
    norm = NormMish(groups, 16)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = 3 * torch.randn(4, 5, 16) + mean

    def reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        normal = functional.group_norm(x.permute(1, 2, 0).double(), groups, weight.double(), bias.double())
        return functional.mish(normal).permute(2, 0, 1).float()

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        layer = NormMish(groups, 16)
        del layer.weight, layer.bias
        layer.weight, layer.bias = weight, bias
        return layer(x)

    tolerance = 1e-4 if mean else 1e-5  # of a mean ten times the deviation, float32 keeps that much
    with torch.no_grad():
        for some in (x, x[:, :FEW]):
            found, wanted = (function(some, norm.weight, norm.bias) for function in (ours, reference))
            torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    if not mean:
        assert_same(ours, reference, x, norm.weight.detach(), norm.bias.detach())


def test_mish_neither_overflows_nor_loses_its_slope():
    x = torch.tensor([-1e4, -80.0, -20.0, 0.0, 20.0, 80.0, 1e4]).view(1, 7, 1).expand(1, 7, 2).contiguous()
    norm = NormMish(1, 2)
    with torch.no_grad():
        norm.bias[:] = 0
    spread = x * torch.tensor([1.0, -1.0])  # of two channels the mean is 0 and the deviation |x|: +-1 after the norm
    for scale in (1.0, 1e3):
        norm.weight.data[:] = scale
        out = norm(spread.clone().requires_grad_())
        expected = functional.mish(nn.GroupNorm.forward(norm, spread.permute(1, 2, 0))).permute(2, 0, 1)
        assert_close(out, expected)


@pytest.mark.parametrize("channels, size, stride", [(6, 3, 1), (6, 3, 2), (6, 5, 1)])
def test_a_3x3_convolution_is_that_of_torch(channels, size, stride):
    torch.manual_seed(0)
    ours = Conv3x3(channels, 8, stride)
    x = torch.randn(2, channels, size, size).contiguous(memory_format=torch.channels_last)
    assert_same(ours, lambda x: functional.conv2d(x, ours.weight, None, stride, 1), x)
    assert ours(x).is_contiguous(memory_format=torch.channels_last)


def test_products_are_taken_where_they_apply_only():
    x = torch.zeros(2, 2)
    assert is_fast(x) == torch.backends.mkldnn.is_available()
    assert not is_fast(x, x.double())
    assert not is_fast(x.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_fast(x)
