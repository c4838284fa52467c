"""Training on a GPU, as far as a machine without one can tell; and, with one, on it."""

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from visuomotor.config import DiffusionConfig
from visuomotor.data.loading import each, send
from visuomotor.data.pusht_geometry import _reflect_where
from visuomotor.errors import ConfigError
from visuomotor.policy import diffusion
from visuomotor.policy.vision import _gather_crops
from visuomotor.recipe import Recipe
from visuomotor.training import graph, loop, losses
from visuomotor.training.graph import StepGraph, check_graph
from visuomotor.training.loop import train
from visuomotor.training.metrics import Metrics

from .runs import change, contents, lines

SEES = ("observation.image", "observation.state", "observation.environment_state")


@pytest.fixture
def images(recipe: Recipe) -> Recipe:
    """Everything in use: a camera, crops, both states, reflections, several noise draws and parts of a batch."""
    changed = change(recipe, observations=SEES, episodes=(0, 1), steps=8, save_every=4, gradient_accumulation_steps=2)
    return replace(changed, policy=replace(changed.policy, crop_shape=(84, 80), do_mask_loss_for_padding=True))


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)


def pretend(patch: pytest.MonkeyPatch) -> None:
    """The processor is taken for a GPU of much memory; recordings are `Tape`s."""

    def reflect(batch: dict[str, Tensor], where: Tensor) -> dict[str, Tensor]:
        pads = {name: value for name, value in batch.items() if name.endswith("_is_pad")}
        return {name: _reflect_where(name, value, where) for name, value in batch.items() if name not in pads} | pads

    def crop(images: Tensor, config: DiffusionConfig, offsets: Tensor) -> Tensor:
        assert config.crop is not None
        return _gather_crops(images, offsets, *config.crop)

    patch.setattr(loop, "is_cuda", lambda device: True)
    patch.setattr(loop, "check_graph", lambda device, processes: None)
    patch.setattr(loop, "mirror", reflect)
    patch.setattr(diffusion, "resize_and_crop", crop)
    patch.setattr(torch.cuda, "mem_get_info", lambda device: (10**12, 10**12))
    patch.setattr(graph, "_aside", lambda run: run())
    patch.setattr(graph, "_record", Tape.record)


class Tape(TorchDispatchMode):
    """A CUDA graph on a processor: operations with their very tensors, to be done again into the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any, Any]] = []
        self.before: list[tuple[Tensor, Tensor]] = []

    @staticmethod
    def record(run: Any) -> tuple[Any, Tensor]:
        tape = Tape()
        with tape:
            output = run()
        with torch.no_grad():  # a recording changes nothing
            for tensor, value in reversed(tape.before):
                tensor.copy_(value)
        return tape.replay, output

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            self.before += [(t.detach(), t.detach().clone()) for t in tree_leaves((args, kwargs)) if torch.is_tensor(t)]
        out = func(*args, **kwargs)
        self.done.append((func, args, kwargs, out))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, out in self.done:
            for there, again in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if torch.is_tensor(there) and there.data_ptr() != again.data_ptr():
                    there.copy_(again)


def test_a_replay_reads_what_has_changed_and_nothing_that_python_held() -> None:
    factor, number = torch.tensor(2.0), 3.0
    replay, out = Tape.record(lambda: torch.zeros(2).add_(factor * number))
    assert out.tolist() == [0, 0]
    factor.fill_(5)
    number = 100
    replay()
    assert out.tolist() == [15, 15]


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_recorded_step_is_the_step(
    images: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Learning rate, data, noise and crops of each replay are its own. Three steps run plainly, five are replayed."""
    graphed, calls = change(images, cuda_graph=True, log_every=1), []
    real = loop.DiffusionPolicy.forward
    monkeypatch.setattr(loop.DiffusionPolicy, "forward", lambda *given: (calls.append(1), real(*given))[1])
    found = train(graphed, "pusht-demonstrations", tmp_path / "recorded")
    assert len(calls) == 2 * (graph.WARM_UP + 1)
    assert "of frames and columns lie on cpu" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(loop, "StepGraph", lambda update: update)
        expected = train(graphed, "pusht-demonstrations", tmp_path / "called")
    assert lines(tmp_path / "recorded") == lines(tmp_path / "called")
    assert contents(found) == contents(expected)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_recorded_run_resumes_exactly(images: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_resumes_exactly(change(images, cuda_graph=True, log_every=3), tmp_path, monkeypatch)


@pytest.mark.parametrize("data_device", ["auto", "cpu"])
def test_the_way_through_the_device_is_the_same_training(
    images: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_device: str
) -> None:
    """Bit for bit, without a graph."""
    expected = train(images, "pusht-demonstrations", tmp_path / "processor")
    pretend(monkeypatch)
    found = train(change(images, data_device=data_device), "pusht-demonstrations", tmp_path / "device")
    assert contents(found) == contents(expected)
    assert lines(tmp_path / "device") == lines(tmp_path / "processor")


# The host never waits


class Left(Exception):
    pass


def leave_after(patch: pytest.MonkeyPatch, step: int, watch: Callable[[int], None] = lambda done: None) -> None:
    """The run ends as by a power cut when this many steps are done; before that, `watch` is told of each."""
    real = Metrics.tick

    def tick(self: Metrics, done: int) -> None:
        real(self, done)
        watch(done)
        if done == step:
            raise Left

    patch.setattr(Metrics, "tick", tick)


def assert_resumes_exactly(recipe: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was left after six steps and gone on with is the run that was not."""
    straight = train(recipe, "pusht-demonstrations", folder / "straight")
    with monkeypatch.context() as patch:
        leave_after(patch, 6)
        with pytest.raises(Left):
            train(recipe, "pusht-demonstrations", folder / "broken")
    resumed = train(recipe, "pusht-demonstrations", folder / "broken", resume=True)
    assert contents(resumed) == contents(straight)
    assert lines(folder / "broken") == lines(folder / "straight")


class OneDevice(TorchDispatchMode):
    """Fails where an operation has tensors of two devices, but for copies that nobody waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        devices = {t.device.type for t in tree_leaves((args, kwargs, out)) if torch.is_tensor(t)}
        if "meta" in devices:
            self.seen.add(str(func))
            assert devices == {"meta"} or (kwargs or {}).get("non_blocking"), f"{func} on {devices}"
        return out


@pytest.mark.parametrize("denoiser", ["unet", "transformer"])
@pytest.mark.parametrize("data_device", ["auto", "cpu"])
def test_a_step_asks_for_no_value(
    images: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_device: str, denoiser: str
) -> None:
    """Tensors of the device `meta` have none: item(), tolist(), nonzero(), bool() and copies to the host raise."""
    monkeypatch.setattr(loop, "choose_device", lambda name: "meta")
    monkeypatch.setattr(loop, "is_cuda", lambda device: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**12, 10**12))
    monkeypatch.setattr(losses, "_arrived", lambda event: False)  # the numbers of a step are read when they are there
    monkeypatch.setattr(torch.optim, "AdamW", Unfused)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # `meta` knows of no autocast
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    seldom = change(images, log_every=100, save_every=100, steps=100, data_device=data_device)
    policy = replace(images.policy, denoiser=denoiser, prediction_type="v_prediction", transformer_dim=16)
    with ExitStack() as stack, pytest.raises(Left):
        watch = OneDevice()
        leave_after(monkeypatch, 4, lambda done: stack.enter_context(watch) if done == 1 else None)
        train(replace(seldom, policy=policy), "pusht-demonstrations", tmp_path / "run")
    assert {"aten.convolution_backward.default", "aten.index.Tensor", "aten.where.self"} <= watch.seen


class Unfused(torch.optim.AdamW):
    """PyTorch's fused kernel knows no `meta`; what is asked of it is that it reads a flag on the device."""

    def __init__(self, params: Any, **settings: Any):
        assert settings.pop("fused")
        super().__init__(params, **settings)

    def step(self) -> None:
        assert self.found_inf.device.type == "meta"


@pytest.mark.parametrize("bad", [lambda x: x.item(), lambda x: x.nonzero(), lambda x: x.tolist(), lambda x: bool(x)])
def test_a_step_that_asked_would_be_found(bad: Any) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        bad(torch.zeros((), device="meta"))


def test_a_step_that_sent_something_would_be_found() -> None:
    with pytest.raises(AssertionError, match=r"aten._to_copy.default on \{"), OneDevice():
        torch.zeros(3).to("meta")


# Small parts


def test_each_keeps_what_holds_the_tensors() -> None:
    given = [({"a": torch.ones(2), "b": "name"}, None), [torch.zeros(1)]]
    found = each(given, lambda tensor: tensor + 1)
    assert found[0][0]["a"].tolist() == [2, 2] and found[0][0]["b"] == "name"
    assert found[0][1] is None and found[1][0].tolist() == [1] and isinstance(found[0], tuple)
    assert given[1][0].tolist() == [0]


def test_what_is_sent_keeps_its_order_of_memory() -> None:
    images = torch.zeros(2, 4, 4, 3).movedim(-1, 1)
    assert send({"image": images}, "meta")["image"].stride() == images.stride()


@pytest.mark.parametrize(("device", "processes"), [("cpu", 1), ("mps", 1), ("cuda:0", 2)])
def test_what_cannot_be_recorded_is_refused(device: str, processes: int) -> None:
    with pytest.raises(ConfigError, match=rf"cuda_graph: expected one process on a CUDA .* {processes} on {device}"):
        check_graph(device, processes)
    check_graph("cuda:1", 1)


def test_a_run_on_the_processor_refuses_a_graph(recipe: Recipe, demonstrations: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cuda_graph"):
        train(change(recipe, cuda_graph=True), demonstrations, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_batch_of_another_shape_is_refused_not_repeated() -> None:
    step = StepGraph(lambda number, batch: batch["x"].sum())
    for number in range(5):
        assert step(number, {"x": torch.full((2,), float(number))}).item() == 2 * number
    with pytest.raises(ConfigError, match=r"cuda_graph: a batch's tensor: expected \(2,\), got \(1,\)"):
        step(5, {"x": torch.ones(1)})


def test_compiled_modules_train_as_plain_ones(images: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch.compile takes them apart, without making kernels of that, which takes minutes. Another learning rate,
    noise and crop each step compile nothing anew."""
    real = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: real(self, backend="aot_eager", fullgraph=True))
    torch._dynamo.reset()
    each_step = change(images, log_every=1)
    train(each_step, "pusht-demonstrations", tmp_path / "plain")
    counters = torch._dynamo.utils.counters
    counters.clear()
    train(change(each_step, compile=True), "pusht-demonstrations", tmp_path / "compiled")
    assert counters["stats"]["unique_graphs"] == 2  # encoder and U-Net
    for one, other in zip(lines(tmp_path / "plain"), lines(tmp_path / "compiled"), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert other["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-3)


# With a GPU

GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none"),
]
on_a_gpu = [
    pytest.param({}, marks=GPU, id="plain"),
    pytest.param({"cuda_graph": True}, marks=GPU, id="graph"),
    pytest.param({"data_device": "cpu"}, marks=GPU, id="copied"),
    pytest.param({"cuda_graph": True, "mixed_precision": "bf16"}, marks=GPU, id="graph-bf16"),
    pytest.param({"cuda_graph": True, "compile": True}, marks=[*GPU, pytest.mark.slow], id="graph-compiled"),
]


@pytest.mark.parametrize("settings", on_a_gpu)
def test_a_gpu_trains_as_a_processor(images: Recipe, tmp_path: Path, settings: dict[str, Any]) -> None:
    """Of eight steps at least four are replayed, if they are recorded."""
    each_step = change(images, log_every=1)
    train(change(each_step, device="cpu"), "pusht-demonstrations", tmp_path / "cpu")
    train(change(each_step, device="cuda", **settings), "pusht-demonstrations", tmp_path / "gpu")
    near = 0.03 if "mixed_precision" in settings else 1e-3
    for one, other in zip(lines(tmp_path / "cpu"), lines(tmp_path / "gpu"), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=near)
        assert other["learning_rate"] == one["learning_rate"]


@pytest.mark.parametrize("settings", on_a_gpu[:2])
def test_a_run_on_a_gpu_resumes_exactly(
    images: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """With cuDNN's deterministic kernels, without which a run on a GPU is not even its own repetition."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    # Max pooling has no deterministic gradient in channels-last memory: key points only.
    recipe = change(images, device="cuda", log_every=3, observations=SEES[1:], **settings)
    assert_resumes_exactly(recipe, tmp_path, monkeypatch)


@pytest.mark.parametrize("settings", on_a_gpu)
def test_the_host_of_a_gpu_never_waits(
    images: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """CUDA itself says so, from the step after the recording on."""
    strict = graph.WARM_UP + 2
    monkeypatch.setattr(losses, "_arrived", lambda event: False)
    seldom = change(images, device="cuda", log_every=100, save_every=100, steps=100, **settings)
    leave_after(
        monkeypatch,
        12,
        lambda done: torch.cuda.set_sync_debug_mode("error" if done == strict else 0) if done in (strict, 12) else None,
    )
    try:
        with pytest.raises(Left):
            train(seldom, "pusht-demonstrations", tmp_path / "run")
    finally:
        torch.cuda.set_sync_debug_mode(0)
