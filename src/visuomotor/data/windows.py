"""Windows of frames around a row: which rows they cover, clamped at the episode's ends."""

from collections.abc import Iterable, Mapping

import numpy as np

from visuomotor.config import nearest
from visuomotor.errors import DatasetError, mismatch

TOLERANCE = 1e-4  # seconds, LeRobot's


def steps_from_timestamps(
    delta_timestamps: Mapping[str, list[float]], fps: float, known: Iterable[str]
) -> dict[str, list[int]]:
    """Offsets in frames from offsets in seconds.

    Raises:
        DatasetError: A key that the data set does not have, or an offset between two frames.
    """
    known = list(known)
    steps = {}
    for name, offsets in delta_timestamps.items():
        if name not in known:
            found = f"did you mean {nearest(name, known)}?"
            raise DatasetError(mismatch(f"delta_timestamps {name!r}", f"one of {known}", "an unknown name", found))
        if not offsets:
            raise DatasetError(mismatch(f"delta_timestamps {name!r}", "one offset or more", "none", "leave it out"))
        steps[name] = [round(offset * fps) for offset in offsets]
        for offset, step in zip(offsets, steps[name], strict=True):
            if abs(offset - step / fps) > TOLERANCE:
                expected = f"multiples of 1 / {fps:g} s, within {TOLERANCE:g} s"
                advice = f"the nearest is {step / fps:g}"
                raise DatasetError(mismatch(f"delta_timestamps {name!r}", expected, offset, advice))
    return steps


def window_rows(
    rows: np.ndarray, steps: list[int], starts: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of each window, and which of them are padding.

    Args:
        rows: (B,) the rows that the windows are relative to.
        steps: T offsets in frames.
        starts: (B,) the first row of each one's episode.
        ends: (B,) one past its last row.

    Returns:
        (B, T) int64 rows, those outside of the episode replaced by its first or last, and (B, T) bool, True for these.
    """
    wanted = rows[:, None] + np.asarray(steps, np.int64)
    first, last = starts[:, None], ends[:, None] - 1
    return np.clip(wanted, first, last), (wanted < first) | (wanted > last)
