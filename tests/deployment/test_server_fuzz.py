"""Damaged messages. `VISUOMOTOR_FUZZ` says how many, else 1000."""

import os
import random
import socket
import subprocess
from collections import Counter

import msgpack
import numpy as np
import pytest
from visuomotor_client import RemotePolicy
from visuomotor_client.protocol import pack, unpack
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from visuomotor.policy.checkpoint import load_policy

from .running import in_process, observations, started

SHIPPED = "pusht-keypoints-small"
VALUES = [None, True, -1, 2**63, 1.5, float("nan"), "x" * 300, b"\0" * 300, [], [[[]]], {}, {"dtype": "O"}, [2**40] * 8]


def good_messages() -> list[dict]:
    (step,) = observations(load_policy(SHIPPED).config, 1)
    stacked = {name: np.stack([values, values])[None] for name, values in step.items()}
    chunk = {"type": "chunk", "id": 1, "observation": stacked}
    single = {"type": "action", "id": 2, "observation": {name: values[None] for name, values in step.items()}}
    return [msgpack.unpackb(pack(message)) for message in (chunk, single, {"type": "reset", "id": 3, "seed": 1})]


def damaged(chance: random.Random, messages: list[dict]) -> bytes | str:
    """A message with something wrong in its bytes, its values or its structure."""
    message = msgpack.unpackb(msgpack.packb(chance.choice(messages)))
    kind = chance.randrange(8)
    if kind == 0:
        return chance.randbytes(chance.randrange(2000))
    if kind == 1:  # lists within lists, or one that claims to have billions of entries
        return chance.choice(
            [b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff" * 1000, b"\xdf\x7f\xff\xff\xff", b"\xdc\xff\xff" * 60_000]
        )
    if kind == 2:
        return chance.choice(["", "text", '{"type": "reset"}', "\0" * 1000])
    if kind in (3, 4):  # another value somewhere
        place = message
        while True:
            name = chance.choice(sorted(place))
            if not isinstance(place[name], dict) or chance.random() < 0.3:
                place[name] = chance.choice(VALUES)
                return msgpack.packb(message)
            place = place[name]
    frame = bytearray(msgpack.packb(message))
    if kind == 5:
        return bytes(frame[: chance.randrange(len(frame))])
    for _ in range(chance.randint(1, 20)):
        frame[chance.randrange(len(frame))] = chance.randrange(256)
    return bytes(frame if kind == 6 else frame + chance.randbytes(chance.randrange(100)))


def resident(process: subprocess.Popen) -> float:
    """The process's memory, in MB."""
    said = subprocess.run(["ps", "-o", "rss=", "-p", str(process.pid)], capture_output=True, text=True, check=True)
    return int(said.stdout) / 1000


def send(connection: ClientConnection, frame: bytes | str) -> str:
    """What became of a message: `reply`, `error`, or `closed` with its code."""
    try:
        connection.send(frame)
        return "error" if unpack(connection.recv(30))["type"] == "error" else "reply"
    except ConnectionClosed as closed:
        return f"closed {closed.rcvd.code if closed.rcvd else 'without a word'}"


def enter(url: str) -> ClientConnection:
    connection = connect(url, compression=None).__enter__()
    assert unpack(connection.recv(30))["type"] == "metadata"
    return connection


def break_frame(url: str, chance: random.Random) -> None:
    """Bytes that are no WebSocket frame, or no HTTP, from a client that then leaves."""
    host, port = url.removeprefix("ws://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as raw:
        if chance.random() < 0.5:
            key = b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
            raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" + key + b"\r\n")
            raw.recv(100)
        raw.sendall(chance.randbytes(200))


@pytest.mark.slow
def test_damaged_messages_break_nothing_and_leave_nothing(capsys):
    count = int(os.environ.get("VISUOMOTOR_FUZZ", "1000"))
    chance, messages, outcomes = random.Random(0), good_messages(), Counter()
    policy = load_policy(SHIPPED)
    steps = observations(policy.config, 2)
    with started(SHIPPED) as (process, url):
        connection, memory = enter(url), []
        for number in range(count):
            if number == count // 4:  # by then all kinds have come, and caches are full
                memory.append(resident(process))
            if number % 20 == 19:
                break_frame(url, chance)
                outcomes["no WebSocket"] += 1
                continue
            outcome = send(connection, damaged(chance, messages))
            outcomes[outcome] += 1
            if outcome.startswith("closed"):
                connection.__exit__(None, None, None)
                connection = enter(url)
        memory.append(resident(process))
        connection.__exit__(None, None, None)

        with RemotePolicy(url) as remote:  # it lives, and acts as ever
            remote.reset(1)
            actions = [remote.select_action(step) for step in steps]
        np.testing.assert_allclose(actions, in_process(policy, 1, steps), rtol=1e-5, atol=1e-5)
        process.terminate()
        out, err = process.communicate(timeout=60)
    with capsys.disabled():
        told = ", ".join(f"{times} {outcome}" for outcome, times in sorted(outcomes.items()))
        print(f"\n{count} damaged messages: {told}; memory {memory[0]:.0f} MB, then {memory[1]:.0f} MB")
    assert (process.returncode, out, err) == (0, "stopped: every client has been told\n", "")
    assert memory[1] - memory[0] < 20
    assert outcomes["error"] > count / 10 and outcomes["closed 1007"] > count / 10 and outcomes["closed 1003"]
    assert outcomes["closed 1011"] == 0  # a fault of the server
    assert outcomes["closed without a word"] == 0
