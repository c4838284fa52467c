"""`visuomotor studio`: takes a port, tells the address, opens a browser, and serves until a signal."""

import os
import secrets
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from urllib.parse import quote

import uvicorn
from starlette.types import ASGIApp

from visuomotor.errors import ConfigError, mismatch
from visuomotor.listening import TOKEN, address, check_port, is_local
from visuomotor.policy.checkpoint import checkpoints
from visuomotor.studio.app import Studio
from visuomotor.studio.comparing import Comparing
from visuomotor.studio.policies import Policies
from visuomotor.studio.recorder import FOLDER
from visuomotor.studio.replays import Replays
from visuomotor.studio.reports import Reports, given
from visuomotor.studio.sources import Sources
from visuomotor.studio.training import RUNS

LONGEST = 2**16
"""Bytes of a message from a page."""


def studio(
    policy: Sequence[str] = (),
    data: Sequence[str] = (),
    reports: Sequence[str] = (),
    recordings: str = FOLDER,
    runs: str | Path = RUNS,
    *,
    host: str = "127.0.0.1",
    port: int = 8766,
    browser: bool = True,
    device: str = "auto",
) -> None:
    """Serves the studio until SIGTERM, Ctrl-C, or until its terminal is closed.

    Args:
        policy: Policies to watch, each as for `load_policy`; those that ship with Visuomotor follow.
        data: Data sets to look at, each as for `load_dataset`; the bundled demonstrations follow.
        reports: Evaluations to compare: folders that `visuomotor eval` wrote, or that hold such. None takes `outputs`
            in the working directory, if there is one.
        recordings: The folder of the data set that is recorded into; made when the first episode is kept.
        runs: The folder that is trained in, a folder each; policies that were trained there before come last.
        host: Where to listen. Anything but this machine asks for the token in VISUOMOTOR_TOKEN, or one that is made.
        port: 0 takes a free one.
        browser: Open the page in the user's browser.
        device: Where policies run: `cpu`, `cuda`, `mps`, or `auto`.

    Raises:
        ConfigError: The port is taken or no port, or there is no such host here.
        CheckpointError: A policy is nowhere to be found.
    """
    local = is_local(host)
    token = None if local else os.environ.get(TOKEN, "").strip() or secrets.token_urlsafe(24)
    policies = Policies(policy, device)
    for run in sorted(Path(runs).glob("*")):
        if checkpoints(run):
            policies.add(str(run))
    comparing = Comparing(Reports(given(reports)), Replays(device))
    application = Studio(policies, Sources(data), comparing, recordings=recordings, runs=runs).app(local, token)
    listener = listen(host, port)
    page = address("http", host, listener.getsockname()[1]) + "/" + (f"?token={quote(token)}" if token else "")
    if token:
        print("warning: token and pages travel unencrypted; on a network you do not trust use ssh -L", file=sys.stderr)
    print(f"studio:  {page}", flush=True)
    if browser:
        threading.Thread(target=webbrowser.open, args=(page,), daemon=True).start()
    serving = server(application)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        signal.signal(signal.SIGHUP, lambda _, frame: serving.handle_exit(signal.SIGTERM, frame))
    serving.run(sockets=[listener])


class Server(uvicorn.Server):
    """Ends with the first signal, in its own time: a training has a checkpoint to save, whoever is impatient."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            super().handle_exit(sig, frame)


def server(application: ASGIApp) -> Server:
    """What serves the application; it says nothing unless something is wrong."""
    return Server(
        uvicorn.Config(
            application,
            log_level="warning",
            lifespan="on",
            ws="websockets-sansio",
            ws_max_size=LONGEST,
            timeout_graceful_shutdown=2,
        )
    )


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 is a free one.

    Raises:
        ConfigError: The port is taken or no port, or there is no such host here.
    """
    check_port(port, 8766)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        advice = "choose another with --port; 0 takes a free one"
        found = error.strerror or str(error)
        raise ConfigError(mismatch(f"{host}:{port}", "a free port", found, advice)) from error
    return listener
