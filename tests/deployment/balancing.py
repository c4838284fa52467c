"""A load balancer as small as one can be: it pins connections to servers by a header."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Balancer:
    """Sends each session to one of several servers; to the next one where that does not answer."""

    def __init__(self, ports: list[int]) -> None:
        self.ports = ports
        self.chosen: dict[str, list[int]] = {}
        """Of each session, the server of each of its connections, counted from 0."""
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"ws://127.0.0.1:{self._listening.getsockname()[1]}"

    def run(self) -> None:
        with suppress(OSError):  # closed
            while True:
                connection, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _serve(self, connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(4096)
        lines = head.decode().split("\r\n")
        session = next(line.partition(": ")[2] for line in lines if line.startswith("X-Visuomotor-Session: "))
        past = self.chosen.setdefault(session, [])
        first = past[0] if past else (len(self.chosen) - 1) % len(self.ports)  # in turn
        for number in (first, *range(len(self.ports))):
            with suppress(OSError):
                server = socket.create_connection(("127.0.0.1", self.ports[number]))
                break
        past.append(number)
        server.sendall(head)
        for source, target in ((connection, server), (server, connection)):
            threading.Thread(target=copy, args=(source, target), daemon=True).start()


def copy(source: socket.socket, target: socket.socket) -> None:
    """What one end sends, until it leaves."""
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@contextmanager
def balanced(*ports: int) -> Iterator[Balancer]:
    """One in front of the servers at these ports, for as long as the block runs."""
    balancer = Balancer(list(ports))
    thread = threading.Thread(target=balancer.run)
    thread.start()
    try:
        yield balancer
    finally:
        balancer.close()
        thread.join(30)
