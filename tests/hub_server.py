"""A small server on the loopback address that answers as the Hugging Face hub does, from and into a folder."""

import base64
import json
import threading
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

ROUTES = ("revision", "tree", "resolve", "preupload", "commit", "tag")


class HubServer:
    """Serves `folder`/{models,datasets}/OWNER/NAME/REVISION, one folder a branch or tag.

    Attributes:
        folder: Put what is to be served there; uploads arrive there. No other bookkeeping.
        endpoint: For HF_ENDPOINT.
        requests: `METHOD /path` of every request so far, without the query.
        fail: Given such a request, an HTTP status to answer with instead, or None.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.requests: list[str] = []
        self.fail = lambda request: None
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """From now on nobody answers."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def revisions(self, kind: str, name: str) -> dict[str, Path]:
        """Folders by branch, tag and commit."""
        named = {path.name: path for path in (self.folder / kind / name).glob("*") if path.is_dir()}
        return named | {commit(path): path for path in named.values()}

    def downloaded(self) -> list[str]:
        """The files that were fetched, ascending."""
        fetched = (request.partition("/resolve/")[2] for request in self.requests if request.startswith("GET "))
        return sorted(path.partition("/")[2] for path in fetched if path)


def files(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def digest(content: bytes) -> str:
    return sha1(content).hexdigest()


def commit(folder: Path) -> str:
    """Another one whenever a file is."""
    return digest(repr([(name, digest(path.read_bytes())) for name, path in files(folder).items()]).encode())


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_GET

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.requests.append(f"{self.command} {path}")
        status = self.hub.fail(self.hub.requests[-1])
        if status is not None:
            return self._answer(b"", status)
        if path == "/api/repos/create":
            return self._create(json.loads(self.body))
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        parts = path.removeprefix("/api/").strip("/").split("/")
        kind = parts.pop(0) if parts[0] in ("models", "datasets") else "models"
        name, rest = "/".join(parts[:2]), parts[2:]
        revisions = self.hub.revisions(kind, name)
        if not revisions:
            return self._answer(b"", 404, {"X-Error-Code": "RepoNotFound"})
        route, revision, inside = (rest or ["revision"])[0], (rest[1:] or ["main"])[0], "/".join(rest[2:])
        if route not in ROUTES or revision not in revisions:
            return self._answer(b"", 404, {"X-Error-Code": "RevisionNotFound"})
        answer = getattr(self, f"_{route}")
        return answer(revisions[revision], inside or name)

    def _revision(self, folder: Path, name: str) -> None:
        siblings = [{"rfilename": file} for file in files(folder)]
        self._answer({"id": name, "sha": commit(folder), "siblings": siblings, "tags": [], "downloads": 0, "likes": 0})

    def _tree(self, folder: Path, name: str) -> None:
        sizes = {file: path.read_bytes() for file, path in files(folder).items()}
        self._answer([{"type": "file", "path": f, "size": len(c), "oid": digest(c)} for f, c in sizes.items()])

    def _resolve(self, folder: Path, file: str) -> None:
        headers = {"X-Repo-Commit": commit(folder)}
        if file not in files(folder):
            return self._answer(b"", 404, headers | {"X-Error-Code": "EntryNotFound"})
        content = (folder / file).read_bytes()
        return self._answer(content, 200, headers | {"ETag": f'"{digest(content)}"'})

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        folder = self.hub.folder / f"{wanted.get('type', 'model')}s" / name / "main"
        status = 409 if folder.exists() else 200
        folder.mkdir(parents=True, exist_ok=True)
        self._answer({"url": f"{self.hub.endpoint}/{name}"}, status)

    def _preupload(self, folder: Path, name: str) -> None:
        wanted = [file["path"] for file in json.loads(self.body)["files"]]
        modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in wanted]
        self._answer({"files": modes})

    def _commit(self, folder: Path, name: str) -> None:
        """Files come within the commit: `_preupload` asked for no other way."""
        for line in self.body.splitlines():
            operation = json.loads(line)
            if operation["key"] == "file":
                path = folder / operation["value"]["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(base64.b64decode(operation["value"]["content"]))
        oid = commit(folder)
        self._answer({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.endpoint}/{name}/commit/{oid}"})

    def _tag(self, folder: Path, name: str) -> None:
        (folder.parent / json.loads(self.body)["tag"]).symlink_to(folder.name)
        self._answer({})

    def _answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
