"""Who may ask: this machine's own browser on the studio's own page, and from elsewhere only with the token."""

import hmac
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, quote, unquote, urlsplit

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCAL = ("127.0.0.1", "localhost", "::1")
ASK = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Visuomotor Studio</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="stylesheet" href="/studio.css">
<body class="ask"><form method="get" action="/"><h1>Visuomotor Studio</h1>
<label>Token<input name="token" type="password" autofocus autocomplete="off"></label><button>Open</button>
<p class="soft">It stands in the terminal that the studio was started in.</p></form>"""
HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Gate:
    """Lets requests through to an application, or answers itself.

    A page from elsewhere that the browser has open can send requests to 127.0.0.1 as well. It is known by its `Origin`;
    if it has made its own name point here (DNS rebinding), by `Host`.

    Args:
        app: What is behind it.
        local: Whether the studio listens on this machine alone: `Host` then has to name it.
        token: What browsers have to show once, in the address; it is kept in a cookie. None asks for none.
    """

    def __init__(self, app: ASGIApp, local: bool, token: str | None):
        self._app, self._local, self._token = app, local, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        answer = self._refusal(scope)
        if answer is None:
            await self._app(scope, receive, _with_headers(send))
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: HTTP 403
        else:
            await answer(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._local and _hostname(host) not in LOCAL:
            return _plain("Host: expected 127.0.0.1 or localhost, got another name", 403)
        if origin is not None and urlsplit(origin).netloc != host:
            return _plain("Origin: expected the studio's own page, got another", 403)
        if self._token is None:
            return None
        cookie = f"studio_{host.rpartition(':')[2]}"  # cookies do not keep ports apart
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if given and scope["type"] == "http" and self._fits(given):
            answer = RedirectResponse("/", 303)  # so that the token does not stay in the address
            answer.set_cookie(cookie, quote(given, safe=""), httponly=True, samesite="strict")
            return answer
        if self._fits(unquote(_cookie(headers, cookie))):
            return None
        return HTMLResponse(ASK, 401) if scope.get("path") == "/" else self._style_or_nothing(scope)

    def _style_or_nothing(self, scope: Scope) -> Response | None:
        """The page that asks for the token may have its style."""
        return None if scope.get("path") == "/studio.css" else _plain("token: expected one, got none", 401)

    def _fits(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), str(self._token).encode())


def _hostname(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _cookie(headers: Headers, name: str) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return found.value if found else ""


def _plain(text: str, status: int) -> Response:
    return Response(text + "\n", status, media_type="text/plain")


def _with_headers(send: Send) -> Send:
    async def told(message: Message) -> None:
        if message["type"] == "http.response.start":
            added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message = {**message, "headers": [*message["headers"], *added]}
        await send(message)

    return told
