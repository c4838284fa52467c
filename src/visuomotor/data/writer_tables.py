"""Columns of a LeRobot v3.0 data set as Arrow tables, with the types and metadata that LeRobot's libraries ask for."""

import json
import mmap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from visuomotor.data.writer_video import Pictures

IMAGE_TYPES = ("image", "video")
IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
LARGEST = 2**30  # bytes of images in one array, whose offsets are 32 bits wide
Features = dict[str, dict[str, Any]]


def stored_columns(features: Features) -> Iterator[str]:
    """The features that stand in the data files: all but videos."""
    return (name for name, feature in features.items() if feature["dtype"] != "video")


def data_schema(features: Features) -> pa.Schema:
    """Types of the data files' columns. The `datasets` library reads its own from the metadata."""
    columns = list(stored_columns(features))
    known = {name: _library_type(features[name]) for name in columns}
    metadata = {"huggingface": json.dumps({"info": {"features": known}})}
    return pa.schema([(name, _arrow_type(features[name])) for name in columns], metadata)


def _arrow_type(feature: dict[str, Any]) -> pa.DataType:
    if feature["dtype"] == "image":
        return IMAGE
    value = pa.string() if feature["dtype"] == "string" else pa.from_numpy_dtype(np.dtype(feature["dtype"]))
    *outer, size = feature["shape"]
    if not outer:
        return value if size == 1 else pa.list_(value, size)
    for _ in feature["shape"]:
        value = pa.list_(value)
    return value


def _library_type(feature: dict[str, Any]) -> dict[str, Any]:
    dtype, shape = feature["dtype"], list(feature["shape"])
    if dtype == "image":
        return {"_type": "Image"}
    if len(shape) > 1:
        return {"shape": shape, "dtype": dtype, "_type": f"Array{len(shape)}D"}
    value = {"dtype": dtype, "_type": "Value"}
    return value if shape == [1] else {"feature": value, "length": shape[0], "_type": "List"}


def data_table(schema: pa.Schema, columns: dict[str, np.ndarray], images: dict[str, Pictures]) -> pa.Table:
    """One episode's rows."""
    arrays = [
        _image_column(images[field.name]) if field.name in images else _column(columns[field.name], field.type)
        for field in schema
    ]
    return pa.table(arrays, schema=schema)


def _column(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    if values.dtype == object:
        return pa.array(values.tolist(), kind)
    array, layers = pa.array(np.ascontiguousarray(values).ravel()), []
    while pa.types.is_nested(kind):
        layers.append(kind)
        kind = kind.value_type
    array = array.cast(kind)
    for layer, size in zip(reversed(layers), reversed(values.shape[1:]), strict=True):
        if pa.types.is_fixed_size_list(layer):
            array = pa.FixedSizeListArray.from_arrays(array, type=layer)
        else:
            array = pa.ListArray.from_arrays(
                pa.array(np.arange(0, len(array) + 1, size), pa.int32()), array, type=layer
            )
    return array


def _image_column(pictures: Pictures) -> pa.ChunkedArray:
    """Images straight from their file, in arrays that are not too large."""
    with pictures.path.open("rb") as file:
        content = pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    ends = np.cumsum(pictures.sizes)
    arrays, first = [], 0
    while first < len(ends):
        start = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, start + LARGEST)))
        offsets = np.concatenate([[0], ends[first:last] - start]).astype(np.int32)
        part = content.slice(start, int(offsets[-1]))
        data = pa.Array.from_buffers(pa.binary(), last - first, [None, pa.py_buffer(offsets), part])
        names = pa.array([f"frame-{number:06d}.png" for number in range(first, last)])
        arrays.append(pa.StructArray.from_arrays([data, names], fields=list(IMAGE)))
        first = last
    return pa.chunked_array(arrays, IMAGE)


def episodes_table(records: Sequence[dict[str, Any]], schema: pa.Schema | None) -> pa.Table:
    """Rows of meta/episodes.

    Args:
        records: Numbers, texts, and arrays of statistics by column.
        schema: That of the rows already there; their columns, no more and no less, are written.
    """
    if schema is None:
        schema = pa.schema([(name, _record_type(name, value)) for name, value in records[0].items()])
    columns = [pa.array([_plain(record.get(field.name)) for record in records], field.type) for field in schema]
    return pa.table(columns, schema=schema)


def _record_type(name: str, value: Any) -> pa.DataType:
    if isinstance(value, np.ndarray):
        kind = pa.int64() if name.endswith("/count") else pa.float64()
        for _ in value.shape:
            kind = pa.list_(kind)
        return kind
    if isinstance(value, list):
        return pa.list_(pa.string())
    return pa.float64() if isinstance(value, float) else pa.int64()


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def tasks_table(tasks: Iterable[str]) -> pa.Table:
    """Tasks as pandas writes a column whose index is the text."""
    texts = list(tasks)
    described = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
        for name, kind, numpy in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    ]
    names = {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object"}
    metadata = {
        "index_columns": ["task"],
        "column_indexes": [names | {"metadata": {"encoding": "UTF-8"}}],
        "columns": described,
        "attributes": {},
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.3.3",
    }
    schema = pa.schema([("task_index", pa.int64()), ("task", pa.string())], {"pandas": json.dumps(metadata)})
    return pa.table([pa.array(range(len(texts)), pa.int64()), pa.array(texts, pa.string())], schema=schema)
