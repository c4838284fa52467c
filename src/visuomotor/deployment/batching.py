"""Requests that wait at the same time become one call of the network."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from visuomotor.deployment.metrics import Metrics
from visuomotor.errors import CheckpointError, mismatch
from visuomotor.simulation.rollout import ChunkPolicy

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Pending:
    """A request that waits for its chunk."""

    observation: Arrays
    """(B, To, ...) by name."""
    noise: np.ndarray
    """(K, B, Tp, Da)."""
    done: asyncio.Future[np.ndarray]

    @property
    def rows(self) -> int:
        """B."""
        return self.noise.shape[1]

    def fits(self, other: "Pending") -> bool:
        """Whether both can share a call: uint8 images are scaled by the policy, those of float are not."""
        return all(self.observation[name].dtype == values.dtype for name, values in other.observation.items())


@dataclass
class Batcher:
    """Calls the policy in a thread of its own, one call at a time, so that the server goes on listening meanwhile.

    The order in which a processor sums may change with the size of the batch: the last bits of an action may depend on
    how many others were computed with it, and nothing else does.
    """

    policy: ChunkPolicy
    max_batch: int
    """Rows of a call at most."""
    window: float
    """Seconds that a request waits for others, unless every client waits already."""
    clients: Callable[[], int]
    """How many are connected; each has one request at a time."""
    metrics: Metrics
    _waiting: deque[Pending] = field(default_factory=deque)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "policy"))

    async def predict(self, observation: Arrays, noise: np.ndarray) -> np.ndarray:
        """The chunk (B, Ta, Da) float32 of a checked request: as `DiffusionPolicy.predict_action_chunk`, with others.

        Raises:
            CheckpointError: The policy's actions are not finite.
        """
        pending = Pending(observation, noise, asyncio.get_running_loop().create_future())
        self._waiting.append(pending)
        self._arrived.set()
        return await pending.done

    async def run(self) -> None:
        """Works until it is cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._gather()
                group = self._take()
                if not group:
                    continue
                try:
                    chunks = await loop.run_in_executor(self._thread, self._compute, group)
                except Exception as error:  # whatever it is, each of them is told, and the next are served
                    chunks = [error] * len(group)
                for pending, chunk in zip(group, chunks, strict=True):
                    if pending.done.done():  # its client has left, or waits no longer
                        continue
                    if isinstance(chunk, Exception):
                        pending.done.set_exception(chunk)
                    else:
                        pending.done.set_result(chunk)
        finally:
            self._thread.shutdown()

    async def _gather(self) -> None:
        """Returns when there are requests, and no more are worth waiting for."""
        loop = asyncio.get_running_loop()
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        end = loop.time() + self.window
        while len(self._waiting) < self.clients() and sum(pending.rows for pending in self._waiting) < self.max_batch:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), end - loop.time())
            except TimeoutError:
                break

    def _take(self) -> list[Pending]:
        """The oldest requests that make one call."""
        group: list[Pending] = []
        rows = 0
        while self._waiting and rows + self._waiting[0].rows <= self.max_batch:
            if self._waiting[0].done.done():
                self._waiting.popleft()
                continue
            if group and not self._waiting[0].fits(group[0]):
                break
            group.append(self._waiting.popleft())
            rows += group[-1].rows
        return group

    def _compute(self, group: list[Pending]) -> list[np.ndarray | Exception]:
        """One call of the network; in the thread."""
        observation = {
            name: torch.from_numpy(np.concatenate([pending.observation[name] for pending in group]))
            for name in group[0].observation
        }
        noise = torch.from_numpy(np.concatenate([pending.noise for pending in group], axis=1))
        chunks = self.policy.predict_action_chunk(observation, noise=noise).float().cpu().numpy()
        self.metrics.calls.inc()
        self.metrics.rows.inc(len(chunks))
        ends = np.cumsum([pending.rows for pending in group])[:-1]
        return [_checked(chunk) for chunk in np.split(chunks, ends)]


def _checked(chunk: np.ndarray) -> np.ndarray | Exception:
    if np.isfinite(chunk).all():
        return chunk
    advice = "this policy cannot act on such observations"
    return CheckpointError(mismatch("action", "finite numbers", "NaN or infinity", advice))
