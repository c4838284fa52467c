"""The frame store: a camera's frames, decoded once into one memory-mapped uint8 array in the user's cache folder."""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from threading import Event
from uuid import uuid4

import numpy as np

from visuomotor.errors import DatasetError, mismatch
from visuomotor.files import cache_folder

FORMAT_VERSION = 1  # part of every fingerprint: raise it when stored frames would come out differently
STALE = 24 * 3600  # seconds after which a draft is that of a process that was killed

Segment = Callable[[], Iterator[tuple[int, np.ndarray]]]
"""Decodes a stretch of a camera's frames: yields the first row and (n, H, W, C) uint8 frames from there on."""


@dataclass(frozen=True)
class Camera:
    """Where the frames of one camera come from."""

    shape: tuple[int, int, int, int]
    """(N, H, W, C)."""
    fingerprint: str
    """Changes whenever the frames would: names, sizes and times of the files, and which of their frames are wanted."""
    segments: Sequence[Segment]
    """Together they yield every row once."""
    threads: int | None = None
    """Segments decoded at a time; None takes every processor."""


def fingerprint(*parts: object) -> str:
    """A short hash of anything whose `repr` or bytes tell it apart."""
    digest = blake2b(digest_size=16)
    for part in (FORMAT_VERSION, *parts):
        content = part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode()
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


def file_identity(path: Path, name: str) -> tuple[str, int, int]:
    """What tells a file from another without reading it: its name in the data set, size and time of change."""
    status = path.stat()
    return name, status.st_size, status.st_mtime_ns


def open_frames(name: str, camera: Camera) -> np.ndarray:
    """The camera's frames, read-only; decoded now if the cache does not hold them.

    Raises:
        DatasetError: The frames cannot be decoded, or the cache's disk is too small. Nothing is left behind.
    """
    target = cache_folder() / "frames" / f"{camera.fingerprint}.npy"
    if not target.exists():
        _build(name, camera, target)
    return np.load(target, mmap_mode="r", allow_pickle=False)


def _build(name: str, camera: Camera, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target.parent)
    size, free = int(np.prod(camera.shape)), shutil.disk_usage(target.parent).free
    if size > free:
        expected, found = f"{size / 1e9:.1f} GB free for its frames", f"{free / 1e9:.1f} GB in {target.parent}"
        raise DatasetError(mismatch(name, expected, found, "let VISUOMOTOR_CACHE name a folder on a larger disk"))
    draft = target.with_name(f".{target.stem}.{uuid4().hex[:8]}.tmp")
    try:
        frames = np.lib.format.open_memmap(draft, mode="w+", dtype=np.uint8, shape=camera.shape)
        _decode(name, camera, frames)
        frames.flush()
        # Of two processes that build at once the later one replaces equal content, which no reader notices.
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Deletes drafts of processes that were killed."""
    for draft in folder.glob(".*.tmp"):
        with suppress(FileNotFoundError):  # its process may move it just now
            if time.time() - draft.stat().st_mtime > STALE:
                draft.unlink()


def _decode(name: str, camera: Camera, frames: np.ndarray) -> None:
    """All segments into `frames`, several at a time: decoders release Python's lock."""
    from rich.console import Console
    from rich.progress import Progress

    threads = camera.threads or os.cpu_count() or 1
    console = Console(stderr=True)
    filled, stopped = np.zeros(len(frames), np.uint8), Event()
    with (
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
        ThreadPoolExecutor(threads) as pool,
    ):
        bar = progress.add_task(f"Decoding {name}", total=len(frames))

        def run(segment: Segment) -> None:
            for row, block in segment():
                frames[row : row + len(block)] = block
                filled[row : row + len(block)] += 1
                progress.advance(bar, len(block))
                if stopped.is_set():
                    return

        jobs = [pool.submit(run, segment) for segment in camera.segments]
        try:
            done, _ = wait(jobs, return_when=FIRST_EXCEPTION)
            for job in done:
                job.result()
        finally:
            stopped.set()  # on an error or Ctrl-C the other segments end too
            pool.shutdown(cancel_futures=True)
    assert (filled == 1).all(), f"{name}: segments do not yield every row once"
