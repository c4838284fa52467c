"""Work spread over a Ray cluster: `--ray`. Ray is imported here alone, and only when somebody asks for it."""

import copy
import logging
import os
import pickle
import re
import socket
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from types import ModuleType
from typing import Any, TypeVar

import torch

from visuomotor.errors import ConfigError, VisuomotorError, mismatch

Part = TypeVar("Part")
Result = TypeVar("Result")

AUTO = "auto"
"""The cluster that RAY_ADDRESS names, or that runs on this machine; otherwise one of this process's own."""
TRIES = 4
"""Of a part whose worker dies, before it is given up."""
PATIENCE = 10.0
"""Seconds to wait for an address to answer; Ray itself would try for minutes."""


class Cluster:
    """Workers that each have as many threads of torch as this process has: other numbers would round otherwise.

    Attributes:
        workers: How many of them the cluster has room for.

    Raises:
        ConfigError: It has room for none.
    """

    def __init__(self, ray: ModuleType, device: str) -> None:
        self._ray = ray
        self._threads = torch.get_num_threads()
        self._gpus = 1 if torch.device(device).type == "cuda" else 0
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self.workers = sum(self._room(node) for node in nodes)
        if not self.workers:
            expected = f"a node with {self._threads} CPUs" + self._gpus * " and a GPU"
            found = [{name: node.get(name, 0) for name in ("CPU", "GPU")} for node in nodes]
            advice = "set OMP_NUM_THREADS to as many as a worker may have"
            raise ConfigError(mismatch("--ray", expected, found, advice))

    def _room(self, node: dict[str, float]) -> int:
        room = int(node.get("CPU", 0)) // self._threads
        return min(room, int(node.get("GPU", 0))) if self._gpus else room

    def spread(
        self,
        work: Callable[[Part], Result],
        parts: Sequence[Part],
        take: Callable[[int, Result], None],
        progress: bool = False,
    ) -> None:
        """Does some work on every part, each on whichever worker is free. If a worker dies, its part is done again.

        Args:
            work: Travels to each node once, with all that it refers to.
            parts: What it is called with.
            take: Called here with a part's number and its result, in the order in which they come.
            progress: Print a line for each part that is done.

        Raises:
            VisuomotorError: What `work` raised.
            ConfigError: The work cannot travel, the nodes lack what it needs, or workers die again and again.
        """
        ray = self._ray
        try:
            shared = ray.put(work)
        except (TypeError, pickle.PicklingError) as error:
            raise ConfigError(_told(error, "a policy of torch can travel")) from error
        waiting: dict[Any, int] = {}
        try:
            task = ray.remote(_work).options(num_cpus=self._threads, num_gpus=self._gpus, max_retries=TRIES - 1)
            waiting = {task.remote(shared, part, self._threads): number for number, part in enumerate(parts)}
            while waiting:
                (done,), _ = ray.wait(list(waiting), num_returns=1)
                result = ray.get(done)
                # Arrays from Ray are read-only, and lie in memory that goes with it.
                take(waiting.pop(done), copy.deepcopy(result))
                if progress:
                    print(f"ray: {len(parts) - len(waiting)} of {len(parts)} parts done", file=sys.stderr, flush=True)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, VisuomotorError):
                raise type(cause)(str(cause)) from error
            raise ConfigError(_told(error, "the same Python, packages and Visuomotor on every node?")) from error
        finally:
            for reference in waiting:  # others may use the cluster too
                ray.cancel(reference)  # by force, Ray 2.60 sometimes ends this process as well


@contextmanager
def cluster(address: str, device: str = "cpu") -> Generator[Cluster]:
    """Connects to a Ray cluster for as long as the block runs. In a process that has already, its own is used.

    Args:
        address: `host:port`, `ray://host:port`, `local` for a cluster on this machine that ends with the block, or
            `auto`.
        device: Of the work: on `cuda` each worker has a GPU.

    Raises:
        ConfigError: Ray is not installed, the cluster does not answer, or has too little room for a worker.
    """
    try:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray starts: it would report home
        import ray
    except ModuleNotFoundError as error:
        advice = "pip install 'visuomotor[ray]', here and on every node"
        raise ConfigError(mismatch("--ray", "Ray to be installed", f"no module {error.name}", advice)) from error
    if ray.is_initialized():
        yield Cluster(ray, device)
        return
    if address == AUTO:
        address = os.environ.get("RAY_ADDRESS", AUTO)
    _check_reachable(address)
    try:
        # `auto` would insist on a cluster that runs already.
        ray.init(address=None if address == AUTO else address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises many kinds, down to Exception itself, all of them meaning this
        raise ConfigError(_told(error, f"is a cluster running at {address}, of this version of Ray?")) from error
    try:
        yield Cluster(ray, device)
    finally:
        ray.shutdown()


def shares(items: Sequence[Part], count: int, size: int) -> list[Sequence[Part]]:
    """Cuts a sequence into `count` runs of nearly equal length, or fewer; all but the last are multiples of `size`."""
    blocks = -(-len(items) // size)
    count = min(count, blocks)
    borders = [blocks * number // count * size for number in range(count)] + [len(items)]
    return [items[begin:end] for begin, end in pairwise(borders)]


def _work(work: Callable[[Part], Result], part: Part, threads: int) -> Result:
    """On the worker."""
    torch.set_num_threads(threads)
    return work(part)


def _check_reachable(address: str) -> None:
    if address in (AUTO, "local"):
        return
    found = re.fullmatch(r"(?:ray://)?\[?(.+?)\]?:(\d{1,5})", address)
    if found is None:
        expected, advice = "host:port, ray://host:port, auto or local", "6379 is Ray's usual port"
        raise ConfigError(mismatch("--ray", expected, repr(address), advice))
    try:
        socket.create_connection((found[1], int(found[2])), timeout=PATIENCE).close()
    except OSError as error:
        advice = "start one there with `ray start --head`, or correct the address"
        raise ConfigError(mismatch("--ray", f"a Ray cluster at {address}", str(error), advice)) from error


def _told(error: BaseException, advice: str) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else ""  # of a traceback the error, of a message its end
    return mismatch("--ray", "a Ray cluster that does the work", f"{type(error).__name__}: {last.strip()}", advice)
