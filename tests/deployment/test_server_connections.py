"""Who may connect, what ends a connection, and what a server tells of itself."""

import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from visuomotor_client import ConnectionLost, RemotePolicy, RequestRefused
from visuomotor_client.protocol import pack
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from .running import in_process, observations, running, until

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
"""Frames that are encoded together, and requests that are computed together, may differ in their last bits."""


def get(url: str, **headers: str) -> tuple[int, str, str]:
    """Status, content type and text."""
    request = urllib.request.Request(url.replace("ws", "http", 1), headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read().decode()


# Connections


@pytest.mark.parametrize(
    ("frame", "code"), [("text", 1003), (b"\xc1", 1007), (b"", 1007), (b"\x01", 1007), (pack({"id": 1})[:-1], 1007)]
)
def test_a_bad_frame_ends_the_connection_with_a_reason(frame, code):
    with running() as server, connect(server.url) as connection:
        connection.recv(30)
        connection.send(frame)
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(30)
        assert closed.value.rcvd.code == code
        assert closed.value.rcvd.reason.startswith("message: expected ")
        assert server.metric("visuomotor_bad_frames_total") == 1


def test_a_message_has_a_limit():
    with running(max_message_mb=0.1) as server, connect(server.url) as connection:
        connection.recv(30)
        connection.send(bytes(200_000))
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(30)
        assert closed.value.rcvd.code == 1009


def test_a_client_too_many_is_sent_away_until_another_leaves():
    with running(max_clients=2) as server:
        policies = [RemotePolicy(server.url) for _ in range(2)]
        with pytest.raises(ConnectionLost, match="clients: expected at most 2; come back later"):
            RemotePolicy(server.url)
        policies[0].close()
        until(lambda: len(server.server.clients) == 1)
        RemotePolicy(server.url).close()
        policies[1].close()


def test_a_client_that_vanishes_frees_its_state():
    with running() as server:
        policies = [RemotePolicy(server.url) for _ in range(3)]
        assert server.metric("visuomotor_clients") == 3
        for remote in policies[:2]:
            remote._connection.socket.shutdown(socket.SHUT_RDWR)  # no farewell
        until(lambda: server.metric("visuomotor_clients") == 1)
        assert len(server.server.clients) == 1
        (step,) = observations(server.policy.config, 1)
        policies[2].select_action(step)
        policies[2].close()
        until(lambda: not server.server.clients)


def test_a_client_that_vanishes_while_it_waits_frees_its_state_and_disturbs_nobody():
    with running() as server, RemotePolicy(server.url) as remote:
        (step,) = observations(server.policy.config, 1)
        server.policy.go.clear()
        leaving = RemotePolicy(server.url)
        with ThreadPoolExecutor(2) as pool:
            lost = pool.submit(leaving.select_action, step)
            assert server.policy.entered.wait(30)
            remote.reset(2)
            stays = pool.submit(remote.select_action, step)
            leaving._connection.socket.shutdown(socket.SHUT_RDWR)
            with pytest.raises(ConnectionLost):
                lost.result(30)
            server.policy.go.set()
            np.testing.assert_allclose([stays.result(30)], in_process(server.policy.policy, 2, [step]), **CLOSE)
        until(lambda: len(server.server.clients) == 1)


def test_a_client_that_asks_nothing_is_sent_away_and_comes_back_with_its_next_episode():
    with running(idle_timeout=0.2) as server, RemotePolicy(server.url) as remote:
        until(lambda: not server.server.clients)
        (step,) = observations(server.policy.config, 1)
        with pytest.raises(ConnectionLost, match=r"no request, or a reply not taken.*call reset\(\) to connect again"):
            remote.select_action(step)
        remote.reset(1)
        np.testing.assert_allclose([remote.select_action(step)], in_process(server.policy.policy, 1, [step]), **CLOSE)


def test_a_request_that_waits_too_long_is_given_up():
    with running(request_timeout=3) as server, RemotePolicy(server.url) as remote:
        (step,) = observations(server.policy.config, 1)
        server.policy.go.clear()
        with pytest.raises(RequestRefused, match=r"chunk: expected a chunk within 3 s, got none"):
            remote.select_action(step)
        server.policy.go.set()
        remote.reset(1)
        np.testing.assert_allclose([remote.select_action(step)], in_process(server.policy.policy, 1, [step]), **CLOSE)
        assert server.metric("visuomotor_requests_total", kind="chunk", outcome="late") == 1


def test_a_client_has_a_patience_of_its_own():
    with running() as server, RemotePolicy(server.url, timeout=3) as remote:
        (step,) = observations(server.policy.config, 1)
        server.policy.go.clear()
        with pytest.raises(ConnectionLost, match=r"expected an answer, got none in 3 s; call reset\(\)"):
            remote.select_action(step)
        with pytest.raises(ConnectionLost, match=r"expected a connection, got none; call reset\(\)"):
            remote.select_action(step)
        server.policy.go.set()
        remote.reset(4)  # and the late answer is not taken for the new one
        np.testing.assert_allclose([remote.select_action(step)], in_process(server.policy.policy, 4, [step]), **CLOSE)


# Who may come


def test_without_the_token_nothing_is_answered():
    with running(token="secret") as server:
        for token in ("", "secre", "secret2", "Secret"):
            with pytest.raises(ConnectionLost, match="token: expected the server's, got none or another"):
                RemotePolicy(server.url, token)
        for path in ("/healthz", "/metrics", "/", "/other"):
            assert get(server.url + path)[0] == 401
            assert get(server.url + path, Authorization="Bearer other")[0] == 401
        assert get(server.url + "/healthz", Authorization="Bearer secret")[0] == 200
        assert server.metric("visuomotor_unauthorized_total") == 12
        RemotePolicy(server.url, "secret").close()


def test_the_token_may_come_from_the_environment(monkeypatch):
    with running(token="secret") as server:
        monkeypatch.setenv("VISUOMOTOR_TOKEN", "secret")
        RemotePolicy(server.url).close()


def test_a_page_in_a_browser_is_kept_out():
    with running() as server, pytest.raises(InvalidStatus) as refused:
        connect(server.url, origin="http://example.com").__enter__()
    assert refused.value.response.status_code == 403


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    names = folder / "certificate.pem", folder / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    make += ["-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*make, "-out", names[0], "-keyout", names[1]], check=True, capture_output=True)
    return names


def test_tls(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with running(context=context) as server:
        with RemotePolicy(server.url, certificate=certificate[0]) as remote:
            (step,) = observations(server.policy.config, 1)
            remote.reset(1)
            np.testing.assert_allclose(
                [remote.select_action(step)], in_process(server.policy.policy, 1, [step]), **CLOSE
            )
        trusting = ssl.create_default_context(cafile=certificate[0])
        url = server.url.replace("wss", "https") + "/metrics"
        with urllib.request.urlopen(url, timeout=30, context=trusting) as answer:
            assert answer.read().decode().endswith("\n")
        with pytest.raises(ConnectionLost, match="CERTIFICATE_VERIFY_FAILED"):
            RemotePolicy(server.url)
        with pytest.raises(ConnectionLost):
            RemotePolicy(server.url.replace("wss", "ws"), timeout=5)


# Watching, and leaving


def test_health_and_metrics():
    with running() as server:
        assert get(server.url + "/healthz") == (200, "text/plain; charset=utf-8", "ok\n")
        assert get(server.url + "/nowhere")[0] == 404
        with RemotePolicy(server.url) as remote:
            remote.select_action(observations(server.policy.config, 1)[0])
            status, kind, text = get(server.url + "/metrics")
        assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
        lines = text.splitlines()
        assert "visuomotor_clients 1.0" in lines
        assert 'visuomotor_requests_total{kind="chunk",outcome="answered"} 1.0' in lines
        assert "visuomotor_network_calls_total 1.0" in lines
        assert "visuomotor_request_seconds_count 2.0" in lines  # with the reset


def test_a_server_that_stops_finishes_what_runs_and_tells_every_client():
    with running() as server:
        (step,) = observations(server.policy.config, 1)
        idle, busy = RemotePolicy(server.url), RemotePolicy(server.url)
        busy.reset(1)
        server.policy.go.clear()
        with ThreadPoolExecutor(1) as pool:
            action = pool.submit(busy.select_action, step)
            assert server.policy.entered.wait(30)
            server.ask_to_stop()
            with pytest.raises(ConnectionLost, match=r"the server is shutting down \(close code 1001\)"):
                idle.select_action(step)
            with pytest.raises(ConnectionLost, match="is it running"):
                idle.reset()
            assert not server.ended(0.2)
            server.policy.go.set()
            np.testing.assert_allclose([action.result(30)], in_process(server.policy.policy, 1, [step]), **CLOSE)
        assert server.ended(10)
        stacked = {name: np.stack([values, values]) for name, values in step.items()}
        with pytest.raises(ConnectionLost, match=r"the server is shutting down \(close code 1001\)"):
            busy.predict_action_chunk(stacked)
