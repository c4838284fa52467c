"""What the pages ask of data sets, as addresses below /api/data."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from visuomotor.config import DiffusionConfig
from visuomotor.data.inspection import inspect
from visuomotor.errors import ConfigError, mismatch
from visuomotor.studio.addresses import NUMBER
from visuomotor.studio.sources import Source, Sources


class Browsing:
    """The addresses; each answer is computed in a thread, so that no page waits for another.

    Args:
        sources: What may be looked at, and nothing else.
    """

    def __init__(self, sources: Sources):
        self._sources = sources

    def routes(self) -> list[Route]:
        """All of them."""
        one = f"/api/data/{{source:{NUMBER}}}"
        episode = f"{one}/episodes/{{episode:{NUMBER}}}"
        return [
            Route(one, self._overview),
            Route(f"{one}/inspection", self._inspection),
            Route(episode, self._series),
            Route(f"{episode}/window", self._window),
            Route(f"{episode}/frames", self._frames),
        ]

    def _overview(self, request: Request) -> Response:
        return JSONResponse(self._source(request).overview())

    def _inspection(self, request: Request) -> Response:
        frames = _number(request, "frames", 0) > 0
        return JSONResponse(inspect(self._source(request).dataset, frames).to_json())

    def _series(self, request: Request) -> Response:
        return JSONResponse(self._source(request).series(request.path_params["episode"]))

    def _window(self, request: Request) -> Response:
        config = DiffusionConfig(
            n_obs_steps=_number(request, "n_obs_steps", DiffusionConfig.n_obs_steps),
            horizon=_number(request, "horizon", DiffusionConfig.horizon),
            n_action_steps=1,
            drop_n_last_frames=_number(request, "drop_n_last_frames", DiffusionConfig.drop_n_last_frames),
        )
        position, frame = request.path_params["episode"], _number(request, "frame", 0)
        return JSONResponse(self._source(request).window(position, frame, config))

    def _frames(self, request: Request) -> Response:
        camera, position = request.query_params.get("camera", ""), request.path_params["episode"]
        first, count = _number(request, "first", 0), _number(request, "count", 1)
        content, kind = self._source(request).pictures(camera, position, first, count)
        return Response(content, media_type=kind)

    def _source(self, request: Request) -> Source:
        return self._sources.open(request.path_params["source"])


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ConfigError(mismatch(name, "a whole number", repr(text), "correct the address"))
    return int(text)
