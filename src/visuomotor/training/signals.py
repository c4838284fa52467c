"""Ctrl-C and SIGTERM as a wish to stop, which the loop fulfils when the running step is done."""

import signal
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_signals() -> Generator[list[int]]:
    """Yields a list that gets the number of the first SIGINT or SIGTERM; a second one acts as it always did."""
    caught: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, _frame: Any) -> None:
        caught.append(number)
        for known, handler in before.items():
            signal.signal(known, handler)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    except ValueError:  # not the main thread: whoever runs it there stops it in another way
        before.clear()
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
