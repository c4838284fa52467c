"""Items that LeRobot returned for some rows, and how ours are held against them."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from visuomotor.data.dataset import Dataset


def samples(folder: Path, name: str) -> tuple[dict, dict[str, np.ndarray]]:
    """What was asked for, and the values by `index/field`."""
    return json.loads((folder / f"{name}.json").read_text()), load_file(folder / f"{name}.safetensors")


def check_samples(found: Dataset, items: dict[str, np.ndarray], indices: list[int], grey_levels: float = 0) -> None:
    """LeRobot's items against ours: names, types, shapes, and values, images to some grey levels."""
    row_of = {int(index): row for row, index in enumerate(found.arrays["index"])}
    for index in indices:
        item = found[row_of[index]]
        expected = {key.split("/")[1]: value for key, value in items.items() if key.startswith(f"{index}/")}
        assert set(item) == {*expected, "task"}
        assert item.pop("task") == "Push the T-shaped block onto the T-shaped target."
        for name, value in expected.items():
            ours = item[name].numpy()
            if name == "observation.image":
                # Floats in [0, 1]; the samples of videos were stored as the bytes they came from.
                assert ours.dtype == np.float32
                scale = 1 if value.dtype == np.uint8 else 255
                assert ours.shape == value.shape
                assert np.abs(ours * 255 - value.astype(np.float32) * scale).max() <= grey_levels + 1e-4
            else:
                np.testing.assert_array_equal(ours, value, strict=True)
