"""A policy for many clients over WebSocket. The messages: `visuomotor_client.protocol`."""

import asyncio
import hmac
import logging
import secrets
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from visuomotor_client.protocol import ProtocolError, pack, unpack
from visuomotor_client.queue import ActionQueue
from websockets.asyncio.server import Server, ServerConnection
from websockets.asyncio.server import serve as listen
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from visuomotor.deployment.batching import Batcher
from visuomotor.deployment.metrics import Metrics
from visuomotor.deployment.requests import MAX_SEED, Episode, Request, read_request
from visuomotor.errors import CheckpointError, VisuomotorError
from visuomotor.simulation.rollout import ChunkPolicy

GOING_AWAY, UNSUPPORTED, INVALID, TRY_LATER = 1001, 1003, 1007, 1013  # close codes of RFC 6455
FAREWELL = "the server is shutting down"
LOG = logging.getLogger("visuomotor.server")


@dataclass(frozen=True)
class Limits:
    """What one server lends to its clients."""

    max_clients: int = 64
    """Connected at the same time."""
    max_batch: int = 64
    """Rows of one call of the network, and of one request."""
    batch_window: float = 0.002
    """Seconds that a request waits for others to share a call, unless all clients wait already."""
    max_message_mb: float = 16
    """Size of one message, in units of 2 ** 20 bytes."""
    request_timeout: float = 30.0
    """Seconds until a request that waits is given up, and until a client has taken its reply."""
    idle_timeout: float = 600.0
    """Seconds without a request after which a client is sent away."""


@dataclass(eq=False)
class Client:
    """One connection."""

    connection: ServerConnection
    episode: Episode
    busy: bool = False
    """Whether a request of it is under way."""


class PolicyServer:
    """Answers clients until it is stopped; each connection has an episode of its own.

    Args:
        policy: Acts; `visuomotor.DiffusionPolicy` does.
        metadata: What clients are told first, beside the policy's config.
        limits: What they may ask for.
        token: What they must send as `Authorization: Bearer`, for everything; None asks for none.
    """

    def __init__(
        self, policy: ChunkPolicy, metadata: dict[str, Any], limits: Limits | None = None, token: str | None = None
    ) -> None:
        self.policy, self.limits, self.token = policy, limits or Limits(), token
        self.metadata = pack({"type": "metadata", **metadata, "max_batch": self.limits.max_batch})
        self.metrics = Metrics()
        self.clients: set[Client] = set()
        self._stopping = False
        self._draws = policy.noise_draws()
        self._batcher = Batcher(
            policy, self.limits.max_batch, self.limits.batch_window, lambda: len(self.clients), self.metrics
        )

    async def run(
        self,
        host: str,
        port: int,
        stop: asyncio.Event,
        context: ssl.SSLContext | None = None,
        listening: Callable[[int], None] = lambda port: None,
    ) -> None:
        """Serves until `stop` is set; then finishes what runs, tells every client, and returns.

        Args:
            host: Where to listen.
            port: 0 takes a free one.
            stop: Ends it.
            context: For TLS.
            listening: Called with the port when clients may come.
        """
        worker = asyncio.create_task(self._batcher.run())
        try:
            server = await listen(
                self._serve,
                host,
                port,
                ssl=context,
                process_request=self._answer_http,
                origins=[None],  # no browser: a page of a stranger must not reach a server on this machine
                compression=None,  # numbers hardly shrink, and what is small need not become large here
                max_size=int(self.limits.max_message_mb * 2**20),
                max_queue=1,
                close_timeout=5,
                logger=LOG,
            )
            listening(next(iter(server.sockets)).getsockname()[1])
            await stop.wait()
            await self._leave(server)
        finally:
            worker.cancel()
            await asyncio.wait([worker])

    async def _leave(self, server: Server) -> None:
        self._stopping = True
        server.close(close_connections=False)  # takes no new ones
        idle = [client.connection.close(GOING_AWAY, FAREWELL) for client in self.clients if not client.busy]
        await asyncio.gather(*idle)
        await server.wait_closed()  # the busy ones leave after their reply; each step of theirs has its time-out

    def _answer_http(self, connection: ServerConnection, request: HttpRequest) -> Response | None:
        """Everything that is no WebSocket, and whoever has no token; None lets a client in."""
        if not self._knows_token(request):
            self.metrics.unauthorized.inc()
            response = connection.respond(
                401, "token: expected the server's, got none or another; set VISUOMOTOR_TOKEN\n"
            )
            response.headers["WWW-Authenticate"] = "Bearer"
            return response
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return connection.respond(503, FAREWELL + "\n") if self._stopping else connection.respond(200, "ok\n")
        if path == "/metrics":
            response = connection.respond(200, self.metrics.text().decode())
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = "text/plain; version=0.0.4; charset=utf-8"
            return response
        return None if path == "/" else connection.respond(404, "path: expected /, /healthz or /metrics\n")

    def _knows_token(self, request: HttpRequest) -> bool:
        if self.token is None:
            return True
        given = " ".join(request.headers.get_all("Authorization")).encode("utf-8", "surrogateescape")
        return hmac.compare_digest(given, f"Bearer {self.token}".encode())

    async def _serve(self, connection: ServerConnection) -> None:
        """One client, from its first message to its last."""
        frame: bytes | str = b""
        if len(self.clients) >= self.limits.max_clients:
            await connection.close(TRY_LATER, f"clients: expected at most {self.limits.max_clients}; come back later")
            return
        client = Client(connection, self._episode(None))
        self.clients.add(client)
        self.metrics.clients.set(len(self.clients))
        try:
            await self._send(client, self.metadata)
            while not self._stopping:
                frame = await asyncio.wait_for(connection.recv(), self.limits.idle_timeout)
                client.busy = True
                await self._send(client, await self._answer(client, frame))
                client.busy = False
            await connection.close(GOING_AWAY, FAREWELL)
        except ProtocolError as error:
            self.metrics.bad_frames.inc()
            await connection.close(UNSUPPORTED if isinstance(frame, str) else INVALID, _short(str(error)))
        except TimeoutError:
            await connection.close(GOING_AWAY, "no request, or a reply not taken, for too long; connect again")
        except ConnectionClosed:
            pass  # it has left
        finally:
            self.clients.discard(client)
            self.metrics.clients.set(len(self.clients))

    async def _send(self, client: Client, message: bytes) -> None:
        await asyncio.wait_for(client.connection.send(message), self.limits.request_timeout)

    async def _answer(self, client: Client, frame: bytes | str) -> bytes:
        """The reply to one message.

        Raises:
            ProtocolError: It is no message.
        """
        began = time.perf_counter()
        message = unpack(frame)
        number = message.get("id") if type(message.get("id")) is int else None
        kind, outcome = "unknown", "answered"
        try:
            request = read_request(message, self.policy.config, self._draws, self.limits.max_batch)
            kind = request.kind
            reply = await asyncio.wait_for(self._fulfil(client, request), self.limits.request_timeout)
        except TimeoutError:
            outcome, waited = "late", f"{self.limits.request_timeout:g} s"
            reply = {"type": "error", "message": f"{kind}: expected a chunk within {waited}, got none; ask less often"}
        except (VisuomotorError, ValueError) as error:
            outcome = "failed" if isinstance(error, CheckpointError) else "refused"
            reply = {"type": "error", "message": str(error)}
        except Exception as error:  # the network's own: told to its client, and to whoever runs the server
            outcome = "failed"
            LOG.exception("a request failed")
            reply = {"type": "error", "message": f"{kind}: the policy failed: {type(error).__name__}"}
        self.metrics.requests.labels(kind, outcome).inc()
        self.metrics.seconds.observe(time.perf_counter() - began)
        return pack({"type": kind, **reply, "id": number})

    async def _fulfil(self, client: Client, request: Request) -> dict[str, Any]:
        episode = client.episode
        if request.kind == "reset":
            client.episode = self._episode(request.seed)
            return {"seed": client.episode.seed}
        if request.kind == "chunk":
            return {"actions": await self._chunk(episode, request)}
        episode.queue.observe(request.observation)
        if not episode.queue.actions:
            planned = Request("chunk", observation=episode.queue.stacked())
            episode.queue.actions.extend((await self._chunk(episode, planned)).swapaxes(0, 1))
        return {"action": episode.queue.actions.popleft()}

    async def _chunk(self, episode: Episode, request: Request) -> Any:
        config, noise = self.policy.config, request.noise
        if noise is None:
            action = config.output_features["action"].shape
            noise = episode.noise(request.rows, (self._draws, config.horizon, *action))
        return await self._batcher.predict(request.observation, noise)

    def _episode(self, seed: int | None) -> Episode:
        chosen = secrets.randbelow(MAX_SEED) if seed is None else seed
        return Episode(chosen, ActionQueue(self.policy.config.n_obs_steps))


def _short(reason: str) -> str:
    """What fits into a close frame: 123 bytes."""
    return reason.encode()[:120].decode(errors="ignore")
