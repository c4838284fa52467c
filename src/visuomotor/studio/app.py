"""The studio's web application: its static files, a WebSocket for each tab, and what the pages ask of the data."""

import asyncio
import base64
import io
import json
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import TimeoutError as TooLong
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp
from starlette.websockets import WebSocket, WebSocketDisconnect

from visuomotor import __version__
from visuomotor.errors import VisuomotorError
from visuomotor.policy.samplers import SAMPLERS
from visuomotor.studio.browsing import Browsing
from visuomotor.studio.comparing import Comparing
from visuomotor.studio.driver import Driven, Driver, Gone
from visuomotor.studio.gate import Gate
from visuomotor.studio.policies import Policies
from visuomotor.studio.recorder import FOLDER, Recorder
from visuomotor.studio.recording import Recording
from visuomotor.studio.reports import Reports
from visuomotor.studio.session import Message, Session
from visuomotor.studio.sources import Sources
from visuomotor.studio.training import RUNS, Following, Training

STATIC = Path(__file__).parent / "static"
MOST_TABS = 16
SLOW = 30.0
"""Seconds after which a page that takes nothing is given up."""


class Studio:
    """What the pages reach.

    Attributes:
        sessions: Of the tabs that watch, each driven by a thread of its own.
        recordings: The same of the tabs that record.
        training: What they train; `followers` are the tabs that see it.

    Args:
        policies: To watch.
        sources: To browse.
        comparing: Of evaluation reports; None has none of them.
        recordings: The folder that is recorded into.
        runs: The folder that is trained in.
    """

    def __init__(
        self,
        policies: Policies,
        sources: Sources,
        comparing: Comparing | None = None,
        *,
        recordings: str = FOLDER,
        runs: str | Path = RUNS,
    ):
        self._policies, self._sources = policies, sources
        self._comparing = Comparing(Reports()) if comparing is None else comparing
        self._recorder = Recorder(recordings, sources)
        self.sessions: list[Session] = []
        self.recordings: list[Recording] = []
        self.training = Training(policies, sources, runs)
        self.followers: list[Following] = []

    def app(self, local: bool = True, token: str | None = None) -> ASGIApp:
        """The application, behind its gate; the arguments are the gate's."""
        routes = [
            Route("/api/about", self._about),
            *Browsing(self._sources).routes(),
            *self._comparing.routes(),
            WebSocketRoute("/api/watch", self._watch),
            WebSocketRoute("/api/record", self._record),
            WebSocketRoute("/api/train", self._train),
            Mount("/", StaticFiles(directory=STATIC, html=True)),
        ]
        refusals = {VisuomotorError: _refused}
        return Gate(Starlette(routes=routes, exception_handlers=refusals, lifespan=self._lifespan), local, token)

    def _about(self, _: Request) -> JSONResponse:
        self.training.look()  # which may have made a policy
        return JSONResponse(
            {
                "version": __version__,
                "policies": self._policies.names,
                "samplers": list(SAMPLERS),
                "sources": self._sources.names,
            }
        )

    async def _watch(self, socket: WebSocket) -> None:
        await self._drive(socket, Session(self._policies), self.sessions)

    async def _record(self, socket: WebSocket) -> None:
        recording = Recording(self._recorder)
        await self._drive(socket, recording, self.recordings, late=-recording.period / 2, done=recording.close)

    async def _train(self, socket: WebSocket) -> None:
        await self._drive(socket, Following(self.training), self.followers)

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncGenerator[None]:
        yield
        await asyncio.to_thread(self.training.close)

    async def _drive(
        self, socket: WebSocket, session: Driven, tabs: list[Any], done: Callable[[], None] = lambda: None, **clock: Any
    ) -> None:
        """One tab: what it says goes to its session, and what that has to tell comes back; `done` and `clock` as for
        `Driver`, whose end closes the tab's connection."""
        await socket.accept()
        if len(tabs) >= MOST_TABS:
            await socket.send_text(encode({"type": "error", "text": f"{MOST_TABS} tabs watch already: close one"}))
            await socket.close(1013)
            return
        loop = asyncio.get_running_loop()

        def tell(message: Message) -> None:
            if loop.is_closed():
                raise Gone
            try:
                asyncio.run_coroutine_threadsafe(socket.send_text(encode(message)), loop).result(SLOW)
            except (WebSocketDisconnect, RuntimeError, TooLong) as error:
                raise Gone from error

        over = loop.create_future()

        def ended() -> None:
            try:
                done()
            finally:
                with suppress(RuntimeError):  # the studio has ended, and its loop
                    loop.call_soon_threadsafe(over.set_result, None)

        driver = Driver(session, tell, done=ended, **clock)
        tabs.append(session)
        listening = asyncio.create_task(_listen(socket, driver))
        try:
            await asyncio.wait([listening, over], return_when=asyncio.FIRST_COMPLETED)
            if listening.done():
                listening.result()
            else:
                with suppress(WebSocketDisconnect, RuntimeError):  # the page may have left
                    await socket.close(1011)
        finally:
            listening.cancel()
            driver.close()
            tabs.remove(session)


async def _listen(socket: WebSocket, driver: Driver) -> None:
    """Passes on what a page says until it leaves."""
    try:
        while True:
            driver.command(_decoded(await socket.receive_text()))
    except WebSocketDisconnect:
        pass


def encode(message: Message) -> str:
    """A message as JSON: numbers rounded to a hundredth of a pixel, pictures as PNG."""
    return json.dumps(message, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype == np.uint8:
        return ["data:image/png;base64," + base64.b64encode(png(picture)).decode() for picture in value]
    if isinstance(value, np.ndarray):
        return np.round(value.astype(np.float64), 2).tolist()
    return value.item()


def png(picture: np.ndarray) -> bytes:
    """(H, W, 3) uint8 as a file; of one channel (H, W, 1) it is grey."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _decoded(text: str) -> dict[str, Any]:
    """What a page sent; the session says what is wrong with it."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}


async def _refused(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": " ".join(str(error).split())}, 422)
