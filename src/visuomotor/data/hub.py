"""Data sets from the Hugging Face hub."""

import json
import re
from collections.abc import Sequence
from glob import escape
from pathlib import Path

from visuomotor.data.lerobot import needed_files
from visuomotor.data.lerobot_meta import LEGACY, VERSION
from visuomotor.errors import DatasetError, mismatch

FORMATS = (VERSION, *LEGACY)
REVISIONS = {VERSION: 0, "main": 0, "v2.1": 1, "v2.0": 2}
"""Where to look, and the newest of `FORMATS` that may be there: LeRobot tags a data set with its format's version."""


def is_name(source: str) -> bool:
    """Whether it can be a name on the hub: `owner/name`."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", source) is not None


def download(name: str, episodes: Sequence[int] | None = None, revision: str | None = None) -> Path:
    """The folder in the hub's own cache that holds the data set; what is not there is downloaded first.

    Args:
        name: `owner/name`.
        episodes: Only the files that these need; None takes all.
        revision: A branch, tag or commit; None takes the newest format that the repository has.

    Raises:
        DatasetError: The hub is not reached and the cache does not hold it, or the hub does not have it.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError

    folder = _find(name, {revision: 0} if revision else REVISIONS)
    wanted = ["data/*", "videos/*"] if episodes is None else list(map(escape, needed_files(folder, episodes)))
    try:
        return _snapshot(name, folder.name, ["meta/*", *wanted])
    except DatasetError as error:
        if not isinstance(error.__cause__, LocalEntryNotFoundError):
            raise
        return _snapshot(name, folder.name, ["meta/*", *wanted], offline=True)  # which tells the missing files


def _find(name: str, revisions: dict[str, int]) -> Path:
    """The folder of the revision with the newest format; meta/ is there. `revisions` are like `REVISIONS`."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RevisionNotFoundError

    found: list[tuple[int, Path]] = []
    failures: list[DatasetError] = []
    offline = False
    for revision, newest in revisions.items():
        if found and min(found)[0] <= newest:
            break
        try:
            folder = _snapshot(name, revision, ["meta/*"], offline)
            found.append((_format(folder), folder))
        except DatasetError as error:
            if not isinstance(error.__cause__, RevisionNotFoundError | EntryNotFoundError):
                raise
            failures.append(error)
            offline = offline or isinstance(error.__cause__, LocalEntryNotFoundError)  # do not wait for it again
    if found:
        return min(found)[1]
    telling = (error for error in failures if not isinstance(error.__cause__, RevisionNotFoundError))
    raise next(telling, failures[0])


def _format(folder: Path) -> int:
    """The place of its version in `FORMATS`, behind them for another. Damage is for the reader to tell."""
    if not (folder / "meta/info.json").is_file():
        return len(FORMATS)
    try:
        version = json.loads((folder / "meta/info.json").read_text(encoding="utf-8"))["codebase_version"]
    except (OSError, ValueError, TypeError, LookupError):
        return 0
    return FORMATS.index(version) if version in FORMATS else len(FORMATS)


def _snapshot(name: str, revision: str, patterns: list[str], offline: bool = False) -> Path:
    """The folder in the cache with the files that match, named by the commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, HTTPError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            name, repo_type="dataset", revision=revision, allow_patterns=patterns, local_files_only=offline
        )
        return Path(folder)
    except (HTTPError, EntryNotFoundError, HFValidationError, OSError) as error:
        reason = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else None
        found = " ".join(str(reason or error).split())
        advice = "pass a folder of LeRobot v3.0, a .zarr or .zarr.zip, or pusht-demonstrations, which needs no network"
        expected = "a folder, or a data set on the Hugging Face hub or in its cache"
        raise DatasetError(mismatch(name, expected, f"neither ({revision}: {found})", advice)) from error
