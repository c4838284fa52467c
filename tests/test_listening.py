"""Who reaches a host, and how its address is written."""

import pytest
from visuomotor_client import protocol

from visuomotor.errors import ConfigError
from visuomotor.listening import TOKEN, address, check_port, is_local


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_only_this_machine_reaches_it(host):
    assert is_local(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.2", "", "localhost.example.org", "robot"])
def test_strangers_reach_it(host):
    assert not is_local(host)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_there_is_not(port):
    with pytest.raises(ConfigError, match=f"^port: expected 0 to 65535, got {port}; 8765 is usual$"):
        check_port(port, 8765)


@pytest.mark.parametrize(
    ("host", "expected"), [("127.0.0.1", "ws://127.0.0.1:80"), ("::1", "ws://[::1]:80"), ("robot", "ws://robot:80")]
)
def test_addresses(host, expected):
    assert address("ws", host, 80) == expected


def test_server_and_client_take_the_token_from_the_same_variable():
    assert TOKEN == protocol.TOKEN
