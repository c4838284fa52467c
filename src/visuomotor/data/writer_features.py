"""What a data set may hold, and whether the values of a frame are that."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from visuomotor.config import nearest
from visuomotor.data.writer_tables import IMAGE_TYPES
from visuomotor.errors import DatasetError, mismatch

DEFAULTS = {
    name: {"dtype": dtype, "shape": [1], "names": None}
    for name, dtype in (
        ("timestamp", "float32"),
        ("frame_index", "int64"),
        ("episode_index", "int64"),
        ("index", "int64"),
        ("task_index", "int64"),
    )
}
"""Features that every data set has; the writer fills them."""
NUMBERS = (
    "bool",
    "float16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
)
DTYPES = (*IMAGE_TYPES, "string", *NUMBERS)
FROM = {"f": "fiu", "i": "iu", "u": "iu", "b": "b"}
"""What each kind of number is made from: a float does not become an integer unseen, nor a number a truth value."""
Feature = Mapping[str, Any]


def check_fps(fps: float) -> float:
    """Frames per second, finite and above 0."""
    if not isinstance(fps, int | float) or isinstance(fps, bool) or not 0 < fps < math.inf:
        raise DatasetError(mismatch("fps", "frames per second, above 0", repr(fps), "take the rate of the recording"))
    return fps


def check_features(features: Mapping[str, Feature]) -> dict[str, dict[str, Any]]:
    """Features as meta/info.json has them, images as (H, W, 3), and those that the writer fills behind them.

    Raises:
        DatasetError: A name, type or shape that cannot be stored, or no `action`.
    """
    if "action" not in features:
        advice = "add the actions, or name that feature `action`"
        raise DatasetError(mismatch("features", "`action` among them", list(features), advice))
    checked = {name: _check_feature(name, feature) for name, feature in features.items()}
    return checked | {name: dict(feature) for name, feature in DEFAULTS.items()}


def check_name(name: str) -> None:
    """Names become those of folders, and must not lead out of the data set."""
    if not name.strip(".") or set(name) & set('/\\:{}"*?<>|\0'):
        raise DatasetError(mismatch("features", "names that can be a folder's", repr(name), "take another"))


def _check_feature(name: str, feature: Feature) -> dict[str, Any]:
    check_name(name)
    if name in DEFAULTS or name == "task":
        advice = f"leave it out: the writer fills {', '.join(DEFAULTS)} and task"
        raise DatasetError(mismatch("features", "features of your own", name, advice))
    dtype = feature.get("dtype")
    if dtype not in DTYPES:
        advice = f"did you mean {nearest(str(dtype), DTYPES)}?"
        raise DatasetError(mismatch(f"features: {name}: dtype", f"one of {list(DTYPES)}", repr(dtype), advice))
    shape = list(feature.get("shape") or ())
    if not 1 <= len(shape) <= 5 or not all(isinstance(size, int) and size > 0 for size in shape):
        found, advice = feature.get("shape"), "a single number has the shape (1,)"
        raise DatasetError(mismatch(f"features: {name}: shape", "one to five sizes above 0", found, advice))
    names = feature.get("names")
    if dtype in IMAGE_TYPES:
        shape, names = list(image_shape(name, feature)), ["height", "width", "channels"]
    elif dtype == "string" and shape != [1]:
        raise DatasetError(mismatch(f"features: {name}: shape", "(1,), one text", tuple(shape), "split it"))
    elif isinstance(names, list | tuple):
        names = [str(one) for one in names]
        if len(shape) == 1 and len(names) != shape[0]:
            advice = "name every dimension, or none"
            raise DatasetError(mismatch(f"features: {name}: names", f"{shape[0]} of them", len(names), advice))
    return {"dtype": dtype, "shape": shape, "names": names}


def image_shape(name: str, feature: Feature) -> tuple[int, int, int]:
    """(H, W, 3), whichever way round the feature has it."""
    shape, names = tuple(feature["shape"]), feature.get("names")
    first = str(names[0]) if isinstance(names, list | tuple) and names else ""
    if len(shape) == 3 and shape[0] == 3 and (shape[2] != 3 or first.startswith("channel")):
        shape = (*shape[1:], 3)
    if len(shape) != 3 or shape[2] != 3:
        advice = "images have three colours; store another quantity as numbers"
        raise DatasetError(mismatch(f"features: {name}: shape", "(height, width, 3)", shape, advice))
    return shape


def check_value(name: str, value: Any, feature: Feature) -> Any:
    """A frame's value of the feature's type and shape, one number for (1,), copied.

    Raises:
        DatasetError: It has another shape or type, does not fit into the type, or is not finite.
    """
    dtype, shape = feature["dtype"], tuple(feature["shape"])
    if dtype == "string":
        if not isinstance(value, str):
            raise DatasetError(mismatch(name, "a text", type(value).__name__, "pass a str"))
        return value
    found = _to_numpy(name, value)
    expected = f"{dtype} of shape {shape}"
    if found.shape != shape and not (shape == (1,) and found.shape == ()):
        raise DatasetError(mismatch(name, expected, f"shape {found.shape}", "pass what `features` says"))
    if found.dtype.kind not in FROM[np.dtype(dtype).kind]:
        raise DatasetError(mismatch(name, expected, found.dtype, "convert it, or correct `features`"))
    with np.errstate(over="ignore"):
        kept = found.astype(dtype)
    if kept.dtype.kind == "f":
        if not np.isfinite(kept).all():
            raise DatasetError(mismatch(name, f"finite {expected}", found.tolist(), "leave the frame out, or mend it"))
    elif not (kept == found).all():
        raise DatasetError(mismatch(name, expected, found.tolist(), "take a larger type in `features`"))
    return kept.reshape(() if shape == (1,) else shape)


def check_image(name: str, value: Any, shape: tuple[int, int, int]) -> np.ndarray:
    """A frame's image as (H, W, 3) uint8, copied.

    Raises:
        DatasetError: It is no image of that size, or floats leave [0, 1].
    """
    found = _to_numpy(name, value)
    expected = f"{shape} or {(3, *shape[:2])}, uint8 or float in [0, 1]"
    if found.shape != shape and found.shape == (3, *shape[:2]):
        found = found.transpose(1, 2, 0)
    if found.shape != shape or found.dtype.kind not in "uf" or (found.dtype.kind == "u" and found.dtype != np.uint8):
        raise DatasetError(mismatch(name, expected, f"{found.dtype} of shape {found.shape}", "convert the image"))
    if found.dtype.kind == "f":
        if not (found.min() >= 0 and found.max() <= 1):  # so put, NaN is refused as well
            range_ = f"floats from {found.min():g} to {found.max():g}"
            raise DatasetError(mismatch(name, expected, range_, "divide by the largest level"))
        found = np.rint(found * 255)
    return np.array(found, np.uint8, order="C")


def _to_numpy(name: str, value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # a tensor, without importing torch
        value = value.detach().cpu()
    try:
        found = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise DatasetError(mismatch(name, "numbers", type(value).__name__, str(error))) from error
    if found.dtype.kind not in "biuf":
        raise DatasetError(mismatch(name, "numbers", f"{found.dtype}", "pass an array, a tensor or a number"))
    return found
