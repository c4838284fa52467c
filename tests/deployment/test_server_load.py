"""Fifty robots at ten actions a second. `VISUOMOTOR_LOAD_SECONDS` says for how long, else 3 seconds."""

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch

from visuomotor.policy.checkpoint import load_policy
from visuomotor.simulation.rollout import chunk_noise

from .load import seen
from .running import environment, started

CLIENTS, RATE = 50, 10


@pytest.mark.slow
def test_fifty_clients_lose_and_mix_up_nothing(tmp_path, capsys):
    seconds = float(os.environ.get("VISUOMOTOR_LOAD_SECONDS", "3"))
    with started("pusht-keypoints-small", NO_PROXY="127.0.0.1") as (_, url):
        script = [sys.executable, str(Path(__file__).parent / "load.py")]
        command = [*script, url, str(CLIENTS), str(RATE), str(seconds), str(tmp_path / "answers.npz")]
        subprocess.run(command, env=environment(NO_PROXY="127.0.0.1"), check=True, timeout=seconds + 240)
        with urllib.request.urlopen(url.replace("ws", "http") + "/metrics", timeout=30) as answer:
            figures = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if line[0] != "#")
    answers = np.load(tmp_path / "answers.npz")
    client, chunk, waited = (answers[name] for name in ("client", "chunk", "seconds"))

    # Nothing is lost: each client has its chunks 0 to n, and the server has answered as many.
    for number in range(CLIENTS):
        assert sorted(chunk[client == number]) == list(range((client == number).sum()))
    assert len(np.unique(client)) == CLIENTS
    assert float(figures['visuomotor_requests_total{kind="chunk",outcome="answered"}']) == len(chunk)
    assert float(figures["visuomotor_rows_total"]) == len(chunk)

    # Nothing is mixed up: each has the actions of what it saw, from its own noise.
    np.testing.assert_allclose(answers["actions"], expected(client, chunk), rtol=1e-5, atol=1e-5)

    calls = float(figures["visuomotor_network_calls_total"])
    with capsys.disabled():
        print(
            f"\n{CLIENTS} clients at {RATE} Hz for {seconds:g} s: {len(chunk)} chunks, all answered, none mixed up; "
            f"median {1e3 * np.median(waited):.0f} ms, 99th percentile {1e3 * np.quantile(waited, 0.99):.0f} ms; "
            f"{len(chunk) / calls:.1f} chunks a call of the network, {len(answers['late'])} late ticks of "
            f"{round(CLIENTS * RATE * seconds)}"
        )


def expected(client: np.ndarray, chunk: np.ndarray) -> np.ndarray:
    """What the policy in the process answers."""
    policy = load_policy("pusht-keypoints-small")
    shape = (policy.noise_draws(), policy.config.horizon, 2)
    chunks = []
    for first in range(0, len(client), 64):
        pairs = list(zip(client[first : first + 64].tolist(), chunk[first : first + 64].tolist(), strict=True))
        observed = [seen(*pair) for pair in pairs]
        observation = {n: torch.from_numpy(np.concatenate([o[n] for o in observed])) for n in observed[0]}
        noise = np.stack([chunk_noise(*pair, shape) for pair in pairs], axis=1)
        chunks.append(policy.predict_action_chunk(observation, noise=torch.from_numpy(noise)).numpy())
    return np.concatenate(chunks)
