"""The wire format, byte by byte where it matters."""

import struct
import tracemalloc

import msgpack
import numpy as np
import pytest
from visuomotor_client.protocol import DTYPES, ProtocolError, array_from, pack, unpack


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (2, 3), (1, 2, 3, 4)])
def test_arrays_return_as_they_went(dtype, shape):
    sent = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    for array in (sent, np.asfortranarray(sent), sent[::1], sent.astype(sent.dtype.newbyteorder(">"))):
        found = array_from(unpack(pack({"a": array}))["a"], "a")
        assert found.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(found, sent)


def test_an_array_is_a_map_of_dtype_shape_and_bytes():
    found = msgpack.unpackb(pack({"a": np.array([[1, 2]], np.float32)}))
    assert found == {"a": {"dtype": "float32", "shape": [1, 2], "data": struct.pack("<2f", 1, 2)}}


@pytest.mark.parametrize("value", [np.array([1]), np.array(["a"]), np.array([{}]), np.float32(1), object(), 1j])
def test_nothing_else_is_packed(value):
    with pytest.raises(ProtocolError, match="message: expected an array of uint8 or float32 or float64"):
        pack({"a": value})


GOOD = {"dtype": "float32", "shape": [1, 2], "data": bytes(8)}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "a: expected an array"),
        (GOOD | {"more": 1}, "a: expected an array"),
        (GOOD | {"dtype": "object"}, "a: expected dtype uint8 or float32 or float64, got 'object'"),
        (GOOD | {"dtype": "O"}, "got 'O'"),
        (GOOD | {"dtype": ["float32"]}, "expected dtype"),
        (GOOD | {"shape": 2}, "a: expected a shape of 8 positive sizes at most, got 2"),
        (GOOD | {"shape": [1, -2]}, "positive sizes"),
        (GOOD | {"shape": [True, 2]}, "positive sizes"),
        (GOOD | {"shape": [1.0, 2]}, "positive sizes"),
        (GOOD | {"shape": [1] * 9}, "positive sizes"),
        (GOOD | {"shape": [2**63] * 8}, "a: expected [0-9]* bytes for float32"),
        (GOOD | {"data": bytes(7)}, r"a: expected 8 bytes for float32 \[1, 2\], got 7; send it whole"),
        (GOOD | {"data": "12345678"}, "got str"),
    ],
)
def test_what_is_no_array(value, message):
    with pytest.raises(ProtocolError, match=message):
        array_from(value, "a")


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        b"\x93\x01\x02",  # cut short
        pack({"a": 1}) + b"\x00",  # and something behind
        b"\x01",
        b"\x91\x01",
        b"\xa1a",
        b"\x81\x01\x02",  # a name that is a number
        b"\x81\xa1\xff\x01",  # ... that is no UTF-8
        b"\x81\xa1a\xd4\x01\x00",  # an extension
        b"\x81\xa1a\xd6\xff\x00\x00\x00\x00",  # a time
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 100_000,
        b"\x81\xa1a" * 100_000,
        "text",
    ],
)
def test_what_is_no_message(frame):
    with pytest.raises(ProtocolError, match=r"^message: expected "):
        unpack(frame)


def tree(depth: int) -> bytes:
    """Lists of fifteen lists each."""
    return b"\x9f" + tree(depth - 1) * 15 if depth else b"\x90"


@pytest.mark.parametrize(
    "frame",
    [
        b"\xdd\x00\x0f\xff\xff" * 200 + bytes(2**20),  # lists that claim a million entries each
        tree(5),
        b"\xdf\x00\x0f\xff\xff" + b"\xa1a\x90" * 300_000,
    ],
)
def test_a_message_does_not_grow_in_memory(frame):
    tracemalloc.start()
    with pytest.raises(ProtocolError):
        unpack(frame)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200_000
