"""The wire format: every WebSocket message is one msgpack map. Arrays travel as bytes; nothing is ever unpickled.

    array     {"dtype": "uint8" | "float32" | "float64", "shape": [B, ...], "data": little-endian bytes in C order}

The server speaks first; then every request gets one reply, with the request's `id`, a number of the client's choice.

    metadata  {"type", "protocol", "policy", "weights_sha256", "config", "noise_draws", "max_batch", "fps", ...}
    reset     {"type", "id", "seed": whole number, or null for one of the server's choice}  ->  {"type", "id", "seed"}
    chunk     {"type", "id", "observation": {name: array (B, To, ...)}} -> {"type", "id", "actions": array (B, Ta, Da)}
              optional: "noise": array (K, B, Tp, Da), where sampling starts; "options": map, of which none is known yet
    action    {"type", "id", "observation": {name: array (B, ...)}}  ->  {"type", "id", "action": array (B, Da)}
    error     in place of a reply: {"type", "id", "message"}

An observation of `action` is the present step only: the server keeps the episode's queues. A client that asks for a
`chunk` keeps them itself, and asks once for n_action_steps actions. A message that is no such map ends the connection.
"""

import math
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

PROTOCOL = 1
"""Rises when an older client could misread a message."""
TOKEN = "VISUOMOTOR_TOKEN"
"""The environment variable that holds the token, on both sides."""
SESSION_HEADER = "X-Visuomotor-Session"
"""The same in every connection of one `RemotePolicy`: a load balancer may pin by it."""
DTYPES = ("uint8", "float32", "float64")
MAX_CONTAINERS = 512
"""Maps and lists in one message: a small message must not become millions of objects."""
MAX_AXES = 8


class ProtocolError(ValueError):
    """Bytes that are no message, or a value in one that is no array."""


def pack(message: Mapping[str, Any]) -> bytes:
    """One message as bytes; numpy arrays in it become arrays of the format.

    Raises:
        ProtocolError: An array has another dtype than the format knows.
    """
    return msgpack.packb(message, default=_to_wire)


def unpack(frame: bytes | str) -> dict[str, Any]:
    """The message in some bytes; arrays stay maps, for `array_from`.

    Raises:
        ProtocolError: They are no message.
    """
    if isinstance(frame, str):
        raise ProtocolError("message: expected bytes of msgpack, got text; send a binary frame")
    made = 0

    def count(value: Any) -> Any:
        nonlocal made
        made += 1
        if made > MAX_CONTAINERS:
            raise ProtocolError(f"message: expected at most {MAX_CONTAINERS} maps and lists, got more; send less")
        return value

    try:
        # The limits keep a header that claims millions of entries from reserving memory for them.
        message = msgpack.unpackb(
            frame, object_hook=count, list_hook=count, max_array_len=16, max_map_len=256, max_ext_len=0
        )
    except ProtocolError:
        raise
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        found = str(error) or type(error).__name__
        raise ProtocolError(f"message: expected msgpack, got {found}; see visuomotor_client.protocol") from error
    if not isinstance(message, dict):
        raise ProtocolError(f"message: expected a map, got {type(message).__name__}; see visuomotor_client.protocol")
    return message


def array_from(value: Any, name: str) -> np.ndarray:
    """The array in a message's value, read-only, without a copy.

    Raises:
        ProtocolError: It is none, or its bytes do not fill its shape.
    """
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data"}:
        raise ProtocolError(f"{name}: expected an array (a map of dtype, shape and data), got something else; send one")
    dtype, shape, data = value["dtype"], value["shape"], value["data"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ProtocolError(f"{name}: expected dtype {' or '.join(DTYPES)}, got {dtype!r:.40}; convert it")
    sizes = shape if isinstance(shape, list) else []
    if sizes != shape or len(sizes) > MAX_AXES or any(type(size) is not int or size < 1 for size in sizes):
        expected = f"a shape of {MAX_AXES} positive sizes at most"
        raise ProtocolError(f"{name}: expected {expected}, got {shape!r:.80}; correct it")
    size = math.prod(sizes) * np.dtype(dtype).itemsize
    if not isinstance(data, bytes) or len(data) != size:
        found = len(data) if isinstance(data, bytes) else type(data).__name__
        raise ProtocolError(f"{name}: expected {size} bytes for {dtype} {sizes}, got {found}; send it whole")
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).reshape(sizes)


def _to_wire(value: Any) -> dict[str, Any]:
    if not isinstance(value, np.ndarray) or value.dtype.name not in DTYPES:
        found = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
        raise ProtocolError(f"message: expected an array of {' or '.join(DTYPES)}, got {found}; convert it")
    data = value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes()
    return {"dtype": value.dtype.name, "shape": list(value.shape), "data": data}
