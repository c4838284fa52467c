"""One run a folder."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from visuomotor.errors import ConfigError, mismatch
from visuomotor.files import hold


@contextmanager
def lock(run: Path) -> Generator[None]:
    """Keeps a run's folder for this process; made if it is missing. A process that is killed lets go of it.

    Raises:
        ConfigError: Another process trains there.
    """
    run.mkdir(parents=True, exist_ok=True)
    path = run / "lock"
    path.touch()
    held = hold(path)
    if held is None:
        found = f"process {path.read_text().strip() or 'unknown'} at work there"
        advice = "wait until it has ended, or choose another --output"
        raise ConfigError(mismatch(str(run), "a folder that no other run writes to", found, advice))
    try:
        path.write_text(f"{os.getpid()}\n")  # for the message alone: what counts is the kernel's lock
        yield
    finally:
        os.close(held)
