"""A studio that runs in a thread of the test, and a real browser to look at it with."""

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.sync.client import ClientConnection

from visuomotor.data import bundled
from visuomotor.studio.app import Studio
from visuomotor.studio.comparing import Comparing
from visuomotor.studio.policies import Policies
from visuomotor.studio.reports import Reports
from visuomotor.studio.serving import listen, server
from visuomotor.studio.sources import Sources

from .measured import measured

CHROMIUM = shutil.which("chromium")
PATIENCE = 60_000  # milliseconds: the machine may be busy
SIZES = {"laptop": (1280, 800), "tablet": (1024, 768), "upright": (768, 1024), "phone": (390, 844)}
"""Of the screens that every page has to fit on."""


@dataclass
class Running:
    """A studio, and where it is."""

    studio: Studio
    port: int

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class Serving:
    """One application on a port, until `close`."""

    def __init__(self, application: Any, port: int = 0):
        self._listener = listen("127.0.0.1", port)
        self.port: int = self._listener.getsockname()[1]
        self._server = server(application)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]})
        self._thread.start()

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()


def hear(tab: ClientConnection, kind: str) -> dict[str, Any]:
    """The next message of a kind; no error may come before."""
    while True:
        message = json.loads(tab.recv(timeout=120))
        if message["type"] == kind:
            return message
        assert message["type"] != "error", message


@pytest.fixture(scope="package", autouse=True)
def no_folders_of_the_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A studio that is given no folders has empty ones, and not those in the working directory."""
    folder = tmp_path_factory.mktemp("folders")
    own = {"recordings": str(folder / "recordings"), "runs": folder / "runs"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Studio.__init__, "__kwdefaults__", own)
        yield


@pytest.fixture(scope="package")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The first 20 frames of 12 of the bundled demonstrations."""
    file = tmp_path_factory.mktemp("data") / "tiny.npz"
    with np.load(bundled.FILE) as content:
        rows = (np.array([0, *content["episode_ends"][:11]])[:, None] + np.arange(20)).ravel()
        columns = {name: content[name][rows] for name in ("agent", "block", "action")}
    np.savez(file, **columns, episode_ends=np.arange(20, 241, 20))
    return str(file)


@pytest.fixture(scope="package")
def policies() -> Policies:
    return Policies()


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two real evaluations; nobody writes there."""
    return tmp_path_factory.mktemp("reports")


@pytest.fixture(scope="package")
def contents(folder: Path) -> dict[str, dict[str, Any]]:
    """What the evaluations wrote, by name."""
    return measured(folder)


@pytest.fixture(scope="package")
def comparing(policies: Policies, folder: Path, contents: dict[str, dict[str, Any]]) -> Iterator[Serving]:
    """A studio that compares them."""
    serving = Serving(Studio(policies, Sources(), Comparing(Reports([str(folder)]))).app())
    yield serving
    serving.close()


@pytest.fixture
def running(policies: Policies) -> Iterator[Running]:
    studio = Studio(policies, Sources())
    serving = Serving(studio.app())
    yield Running(studio, serving.port)
    serving.close()


@pytest.fixture(scope="package")
def chromium() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("chromium: expected Debian's browser, got none; apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags, timeout=PATIENCE)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """A tab; a test in which the page complains in its console fails."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(PATIENCE)
    tab = context.new_page()
    said: list[str] = []
    tab.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.said = said
    yield tab
    context.close()
    assert said == []
