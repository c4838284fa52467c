"""Servers that run within a test or beside it, and policies whose calls are counted."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visuomotor.config import DiffusionConfig
from visuomotor.deployment.server import Limits, PolicyServer
from visuomotor.deployment.serving import metadata
from visuomotor.policy.diffusion import DiffusionPolicy
from visuomotor.simulation.rollout import chunk_noise

from ..policy.small import small_config, small_policy


class Counting:
    """A policy that remembers how many rows each call of it had, and can be made to wait or to fail."""

    def __init__(self, policy: DiffusionPolicy) -> None:
        self.policy = policy
        self.rows: list[int] = []
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()
        self.result: float | Exception | None = None
        """What it gives in place of actions, if anything."""

    @property
    def config(self) -> DiffusionConfig:
        return self.policy.config

    def noise_draws(self) -> int:
        return self.policy.noise_draws()

    def predict_action_chunk(self, observation: dict[str, Tensor], noise: Tensor) -> Tensor:
        self.rows.append(noise.shape[1])
        self.entered.set()
        assert self.go.wait(60)
        if isinstance(self.result, Exception):
            raise self.result
        actions = self.policy.predict_action_chunk(observation, noise=noise)
        return actions if self.result is None else torch.full_like(actions, self.result)


def counting(**changes: Any) -> Counting:
    """A small random policy that acts in 2 steps: a camera, and a state of two numbers."""
    changes = {"cameras": 1, "noise_scheduler_type": "DDIM", "num_inference_steps": 2} | changes
    return Counting(small_policy(small_config(**changes)).eval())


class Running:
    """A server in a thread."""

    def __init__(self, policy: Counting, token: str | None = None, context: Any = None, **limits: Any) -> None:
        told = metadata(policy, "small", "0" * 64, 10.0, "cpu")
        self.policy, self.port = policy, 0
        self.server = PolicyServer(policy, told, Limits(**limits), token)
        self._context = context
        self._listens = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        assert self._listens.wait(60)
        self.url = f"{'ws' if context is None else 'wss'}://127.0.0.1:{self.port}"

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()

        def listening(port: int) -> None:
            self.port = port
            self._listens.set()

        await self.server.run("127.0.0.1", 0, self._stop, self._context, listening)

    def ask_to_stop(self) -> None:
        """As a signal does."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)

    def ended(self, seconds: float = 60) -> bool:
        """Whether it has left, after at most so long."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def metric(self, name: str, **labels: str) -> float:
        """One figure of /metrics, 0 if it has not been counted."""
        return self.server.metrics.registry.get_sample_value(name, labels) or 0.0


@contextmanager
def running(policy: Counting | None = None, **options: Any) -> Iterator[Running]:
    """A server that ends with the block."""
    server = Running(policy or counting(), **options)
    try:
        yield server
    finally:
        server.policy.go.set()
        server.ask_to_stop()
        assert server.ended()


CLIENT = Path(__file__).parents[2] / "client" / "src"


def environment(**more: str) -> dict[str, str]:
    """Of a process that finds the client, installed or not."""
    paths = [str(CLIENT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | more


@contextmanager
def started(*arguments: str, **more: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """`visuomotor serve` as a process of its own on a free port, and its URL; `more` is added to its environment."""
    command = [sys.executable, "-m", "visuomotor", "serve", *arguments, "--port", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=environment(**more), **pipes)
    try:
        line = process.stdout.readline()
        assert line.startswith("serving: "), process.communicate()
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.communicate()


def observations(config: DiffusionConfig, count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Single steps as a robot sees them: images uint8, states float32."""
    random = np.random.default_rng(seed)
    steps = []
    for _ in range(count):
        steps.append(
            {
                name: random.integers(0, 256, feature.shape, np.uint8)
                if feature.type == "VISUAL"
                else random.normal(size=feature.shape).astype(np.float32)
                for name, feature in config.input_features.items()
            }
        )
    return steps


def in_process(policy: DiffusionPolicy, seed: int, steps: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    """What `DiffusionPolicy.select_action` does in an episode of this seed, (Da,) each."""
    acting = policy.with_sampler()  # with queues of its own
    config = policy.config
    shape = (policy.noise_draws(), config.horizon, *config.output_features["action"].shape)
    actions = []
    for number, step in enumerate(steps):
        noise = torch.from_numpy(chunk_noise(seed, number // config.n_action_steps, shape))[:, None]
        seen = {name: torch.from_numpy(values)[None] for name, values in step.items()}
        actions.append(acting.select_action(seen, noise)[0].numpy())
    return actions


def until(holds: Callable[[], bool], seconds: float = 30) -> None:
    """Waits for something that happens in another thread."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)
