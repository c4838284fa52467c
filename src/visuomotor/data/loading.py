"""Batches of the coming steps, made ready in the background while the present one trains."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

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
