"""The client against a server that answers from a list; against the real one: tests/deployment/test_server.py."""

import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from visuomotor_client import ConnectionLost, RemotePolicy, RequestRefused
from visuomotor_client.protocol import PROTOCOL, array_from, pack, unpack
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import Server, ServerConnection, serve

METADATA = {
    "type": "metadata",
    "protocol": PROTOCOL,
    "policy": "stub",
    "weights_sha256": "0" * 64,
    "fps": 10.0,
    "noise_draws": 1,
    "max_batch": 4,
    "config": {
        "input_features": {
            "observation.state": {"type": "STATE", "shape": [2]},
            "observation.image": {"type": "VISUAL", "shape": [3, 4, 5]},
        },
        "output_features": {"action": {"type": "ACTION", "shape": [2]}},
        "n_obs_steps": 2,
        "n_action_steps": 3,
        "horizon": 8,
    },
}
LINUX = pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="needs Linux: TCP_USER_TIMEOUT")
Answer = Callable[[ServerConnection, dict[str, Any]], None]


class Stub:
    """Remembers what it was asked; chunks count from 0 on: action k of chunk n is (3 n + k, seed)."""

    def __init__(self, metadata: dict[str, Any] = METADATA) -> None:
        self.metadata = metadata
        self.asked: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.instead: list[Answer] = []
        """What it does with the next requests, one each, in place of an answer."""
        self.url = ""

    def handle(self, connection: ServerConnection) -> None:
        self.headers.append(connection.request.headers)
        seed, chunks = 0, 0
        try:
            connection.send(pack(self.metadata))
            for frame in connection:
                request = unpack(frame)
                self.asked.append(request)
                reply = {"type": request["type"], "id": request["id"]}
                if request["type"] != "reset" and self.instead:
                    self.instead.pop(0)(connection, request)
                elif request["type"] == "reset":
                    seed, chunks = request["seed"] or 99, 0
                    connection.send(pack(reply | {"seed": seed}))
                else:
                    rows = request["observation"]["observation.state"]["shape"][0]
                    actions = np.array([[[3 * chunks + k, seed] for k in range(3)]] * rows, np.float32)
                    connection.send(pack(reply | {"actions": actions}))
                    chunks += 1
        except ConnectionClosed:
            pass


@contextmanager
def stub(metadata: dict[str, Any] = METADATA) -> Iterator[Stub]:
    """One that runs as long as the block."""
    answering = Stub(metadata)
    server: Server = serve(answering.handle, "127.0.0.1", 0, compression=None)
    answering.url = f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield answering
    finally:
        server.shutdown()
        thread.join(30)


IMAGE = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VISUOMOTOR_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def step(number: float) -> dict[str, np.ndarray]:
    return {"observation.state": np.full(2, number), "observation.image": IMAGE}


def sent(request: dict, name: str = "observation.state") -> list:
    return array_from(request["observation"][name], name).tolist()


def test_the_queue_asks_once_for_all_actions_of_a_chunk():
    with stub() as server, RemotePolicy(server.url) as policy:
        policy.reset(7)
        actions = [policy.select_action(step(number)) for number in range(7)]
        np.testing.assert_array_equal(actions, [[number, 7] for number in range(7)])
        chunks = [request for request in server.asked if request["type"] == "chunk"]
        assert [sent(chunk) for chunk in chunks] == [[[[0, 0], [0, 0]]], [[[2, 2], [3, 3]]], [[[5, 5], [6, 6]]]]
        assert sent(chunks[0], "observation.image") == [[IMAGE.tolist()] * 2]


def test_an_episode_forgets_the_one_before():
    with stub() as server, RemotePolicy(server.url) as policy:
        policy.select_action(step(1))
        policy.reset(5)
        np.testing.assert_array_equal(policy.select_action(step(9)), [0, 5])
        assert sent(server.asked[-1]) == [[[9, 9], [9, 9]]]
        policy.reset()
        assert policy.seed == 99


def test_an_array_that_the_robot_fills_again_does_not_change_the_past():
    with stub() as server, RemotePolicy(server.url) as policy:
        state = np.zeros(2, np.float32)
        for number in range(4):
            state[:] = number
            policy.select_action({"observation.state": state, "observation.image": IMAGE})
        assert sent(server.asked[-1]) == [[[2, 2], [3, 3]]]


def test_what_is_sent_is_what_the_wire_takes():
    """Lists, other widths of numbers, more observations than the policy has; images of numbers stay numbers."""
    with stub() as server, RemotePolicy(server.url) as policy:
        policy.select_action({"observation.state": [1, 2], "observation.image": IMAGE / 255, "other": "text"})
        observation = server.asked[-1]["observation"]
        assert sorted(observation) == ["observation.image", "observation.state"]
        assert [observation[name]["dtype"] for name in sorted(observation)] == ["float32", "float32"]


def test_several_robots_in_lock_step():
    with stub() as server, RemotePolicy(server.url) as policy:
        together = {name: np.stack([values, values]) for name, values in step(1).items()}
        assert policy.select_action(together).shape == (2, 2)
        stacked = {name: np.stack([values, values], axis=1) for name, values in together.items()}
        assert policy.predict_action_chunk(stacked).shape == (2, 3, 2)
        assert policy.predict_action_chunk({name: values[0] for name, values in stacked.items()}).shape == (3, 2)
        assert [array_from(r["observation"]["observation.state"], "").shape for r in server.asked[1:]] == [
            (2, 2, 2),
            (2, 2, 2),
            (1, 2, 2),
        ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation.state": np.zeros(3)}, r"observation.state: expected \(2,\), or with a leading B, got \(3,\)"),
        ({"observation.image": IMAGE.T}, r"observation.image: expected \(3, 4, 5\), or with a leading B"),
        ({"observation.image": IMAGE.astype(int)}, r"expected uint8 or float in \[0, 1\], got int64"),
        ({"observation.image": None}, "observation.image: expected"),
        (
            {"observation.state": np.zeros((1, 2))},
            r"observation: expected a leading B everywhere or nowhere, got it in \['observation.state'\]",
        ),
    ],
)
def test_what_does_not_fit_is_not_sent(change, message):
    with stub() as server, RemotePolicy(server.url) as policy:
        with pytest.raises(ValueError, match=message):
            policy.select_action(step(1) | change)
        with pytest.raises(ValueError, match=r"observation\.state: expected an observation of that name"):
            policy.select_action({"observation.image": IMAGE})
        assert [request["type"] for request in server.asked] == ["reset"]


def test_a_refusal_leaves_the_connection():
    with stub() as server, RemotePolicy(server.url) as policy:
        refusal = {"type": "error", "message": "state: too hot"}
        server.instead = [lambda connection, asked: connection.send(pack(refusal | {"id": asked["id"]}))]
        with pytest.raises(RequestRefused, match=r"^state: too hot$"):
            policy.select_action(step(1))
        policy.select_action(step(1))
        assert len(server.headers) == 1


def test_a_lost_connection_is_told_and_the_next_episode_connects_again():
    with stub() as server, RemotePolicy(server.url) as policy:
        server.instead = [lambda connection, asked: connection.close(1001, "maintenance")]
        with pytest.raises(ConnectionLost, match=r"got maintenance \(close code 1001\); call reset\(\) to connect"):
            policy.select_action(step(1))
        with pytest.raises(ConnectionLost, match="expected a connection, got none"):
            policy.select_action(step(1))
        policy.reset(3)
        np.testing.assert_array_equal(policy.select_action(step(1)), [0, 3])
        first, second = (headers["X-Visuomotor-Session"] for headers in server.headers)
        assert first == second and len(first) == 32  # a load balancer sends it to the same server


def test_a_late_answer_is_not_taken_for_the_next():
    with stub() as server, RemotePolicy(server.url, timeout=0.3) as policy:
        server.instead = [lambda connection, asked: time.sleep(0.6)]
        with pytest.raises(ConnectionLost, match=r"expected an answer, got none in 0\.3 s"):
            policy.select_action(step(1))
        policy.reset(4)
        np.testing.assert_array_equal(policy.select_action(step(1)), [0, 4])


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    names = folder / "certificate.pem", folder / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    make += ["-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*make, "-out", names[0], "-keyout", names[1]], check=True, capture_output=True)
    return names


@pytest.mark.parametrize("encrypted", [False, pytest.param(True, marks=LINUX)])
def test_a_server_that_takes_nothing_more_does_not_hold_the_robot(certificate, encrypted):
    """A request larger than what waits in the network, and nobody who reads it."""
    config = METADATA["config"] | {"input_features": {"image": {"type": "VISUAL", "shape": [3, 2000, 4000]}}}
    over = threading.Event()

    def take_nothing(connection: ServerConnection) -> None:
        connection.send(pack(METADATA | {"config": config}))
        connection.send(pack({"type": "reset", "id": unpack(connection.recv())["id"], "seed": 1}))
        with connection.protocol_mutex:  # which its reading thread needs
            over.wait(30)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    options = {"compression": None, "max_size": None, "ssl": context if encrypted else None}
    with serve(take_nothing, "127.0.0.1", 0, **options) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"{'wss' if encrypted else 'ws'}://127.0.0.1:{server.socket.getsockname()[1]}"
        policy = RemotePolicy(url, timeout=0.5, certificate=certificate[0] if encrypted else None)
        began = time.monotonic()
        with pytest.raises(ConnectionLost, match=r"expected an answer, got .*; call reset\(\) to connect again"):
            policy.select_action({"image": np.zeros((3, 2000, 4000), np.uint8)})
        assert time.monotonic() - began < 20
        over.set()


def test_answers_of_a_call_that_was_interrupted_are_passed_over():
    def twice(connection, asked):
        for number in (asked["id"] - 1, asked["id"]):
            actions = np.full((1, 3, 2), number, np.float32)
            connection.send(pack({"type": "chunk", "id": number, "actions": actions}))

    with stub() as server, RemotePolicy(server.url) as policy:
        server.instead = [twice]
        np.testing.assert_array_equal(policy.select_action(step(1)), [server.asked[-1]["id"]] * 2)


@pytest.mark.parametrize("answer", [b"\xc1", "text", pack({"type": "chunk", "id": 2, "actions": 5})])
def test_an_answer_that_is_none_is_a_lost_connection(answer):
    with stub() as server, RemotePolicy(server.url) as policy:
        server.instead = [lambda connection, asked: connection.send(answer)]
        with pytest.raises(ConnectionLost):
            policy.select_action(step(1))
        policy.reset()
        policy.select_action(step(1))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (METADATA | {"protocol": 2}, "protocol: expected version 1, got 2; update the older side"),
        ({"type": "hello"}, "protocol: expected version 1, got none"),
        ({name: value for name, value in METADATA.items() if name != "config"}, "metadata: expected whole, got Key"),
        (METADATA | {"config": 5}, "metadata: expected whole"),
    ],
)
def test_another_kind_of_server_is_told(metadata, message):
    with stub(metadata) as server, pytest.raises(ConnectionLost, match=message):
        RemotePolicy(server.url)


def test_no_server():
    with pytest.raises(ConnectionLost, match=r"ws://127\.0\.0\.1:1: expected a server of Visuomotor, got .*refused"):
        RemotePolicy("ws://127.0.0.1:1")
    with pytest.raises(ConnectionLost, match="isn't a valid URI"):
        RemotePolicy("http://127.0.0.1:1")


@pytest.mark.parametrize(("given", "environment"), [("secret", "other"), (None, "secret")])
def test_the_token(monkeypatch, given, environment):
    monkeypatch.setenv("VISUOMOTOR_TOKEN", environment)
    with stub() as server:
        RemotePolicy(server.url, given).close()
        assert server.headers[0]["Authorization"] == "Bearer secret"


def test_it_needs_no_torch():
    code = "import sys, visuomotor_client; print([n for n in ('torch', 'visuomotor', 'pydantic') if n in sys.modules])"
    paths = f"import sys; sys.path[:0] = {[path for path in sys.path if path.endswith('client/src')]}; "
    assert subprocess.run([sys.executable, "-c", paths + code], capture_output=True, text=True).stdout == "[]\n"
