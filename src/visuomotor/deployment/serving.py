"""`visuomotor serve`: opens a policy, checks who may reach it, and serves it until a signal."""

import asyncio
import dataclasses
import math
import os
import signal
import ssl
import sys
from pathlib import Path
from typing import Any

import torch
from visuomotor_client.protocol import PROTOCOL

from visuomotor import __version__
from visuomotor.deployment.server import Limits, PolicyServer
from visuomotor.errors import ConfigError, mismatch
from visuomotor.listening import TOKEN, address, check_port, is_local
from visuomotor.policy.checkpoint import find_policy, load_policy, read_json, weights_sha256
from visuomotor.policy.device import choose_device
from visuomotor.serialization import to_json
from visuomotor.simulation.rollout import ChunkPolicy


def serve(
    policy_source: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    token_file: Path | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
    fps: float | None = None,
    noise_scheduler_type: str | None = None,
    num_inference_steps: int | None = None,
    n_action_steps: int | None = None,
    ddim_eta: float | None = None,
    device: str = "auto",
    **limits: Any,
) -> None:
    """Serves a policy until SIGTERM or Ctrl-C; then finishes what runs, tells every client, and returns.

    Args:
        policy_source: As for `load_policy`.
        host: Where to listen.
        port: 0 takes a free one, which is printed.
        token_file: Holds the token; None takes the environment variable VISUOMOTOR_TOKEN, if it is set.
        certificate: PEM file for TLS, with `key`.
        key: Its private key.
        fps: Told to clients; None takes that of the run which the policy lies in, if it lies in one.
        noise_scheduler_type: Instead of the policy's own, as are the next three.
        num_inference_steps: Denoising steps.
        n_action_steps: Actions of a chunk.
        ddim_eta: Noise that DDIM adds.
        device: `cpu`, `cuda`, `mps`, or `auto`.
        **limits: The fields of `Limits`.

    Raises:
        ConfigError: A setting is out of range, or strangers could reach the server.
        CheckpointError: The policy cannot be loaded.
    """
    lent = Limits(**limits)
    _check(lent, port, fps)
    token = read_token(token_file)
    context = _tls(certificate, key)
    if not is_local(host):
        if token is None:
            advice = f"set {TOKEN} or --token-file, or listen on 127.0.0.1"
            raise ConfigError(mismatch("token", f"one, to listen on {host}", "none", advice))
        if context is None:
            print("warning: token and observations travel unencrypted; see --certificate and --key", file=sys.stderr)
    folder = find_policy(policy_source)
    device = choose_device(device)
    policy = load_policy(folder, device=device)
    policy = policy.with_sampler(noise_scheduler_type, num_inference_steps, n_action_steps, ddim_eta)
    if policy.config.warm_start < 1:
        print("warm_start: 1 here: a server plans each chunk from noise alone", file=sys.stderr)
        policy = policy.with_sampler(warm_start=1.0)
    rehearse(policy)
    name = Path(policy_source).resolve().name if Path(policy_source).is_dir() else str(policy_source)
    told = metadata(policy, name, weights_sha256(folder), fps or _recorded_fps(folder), device)
    server = PolicyServer(policy, told, lent, token)

    def listening(port: int) -> None:
        print(f"serving: {name} on {address('wss' if context else 'ws', host, port)}", flush=True)

    async def until_signal() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await server.run(host, port, stop, context, listening)

    asyncio.run(until_signal())
    print("stopped: every client has been told")


def metadata(policy: ChunkPolicy, name: str, weights_sha256: str, fps: float | None, device: str) -> dict[str, Any]:
    """What a client is told first."""
    return {
        "protocol": PROTOCOL,
        "policy": name,
        "weights_sha256": weights_sha256,
        "config": to_json(policy.config),
        "noise_draws": policy.noise_draws(),
        "fps": fps,
        "device": device,
        "threads": torch.get_num_threads(),
        "versions": {"visuomotor": __version__, "torch": torch.__version__},
    }


def rehearse(policy: ChunkPolicy) -> None:
    """Plans once from nothing, so that no client waits for what only the first call does."""
    config = policy.config
    observation = {
        name: torch.zeros(1, config.n_obs_steps, *feature.shape) for name, feature in config.input_features.items()
    }
    shape = (policy.noise_draws(), 1, config.horizon, *config.output_features["action"].shape)
    policy.predict_action_chunk(observation, noise=torch.zeros(shape))


def read_token(file: Path | None) -> str | None:
    """The token in a file or the environment; None if there is none.

    Raises:
        ConfigError: It is no line of printable ASCII.
    """
    source = TOKEN if file is None else str(file)
    token = os.environ.get(TOKEN, "") if file is None else file.read_text(errors="replace")
    token = token.strip()
    if not token and file is None:
        return None
    if not (token and token.isascii() and token.isprintable()):
        found = "nothing" if not token else "other characters"
        raise ConfigError(
            mismatch(source, "a token: one line of printable ASCII", found, "openssl rand -hex 32 makes one")
        )
    return token


def _check(limits: Limits, port: int, fps: float | None) -> None:
    for name, value in dataclasses.asdict(limits).items():
        if not 0 <= value < math.inf or (value == 0 and name != "batch_window"):  # NaN is nothing of that
            expected = "0 or more" if name == "batch_window" else "a positive number"
            raise ConfigError(mismatch(name, expected, value, "choose another number"))
    check_port(port, 8765)
    if fps is not None and not 0 < fps < math.inf:
        raise ConfigError(mismatch("fps", "a positive number", fps, "give the rate of the demonstrations"))


def _tls(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        found = "--certificate" if key is None else "--key"
        raise ConfigError(mismatch("TLS", "--certificate and --key", f"{found} alone", "give both PEM files"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password="")  # an encrypted key is refused, and not asked about
    except (ssl.SSLError, ValueError) as error:
        found = str(error)
        raise ConfigError(
            mismatch(f"{certificate}, {key}", "a PEM certificate and its key", found, "look at both")
        ) from error
    return context


def _recorded_fps(folder: Path) -> float | None:
    """The rate of the demonstrations, from the run whose checkpoint a policy's folder lies in."""
    for parent in folder.resolve().parents[:3]:  # RUN/checkpoints/step_000050/policy
        if (parent / "metrics.jsonl").is_file() and (parent / "config.json").is_file():
            content = read_json(parent / "config.json")
            data = content.get("data") if isinstance(content, dict) else None
            return data.get("fps") if isinstance(data, dict) else None
    return None
