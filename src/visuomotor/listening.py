"""Where servers listen: their ports and addresses, whether strangers get there, and where the token stands."""

import ipaddress

from visuomotor.errors import ConfigError, mismatch

TOKEN = "VISUOMOTOR_TOKEN"
"""The environment variable that holds the token; visuomotor-client, which needs nothing of this package, has it too."""


def is_local(host: str) -> bool:
    """Whether what listens there is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_port(port: int, usual: int) -> None:
    """Refuses what is no port; `usual` is the one that is advised.

    Raises:
        ConfigError: There is no such port.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(mismatch("port", "0 to 65535", port, f"{usual} is usual"))


def address(scheme: str, host: str, port: int) -> str:
    """As a URL without a path: `ws://127.0.0.1:8765`, `http://[::1]:8766`."""
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
