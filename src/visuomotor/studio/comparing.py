"""What the page that compares asks of evaluation reports, as addresses below /api/reports."""

import asyncio
from threading import Event

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from visuomotor.errors import CheckpointError, ConfigError, mismatch
from visuomotor.studio.addresses import NUMBER
from visuomotor.studio.replays import Replays, Stopped, command
from visuomotor.studio.reports import Report, Reports, pair

ATTENTION = 0.2
"""Seconds between two looks at whether a page still waits."""
UNREAD = 499
"""The status of what nobody reads, as nginx has it."""


class Comparing:
    """The addresses. What the page can show in its place is no error: `refused` then says why something is not there.

    Args:
        reports: What may be looked at, and nothing else.
        replays: Roll out what no video shows; one that finds its device is made where none is given.
    """

    def __init__(self, reports: Reports, replays: Replays | None = None):
        self._reports, self._replays = reports, replays or Replays()

    def routes(self) -> list[Route]:
        """All of them."""
        one = f"/api/reports/{{report:{NUMBER}}}"
        return [
            Route("/api/reports", self._list),
            Route(one, self._report),
            Route(f"{one}/against/{{other:{NUMBER}}}", self._pair),
            Route(f"{one}/videos/{{seed:{NUMBER}}}", self._video),
            Route(f"{one}/replays/{{seed:{NUMBER}}}", self._replay),
        ]

    def _list(self, _: Request) -> Response:
        return JSONResponse({"folders": self._reports.folders, "reports": self._reports.list()})

    def _report(self, request: Request) -> Response:
        return JSONResponse(self._open(request).told())

    def _pair(self, request: Request) -> Response:
        first, second = self._open(request), self._reports.open(request.path_params["other"])
        try:
            return JSONResponse(pair(first, second))
        except ConfigError as error:
            return _refused(error)

    def _video(self, request: Request) -> Response:
        report, seed = self._open(request), request.path_params["seed"]
        path = report.video(seed)
        if path is None:
            raise ConfigError(mismatch(f"{report.folder}: seed {seed}", "a video", "none", command(report, seed)))
        return FileResponse(path, media_type="video/mp4")

    async def _replay(self, request: Request) -> Response:
        seed, gone = request.path_params["seed"], Event()
        report = await run_in_threadpool(self._open, request)
        report.outcome(seed)
        work = asyncio.create_task(self._rolled(report, seed, gone))
        try:
            while not (await asyncio.wait([work], timeout=ATTENTION))[0]:
                if await request.is_disconnected():
                    gone.set()
            return await work
        except asyncio.CancelledError:  # the studio ends
            return Response(status_code=UNREAD)
        finally:
            gone.set()

    async def _rolled(self, report: Report, seed: int, gone: Event) -> Response:
        try:
            return JSONResponse(await run_in_threadpool(self._replays.episode, report, seed, gone.is_set))
        except Stopped:
            return Response(status_code=UNREAD)
        except (ConfigError, CheckpointError) as error:
            return _refused(error, command=command(report, seed))

    def _open(self, request: Request) -> Report:
        return self._reports.open(request.path_params["report"])


def _refused(error: Exception, **told: str) -> Response:
    return JSONResponse({"refused": " ".join(str(error).split())} | told)
