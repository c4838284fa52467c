"""Who gets in: the studio's own page on this machine, and from elsewhere only with the token."""

import http.client
from collections.abc import Iterator

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from visuomotor.studio.app import STATIC, Studio
from visuomotor.studio.sources import Sources

from .conftest import Running, Serving

TOKEN = "a token; with /signs"


def get(port: int, path: str = "/", **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer


@pytest.fixture
def guarded(policies) -> Iterator[int]:
    serving = Serving(Studio(policies, Sources()).app(local=False, token=TOKEN))
    yield serving.port
    serving.close()


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "[::1]", "LOCALHOST"])
def test_this_machine_is_let_in(running: Running, name):
    answer = get(running.port, Host=f"{name}:{running.port}")
    assert answer.status == 200
    assert "default-src 'self'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[", "192.168.0.2:80"])
def test_another_name_that_points_here_is_not(running: Running, host):
    assert get(running.port, "/api/about", Host=host).status == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1", "http://127.0.0.1:1"])
def test_another_page_is_not(running: Running, origin):
    assert get(running.port, "/api/about", Origin=origin).status == 403
    with pytest.raises(InvalidStatus, match="403"):
        connect(f"ws://127.0.0.1:{running.port}/api/watch", origin=origin)
    assert get(running.port, "/api/about", Origin=running.address).status == 200


@pytest.mark.parametrize("path", ["/../app.py", "/%2e%2e/app.py", "/..%2fapp.py", "//etc/passwd", "/static/../app.py"])
def test_only_static_files_are_served(running: Running, path):
    assert (STATIC.parent / "app.py").is_file()
    assert get(running.port, path).status == 404


def test_without_the_token_there_is_a_page_that_asks_for_it_and_nothing_else(guarded):
    assert get(guarded).status == 401
    assert get(guarded, "/api/about").status == 401
    assert get(guarded, "/?token=wrong").status == 401
    assert get(guarded, "/api/about", Cookie=f"studio_{guarded}=wrong").status == 401
    assert get(guarded, "/studio.css").status == 200
    with pytest.raises(InvalidStatus, match="403"):
        connect(f"ws://127.0.0.1:{guarded}/api/watch")


def test_the_token_becomes_a_cookie_that_lets_in(guarded):
    answer = get(guarded, "/?token=a%20token;%20with%20/signs")
    assert (answer.status, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    shown = cookie.partition(";")[0]
    assert get(guarded, "/api/about", Cookie=shown).status == 200
    with connect(f"ws://127.0.0.1:{guarded}/api/watch", additional_headers={"Cookie": shown}) as socket:
        socket.send('{"type": "dance"}')
        assert "expected one of settings" in socket.recv(timeout=60)
    elsewhere = get(guarded, "/api/about", Cookie=shown, Origin="http://evil.example")
    assert elsewhere.status == 403
