"""Data sets from the Hugging Face hub."""

import re
from pathlib import Path

from visuomotor.errors import DatasetError, mismatch

REVISIONS = ("v3.0", "main")  # LeRobot tags its data sets with the version of their format


def is_name(source: str) -> bool:
    """Whether it can be a name on the hub: `owner/name`."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", source) is not None


def download(name: str) -> Path:
    """The folder in the hub's own cache that holds the data set, downloaded first if it is not there.

    Raises:
        DatasetError: The hub is not reached and the cache does not hold it, or the hub does not have it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, RevisionNotFoundError

    cause: Exception | None = None
    for revision in REVISIONS:
        try:
            patterns = ["meta/*", "data/*", "videos/*"]
            folder = snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=patterns)
            return Path(folder)
        except (RevisionNotFoundError, EntryNotFoundError) as error:
            cause = error
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            cause = error
            break
    found = str(cause).strip().splitlines()[0]
    advice = "pass a folder of LeRobot v3.0, a .zarr or .zarr.zip, or pusht-demonstrations, which needs no network"
    expected = "a folder, or a data set on the Hugging Face hub or in its cache"
    raise DatasetError(mismatch(name, expected, f"neither ({found})", advice)) from cause
