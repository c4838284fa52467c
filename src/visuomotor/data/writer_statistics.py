"""Statistics of single episodes, with the quantiles that LeRobot keeps beside them, and of all episodes together."""

from collections.abc import Sequence

import numpy as np

from visuomotor.data.statistics import aggregate, describe

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
Statistics = dict[str, np.ndarray]


def describe_column(values: np.ndarray) -> Statistics:
    """What `describe` gives for (N, *shape) numbers, and quantiles: the least value with such a share at or below it.

    Differs from LeRobot: its quantiles come from a histogram of 5000 bins, and are off by up to one of them.
    """
    flat = values.reshape(len(values), -1)
    levels = np.quantile(flat.astype(np.float64), list(QUANTILES.values()), axis=0, method="inverted_cdf")
    found = describe(flat) | dict(zip(QUANTILES, levels, strict=True))
    shape = values.shape[1:] or (1,)
    return {name: value if name == "count" else value.reshape(shape) for name, value in found.items()}


class Levels:
    """Counts how often each grey level occurs in a camera's frames, from which every statistic follows exactly.

    Differs from LeRobot: here every frame of an episode counts, there at least 100 do; and it adds levels up in
    float32, which puts its means off by 0.4 % and its deviations by a tenth and more. Large images are thinned alike.

    Attributes:
        frames: How many there were.
    """

    def __init__(self) -> None:
        self._counts = np.zeros((3, 256), np.int64)
        self.frames = 0

    def add(self, image: np.ndarray) -> None:
        """Takes an (H, W, 3) uint8 frame."""
        from PIL import Image

        longest = max(image.shape[:2])
        step = longest // 150 if longest >= 300 else 1
        thinned = Image.fromarray(np.ascontiguousarray(image[::step, ::step]))
        self._counts += np.reshape(thinned.histogram(), (3, 256))
        self.frames += 1

    def describe(self) -> Statistics:
        """Statistics of shape (3, 1, 1), of levels in [0, 1], and `count` (1,), the frames."""
        levels, total = np.arange(256) / 255, self._counts.sum(axis=1, keepdims=True)
        below = np.cumsum(self._counts, axis=1)
        mean = (self._counts * levels).sum(axis=1, keepdims=True) / total
        found = {
            "min": levels[(self._counts > 0).argmax(axis=1)],
            "max": levels[255 - (self._counts > 0)[:, ::-1].argmax(axis=1)],
            "mean": mean,
            "std": np.sqrt((self._counts * (levels - mean) ** 2).sum(axis=1) / total[:, 0]),
            "count": np.array([self.frames], np.int64),
        }
        found |= {name: levels[(below >= share * total).argmax(axis=1)] for name, share in QUANTILES.items()}
        return {name: value if name == "count" else np.reshape(value, (3, 1, 1)) for name, value in found.items()}


def aggregate_all(parts: Sequence[Statistics]) -> Statistics:
    """Statistics of several episodes taken together.

    As LeRobot 0.6.2 takes them, quantiles up to the median are the least of the episodes', those above it the greatest.
    """
    found = aggregate(parts)
    for name, share in QUANTILES.items():
        if all(name in part for part in parts):
            values = np.array([part[name] for part in parts], np.float64)
            found[name] = values.min(axis=0) if share <= 0.5 else values.max(axis=0)
    return found
