"""A step of training as a CUDA graph: recorded once, then launched as a whole, with no Python between its kernels."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from visuomotor.data.loading import each
from visuomotor.errors import ConfigError, mismatch

WARM_UP = 3
"""Calls that run plainly: libraries choose their kernels, torch.compile compiles, AdamW makes its moments."""

Step = Callable[[int, Any], Tensor]


class StepGraph:
    """A step's function, of which the fourth call is recorded, and replayed from then on with other inputs.

    What it computes may depend on the tensors in its inputs, and on tensors that change in place, but on no number that
    Python holds: the one of the recording would stay. A learning rate is a tensor, therefore.

    Args:
        step: Takes the step's number, which it may use in errors alone, and its inputs. Nothing in it makes the host
            wait, and no gradient is left when it returns.
    """

    def __init__(self, step: Step):
        self._step, self._calls = step, 0
        self._inputs: Any = None
        self._replay: Callable[[], None] | None = None
        self._output: Tensor | None = None

    def __call__(self, number: int, inputs: Any) -> Tensor:
        """Takes the step.

        Raises:
            ConfigError: The inputs have other shapes than those recorded.
        """
        self._calls += 1
        if self._calls <= WARM_UP:
            return _aside(lambda: self._step(number, inputs))
        if self._replay is None:
            self._inputs = each(inputs, torch.clone)
            self._replay, self._output = _record(lambda: self._step(number, self._inputs))
        else:
            _fill(self._inputs, inputs)
        self._replay()
        assert self._output is not None
        return self._output


def check_graph(device: str, processes: int) -> None:
    """Refuses what cannot be recorded.

    Raises:
        ConfigError: There is no CUDA device, or several processes exchange gradients.
    """
    if torch.device(device).type != "cuda" or processes > 1:
        found = f"{processes} on {device}"
        raise ConfigError(mismatch("cuda_graph", "one process on a CUDA device", found, "leave it out"))


def _fill(recorded: Any, given: Any) -> None:
    """Copies the tensors of `given` to where those of `recorded` lie."""
    for there, tensor in zip(_tensors(recorded), _tensors(given), strict=True):
        if there.shape != tensor.shape:
            shapes, advice = (tuple(there.shape), tuple(tensor.shape)), "leave out what makes batches differ in size"
            raise ConfigError(mismatch("cuda_graph: a batch's tensor", *shapes, advice))
        there.copy_(tensor)


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    each(value, note)
    return found


def _aside(run: Callable[[], Tensor]) -> Tensor:
    """On a stream of its own, as CUDA wants it of calls before a recording."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        output = run()
    torch.cuda.current_stream().wait_stream(stream)
    return output


def _record(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """What replays the kernels that `run` launches, and the tensor where each replay leaves its output."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # another thread gathers the coming batches
        output = run()
    return graph.replay, output
