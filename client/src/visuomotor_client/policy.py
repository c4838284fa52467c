"""A policy on another machine, with the habits of `visuomotor.DiffusionPolicy`."""

import math
import os
import socket
import ssl
import struct
import time
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from visuomotor_client.protocol import PROTOCOL, SESSION_HEADER, TOKEN, ProtocolError, array_from, pack, unpack
from visuomotor_client.queue import ActionQueue

MAX_REPLY = 64 * 2**20
"""Bytes."""


class RemoteError(RuntimeError):
    """Something that went wrong with a policy on another machine."""


class ConnectionLost(RemoteError):
    """There is no connection, or no longer one, or no answer in time: `reset()` connects again."""


class RequestRefused(RemoteError):
    """The server has refused a request, and says why; the connection stands."""


@dataclass(frozen=True)
class Metadata:
    """What a server tells of its policy when a client connects."""

    policy: str
    """Its name."""
    weights_sha256: str
    """Of its file of weights."""
    features: dict[str, tuple[int, ...]]
    """Shapes of the observations by name: a state (Do,), an image (C, H, W)."""
    cameras: tuple[str, ...]
    """Those of them that are images, uint8 or float in [0, 1]."""
    action_shape: tuple[int, ...]
    """(Da,)."""
    n_obs_steps: int
    """To: observed steps."""
    n_action_steps: int
    """Ta: actions of a chunk."""
    horizon: int
    """Tp: predicted steps."""
    fps: float | None
    """Actions a second, as in the demonstrations; None if the server does not know."""
    noise_draws: int
    """K: draws of noise that a chunk takes."""
    max_batch: int
    """Rows of a request at most."""
    server: dict[str, Any]
    """The whole message: the policy's config, versions, device."""

    @classmethod
    def read(cls, message: Mapping[str, Any]) -> "Metadata":
        """Reads a server's first message.

        Raises:
            ProtocolError: It is of another version, or no metadata.
        """
        found = message.get("protocol", "none")
        if message.get("type") != "metadata" or found != PROTOCOL:
            raise ProtocolError(f"protocol: expected version {PROTOCOL}, got {found}; update the older side")
        try:
            config = message["config"]
            inputs = config["input_features"]
            return cls(
                features={name: tuple(feature["shape"]) for name, feature in inputs.items()},
                cameras=tuple(name for name, feature in inputs.items() if feature["type"] == "VISUAL"),
                action_shape=tuple(config["output_features"]["action"]["shape"]),
                server=dict(message),
                **{name: config[name] for name in ("n_obs_steps", "n_action_steps", "horizon")},
                **{name: message[name] for name in ("policy", "weights_sha256", "fps", "noise_draws", "max_batch")},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ProtocolError(f"metadata: expected whole, got {error!r}; is this `visuomotor serve`?") from error


class RemotePolicy:
    """Acts with the policy of `visuomotor serve`. Not for several threads at once: open one for each.

    Args:
        url: `ws://machine:port`, or `wss://` where the server has a certificate.
        token: The server's; None takes the environment variable VISUOMOTOR_TOKEN, if it is set.
        timeout: Seconds to wait for a connection, and for each answer.
        certificate: A PEM file to trust, for a server whose certificate nobody else has signed.

    Attributes:
        metadata: What the server told of its policy.
        seed: What the present episode's noise is drawn from.

    Raises:
        ConnectionLost: There is no such server, or it refuses.
    """

    def __init__(
        self, url: str, token: str | None = None, *, timeout: float = 10.0, certificate: str | Path | None = None
    ) -> None:
        self.url, self.timeout = url, timeout
        self._token = os.environ.get(TOKEN) if token is None else token
        self._certificate = certificate
        self._session = uuid.uuid4().hex
        self._number = 0
        self._open = ExitStack()
        self._connection: ClientConnection | None = None
        self._connect()
        self.reset()

    def __enter__(self) -> "RemotePolicy":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the server, which forgets this episode."""
        self._connection = None
        self._open.close()

    def reset(self, seed: int | None = None) -> None:
        """Forgets the past: call it when an episode begins. Connects again if the connection was lost.

        Args:
            seed: The same one gives the same actions for the same observations; None leaves it to the server.

        Raises:
            ConnectionLost: The server cannot be reached.
        """
        if self._connection is None:
            self._connect()
        try:
            reply = self._ask("reset", seed=None if seed is None else int(seed))
        except ConnectionLost:  # between two episodes a server may have been started anew, or found us idle
            self._connect()
            reply = self._ask("reset", seed=None if seed is None else int(seed))
        self.seed: int = reply["seed"]
        self._queue = ActionQueue(self.metadata.n_obs_steps)

    def select_action(self, observation: Mapping[str, Any], noise: np.ndarray | None = None) -> np.ndarray:
        """The next action, from a queue that asks the server for n_action_steps of them when it is empty.

        Args:
            observation: The present step by name, in data units: an image (C, H, W) uint8 or float in [0, 1], a state
                (D,). Several robots in lock-step: each with a leading B, as for `DiffusionPolicy`.
            noise: As for `predict_action_chunk`, used if this call predicts.

        Returns:
            (Da,) float32 in data units, or (B, Da). The first call after `reset` takes its observation for the past
            steps too.

        Raises:
            ValueError: The observation does not fit the policy; nothing was sent.
            RequestRefused: The server says no.
            ConnectionLost: No answer; call `reset`.
        """
        prepared, batched = self._prepare(observation, 0)
        self._queue.observe(prepared)
        if not self._queue.actions:
            self._queue.actions.extend(self._chunk(self._queue.stacked(), noise).swapaxes(0, 1))
        action = self._queue.actions.popleft()
        return action if batched else action[0]

    def predict_action_chunk(self, observation: Mapping[str, Any], noise: np.ndarray | None = None) -> np.ndarray:
        """The actions to execute from now on.

        Args:
            observation: Images (To, C, H, W) and states (To, D); or with a leading B.
            noise: Where sampling starts, (K, B, Tp, Da) with K = `metadata.noise_draws`. None lets the server draw it
                from the episode's seed and the number of the chunk; of several rows, each from the next seed.

        Returns:
            (Ta, Da) float32 in data units, or (B, Ta, Da).

        Raises:
            ValueError, RequestRefused, ConnectionLost: As for `select_action`.
        """
        prepared, batched = self._prepare(observation, 1)
        chunk = self._chunk(prepared, noise)
        return chunk if batched else chunk[0]

    def _chunk(self, observation: dict[str, np.ndarray], noise: np.ndarray | None) -> np.ndarray:
        given = {} if noise is None else {"noise": np.asarray(noise, np.float32)}
        reply = self._ask("chunk", observation=observation, **given)
        try:
            return array_from(reply.get("actions"), "actions").copy()
        except ProtocolError as error:
            self.close()
            raise ConnectionLost(f"{self.url}: {error}") from error

    def _prepare(self, observation: Mapping[str, Any], steps: int) -> tuple[dict[str, np.ndarray], bool]:
        """Copies of what the policy sees, (B, ...), and whether B was given; `steps` axes for time come behind B."""
        prepared, given = {}, {}
        for name, shape in self.metadata.features.items():
            if name not in observation:
                raise ValueError(f"{name}: expected an observation of that name, got {sorted(observation)}; add it")
            value = np.asarray(observation[name])
            given[name] = batched = value.ndim > len(shape) + steps
            wanted = (self.metadata.n_obs_steps,) * steps + shape
            if value.shape[batched:] != wanted:
                raise ValueError(f"{name}: expected {wanted}, or with a leading B, got {value.shape}; correct it")
            kept = np.uint8 if name in self.metadata.cameras and value.dtype == np.uint8 else np.float32
            if name in self.metadata.cameras and value.dtype.kind not in "f" and kept is np.float32:
                raise ValueError(f"{name}: expected uint8 or float in [0, 1], got {value.dtype}; convert it")
            prepared[name] = np.array(value if batched else value[None], kept)
        if len({*given.values()}) > 1:
            found = [name for name, batched in given.items() if batched]
            raise ValueError(f"observation: expected a leading B everywhere or nowhere, got it in {found}; correct it")
        return prepared, any(given.values())

    def _connect(self) -> None:
        self.close()
        headers = {SESSION_HEADER: self._session}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            context = ssl.create_default_context(cafile=self._certificate) if self._certificate else None
            opened = connect(
                self.url,
                ssl=context,
                additional_headers=headers,
                compression=None,  # numbers hardly shrink
                open_timeout=self.timeout,
                close_timeout=1,
                max_size=MAX_REPLY,
            )
            self._connection = self._open.enter_context(opened)
            self.metadata = Metadata.read(unpack(self._connection.recv(self.timeout)))  # or why the server refuses
            _limit_sending(opened.socket, self.timeout)
        except InvalidStatus as error:
            self.close()
            said = (error.response.body or b"").decode(errors="replace").strip()
            raise ConnectionLost(f"{self.url}: {said or error}") from error
        except (OSError, WebSocketException, ProtocolError) as error:
            self.close()
            found = _reason(error)
            raise ConnectionLost(f"{self.url}: expected a server of Visuomotor, got {found}; is it running?") from error

    def _ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        if self._connection is None:
            raise ConnectionLost(f"{self.url}: expected a connection, got none; call reset() to connect again")
        self._number += 1
        deadline = time.monotonic() + self.timeout
        try:
            self._connection.send(pack({"type": kind, "id": self._number, **fields}))
            reply = unpack(self._connection.recv(self.timeout))
            while reply.get("id") != self._number:  # of a call that was interrupted
                reply = unpack(self._connection.recv(max(0.0, deadline - time.monotonic())))
        except (OSError, ConnectionClosed, ProtocolError) as error:  # OSError: a timeout is one
            self.close()  # so that a late answer is not taken for the next one
            found = f"none in {self.timeout:g} s" if isinstance(error, TimeoutError) else _reason(error)
            raise ConnectionLost(
                f"{self.url}: expected an answer, got {found}; call reset() to connect again"
            ) from error
        if reply.get("type") == "error":
            raise RequestRefused(str(reply.get("message")))
        return reply


def _limit_sending(connected: socket.socket, seconds: float) -> None:
    """A server that takes nothing more must not hold `send` for ever: websockets sets no time-out for it."""
    patience = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
    if isinstance(connected, ssl.SSLSocket) and hasattr(socket, "TCP_USER_TIMEOUT"):  # TLS tries again and again
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, math.ceil(1000 * seconds))


def _reason(error: Exception) -> str:
    """What a closed connection was told, or the error's own words."""
    told = error.rcvd if isinstance(error, ConnectionClosed) else None
    if told is not None:
        return f"{told.reason or 'no reason'} (close code {told.code})"
    return str(error) or type(error).__name__
