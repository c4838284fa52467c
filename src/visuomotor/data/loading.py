"""Batches of the coming steps, made ready in the background while the present one trains."""

import dataclasses
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor

Batch = TypeVar("Batch")


def prefetch(gather: Callable[[int], Batch], steps: Iterable[int], ahead: int = 2) -> Generator[Batch]:
    """Yields `gather(step)` for each step in turn, as a plain loop would, but begun before it is asked for.

    One thread gathers, step after step: frames that have to be decoded are spread over more of them further down.
    Closing the generator waits for the batch being gathered and drops those behind it.

    Args:
        gather: Makes the batch of a step. It must not depend on what happens between the steps.
        steps: Their numbers.
        ahead: Batches that are gathered before they are asked for; each takes its memory.

    Raises:
        Exception: What `gather` raised, when its step is reached.
    """
    coming = iter(steps)
    pool = ThreadPoolExecutor(1, thread_name_prefix="loading")
    try:
        waiting = deque(pool.submit(gather, step) for step in islice(coming, ahead))
        while waiting:
            batch = waiting.popleft().result()
            waiting.extend(pool.submit(gather, step) for step in islice(coming, 1))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)


def send(value: Batch, device: str) -> Batch:
    """The same value with its tensors on a GPU, by way of pinned memory: neither this thread nor the loop waits.

    The copies are in the queue of the device's default stream, which all threads share: what is computed later finds
    them there. Tensors that lie on the device already are not copied.
    """

    to_gpu = torch.device(device).type == "cuda"

    def move(tensor: Tensor) -> Tensor:
        return (tensor.pin_memory() if to_gpu and not tensor.is_cuda else tensor).to(device, non_blocking=True)

    return each(value, move)


def each(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same dictionaries, sequences and dataclasses with `function` of every tensor in them, in their order."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {name: each(part, function) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(each(part, function) for part in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: each(getattr(value, field.name), function) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **parts)
    return value
