"""Where files go and how they get there: written under a temporary name, then moved into place."""

import json
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


def cache_folder() -> Path:
    """`$VISUOMOTOR_CACHE`, or `visuomotor` in the user's cache folder; made if it is missing."""
    base = os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")
    folder = Path(os.environ.get("VISUOMOTOR_CACHE", Path(base) / "visuomotor"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def atomic_folder(target: str | Path) -> Generator[Path]:
    """Yields an empty folder beside `target`; renames it to `target` when the block ends well, else deletes it.

    A folder already at `target` is replaced, and stays as it was if the block fails.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{uuid4().hex[:8]}.tmp")
    draft.mkdir()
    try:
        yield draft
        if target.exists():
            old = draft.with_suffix(".old")
            target.rename(old)
            draft.rename(target)
            shutil.rmtree(old)
        else:
            draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def replacing(target: str | Path) -> Generator[Path]:
    """Yields a name beside `target` to write to, and moves that into its place when the block ends well."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{uuid4().hex[:8]}.tmp")
    try:
        yield draft
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def write_bytes(target: str | Path, content: bytes) -> None:
    """Writes a whole file or leaves the old one."""
    with replacing(target) as draft:
        draft.write_bytes(content)


def write_json(target: str | Path, content: object) -> None:
    """Writes `content` as indented JSON. NaN is refused: other readers do not take it."""
    write_bytes(target, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
