"""The frame store's folder: what it holds, how much it may hold, and what goes when that is too much."""

import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Generator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from visuomotor.errors import ConfigError, DatasetError, mismatch
from visuomotor.files import cache_folder, hold, sync_one, write_json

LIMIT = "VISUOMOTOR_CACHE_LIMIT"
"""The environment variable that limits the folder, in GB (1e9 bytes)."""
SHARE = 0.5  # of what is free or the folder's already: the limit where none is set
DRAFT = 60  # seconds that a draft may lack the lock of the process that writes it
KINDS = {".npy": "decoded", ".arrow": "encoded"}


class RoomError(DatasetError):
    """Decoded frames for which there is no room, and which cannot stay encoded."""


@dataclass(frozen=True)
class Store:
    """A camera's frames in the cache folder."""

    path: Path
    camera: str
    source: str
    """The demonstrations that they are of; empty where it is not known."""
    shape: tuple[int, ...]
    """(N, H, W, C)."""
    kind: str
    """`decoded`, or `encoded`: images of parquet files, from where single ones are slow to read."""
    size: int
    """Bytes."""
    last_used: float
    """Seconds since 1970."""

    def delete(self) -> None:
        """A process that has the file mapped goes on with it; the disk has the room again when it ends."""
        self.path.unlink(missing_ok=True)
        self.path.with_suffix(".json").unlink(missing_ok=True)


def folder() -> Path:
    """Where the stores are."""
    found = cache_folder() / "frames"
    found.mkdir(exist_ok=True)
    return found


def stores() -> list[Store]:
    """Every store, the least recently used first."""
    found = []
    for path in folder().iterdir():
        if path.suffix in KINDS and not path.name.startswith("."):
            with suppress(FileNotFoundError):  # another process may delete it just now
                found.append(_describe(path))
    return sorted(found, key=lambda store: (store.last_used, store.path.name))


def limit() -> int:
    """Bytes that all stores together may take."""
    given = os.environ.get(LIMIT, "")
    if not given:
        return int(SHARE * (shutil.disk_usage(folder()).free + _held()))
    try:
        gigabytes = float(given)
    except ValueError:
        gigabytes = -1.0
    if not gigabytes >= 0:
        raise ConfigError(mismatch(LIMIT, "a number of GB, 0 or more", repr(given), "0 keeps every camera encoded"))
    return int(min(gigabytes, 1e9) * 1e9)


def free_bytes() -> int:
    """What the disk has left, whatever the limit is."""
    return shutil.disk_usage(folder()).free


def in_use() -> int:
    """Bytes of the stores that processes have open, and of those being written."""
    total = 0
    for path in folder().iterdir():
        if path.suffix in (*KINDS, ".tmp"):
            with suppress(FileNotFoundError):
                lock = hold(path)
                if lock is None:
                    total += path.stat().st_size
                else:
                    os.close(lock)
    return total


def make_room(size: int) -> bool:
    """Deletes the least recently used stores until `size` more bytes are within the limit.

    Stores that a process has open are left alone. Where all others would not be enough, nothing is deleted.

    Returns:
        Whether there is room.
    """
    _sweep()
    excess, unused = _held() + size - limit(), []
    for store in stores():
        if excess <= 0:
            break
        with suppress(FileNotFoundError):
            lock = hold(store.path)
            if lock is not None:
                unused.append((store, lock))
                excess -= store.size
    for store, lock in unused:
        if excess <= 0:
            store.delete()
        os.close(lock)
    return excess <= 0


def open_store(path: Path) -> BinaryIO | None:
    """The file of a store, to be mapped and then closed; None if there is none.

    It counts as used now, and as in use until it is neither open nor mapped: a mapping shares the file's lock.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    with suppress(OSError):  # some file systems in a network know no locks
        fcntl.flock(file, fcntl.LOCK_SH)
    with suppress(OSError):  # a cache of others, which this user may only read
        os.utime(path.with_suffix(".json"))
    return file


@contextmanager
def alone(path: Path, name: str) -> Generator[None]:
    """Keeps other processes from writing the same store meanwhile: they wait, and find it written.

    Args:
        path: The store.
        name: The camera, for those who wait.
    """
    mark = path.with_name(f".{path.stem}.lock")
    try:
        mark.touch()
        lock = hold(mark)
        if lock is None:
            print(f"{name}: waiting for another process, which is storing the same frames", file=sys.stderr)
            lock = os.open(mark, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:
        # Who held it has just ended, or nobody may write here: at worst the same store is written twice, or the
        # writing says what is wrong.
        yield
        return
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            if mark.stat().st_ino == os.fstat(lock).st_ino:  # not that of one who came later
                mark.unlink()
        os.close(lock)


@contextmanager
def add_store(path: Path, name: str, source: str, shape: tuple[int, ...], size: int) -> Generator[Path]:
    """Yields the name of a draft to write; moves it to `path` when the block ends well, and leaves nothing if not.

    Args:
        path: The store.
        name: The camera.
        source: What the frames are of.
        shape: (N, H, W, C).
        size: Bytes that it will take.

    Raises:
        DatasetError: The disk is too small.
    """
    free = free_bytes()
    if size > free:
        expected, found = f"{size / 1e9:.1f} GB free for its frames", f"{free / 1e9:.1f} GB in {path.parent}"
        raise RoomError(mismatch(name, expected, found, "let VISUOMOTOR_CACHE name a folder on a larger disk"))
    draft = path.with_name(f".{path.stem}.{uuid4().hex[:8]}.tmp")
    draft.touch()
    try:
        with closing(_Lock(draft)):
            yield draft
            sync_one(draft)  # a power cut leaves the whole file or none
            about = {"camera": name, "source": source, "shape": list(shape)}
            write_json(path.with_suffix(".json"), about)
            # Of two processes that build at once the later one replaces equal content, which no reader notices.
            draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def clear() -> tuple[int, int]:
    """Deletes every store. What a process is writing just now stays.

    Returns:
        How many, and their bytes.
    """
    _sweep()
    found = stores()
    for store in found:
        store.delete()
    for orphan in folder().glob("*.json"):
        orphan.unlink(missing_ok=True)
    return len(found), sum(store.size for store in found)


def show() -> None:
    """Prints a table of the stores, the most recently used first, and how much they may take."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    found = stores()[::-1]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in ("camera", "frames", "shape", "kind", "size", "last used", "source"):
        table.add_column(title, overflow="fold")
    for store in found:
        count, *shape = store.shape or ("?", "?")
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(store.last_used))
        row = (store.camera, count, "x".join(map(str, shape)), store.kind, in_bytes(store.size), used, store.source)
        table.add_row(*map(str, row))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    if found:
        console.print(table)
    total = in_bytes(sum(store.size for store in found))
    print(f"{len(found)} in {folder()}: {total} of at most {in_bytes(limit())} ({LIMIT})")


def in_bytes(size: int) -> str:
    """In MB or GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


class _Lock:
    """A lock on a file while it is written."""

    def __init__(self, path: Path):
        self.number = hold(path)

    def close(self) -> None:
        if self.number is not None:
            os.close(self.number)


def _describe(path: Path) -> Store:
    status, about, used = path.stat(), {}, 0.0
    with suppress(FileNotFoundError, ValueError):  # of an earlier version, or cut off: it can still be deleted
        about = dict(json.loads(path.with_suffix(".json").read_text()))
        used = path.with_suffix(".json").stat().st_mtime
    return Store(
        path=path,
        camera=str(about.get("camera", "?")),
        source=str(about.get("source", "")),
        shape=_shape(about.get("shape")),
        kind=KINDS[path.suffix],
        size=status.st_size,
        last_used=used or status.st_mtime,
    )


def _shape(found: Any) -> tuple[int, ...]:
    return tuple(found) if isinstance(found, list) and len(found) == 4 else ()


def _held() -> int:
    """Bytes of the folder, drafts included."""
    total = 0
    for path in folder().iterdir():
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def _sweep() -> None:
    """Deletes drafts of processes that were killed: they no longer hold their locks."""
    for draft in folder().glob(".*.tmp"):
        with suppress(FileNotFoundError):
            lock = hold(draft)
            if lock is not None:
                if time.time() - draft.stat().st_mtime > DRAFT:
                    draft.unlink()
                os.close(lock)
