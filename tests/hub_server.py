"""A small server that speaks the hub's protocol as far as a download needs it, and can be as bad as networks are."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Request:
    method: str
    path: str
    range: str | None
    token: str | None


@dataclass
class Faults:
    """What goes wrong. break_after: body bytes of each file GET in turn after which the connection is cut."""

    break_after: list[int] = field(default_factory=list)
    status: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)  # by a part of the path
    body: bytes | None = None  # sent in place of a file
    answer: bytes | None = None  # sent in place of the listing
    silent_after: int | None = None  # body bytes, then nothing until `released`
    no_ranges: bool = False
    redirect: str = ""  # where file GETs are sent to
    released: threading.Event = field(default_factory=threading.Event)


class HubServer:
    """`with HubServer() as hub`: hub.url is the endpoint, hub.repos what it has, hub.faults what goes wrong."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.git: set[str] = set()  # names of files that are kept in git, not as large files
        self.commit = COMMIT
        self.faults = Faults()
        self.requests: list[Request] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubServer:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.faults.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def gets(self) -> list[Request]:
        """The requests for files' contents."""
        return [r for r in self.requests if r.method == "GET" and "/resolve/" in r.path]

    def digest(self, name: str, data: bytes) -> str:
        if name in self.git:
            return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        return hashlib.sha256(data).hexdigest()

    def listing(self, repo: str) -> bytes:
        siblings = []
        for name, data in self.repos[repo].items():
            entry = {"rfilename": name, "size": len(data), "blobId": hashlib.sha1(data).hexdigest()}
            if name in self.git:
                entry["blobId"] = self.digest(name, data)
            else:
                entry["lfs"] = {"sha256": self.digest(name, data), "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        return json.dumps({"id": repo, "sha": self.commit, "siblings": siblings}).encode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._respond()

    def do_GET(self) -> None:
        self._respond()

    def _respond(self) -> None:
        path = unquote(urlsplit(self.path).path).lstrip("/")
        headers = self.headers
        self.hub.requests.append(Request(self.command, path, headers.get("Range"), headers.get("Authorization")))
        for part, (status, extra) in self.hub.faults.status.items():
            if part in path:
                return self._send(status, b"", extra)
        if path.startswith("api/models/"):
            return self._listing(path)
        if "/resolve/" in path:
            return self._file(*path.split("/resolve/", 1))
        return self._send(404, b"")

    def _listing(self, path: str) -> None:
        repo = path.removeprefix("api/models/").partition("/revision/")[0]
        if self.hub.faults.answer is not None:
            return self._send(200, self.hub.faults.answer)
        if repo not in self.hub.repos:
            return self._send(401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        return self._send(200, self.hub.listing(repo), {"Content-Type": "application/json"})

    def _file(self, repo: str, rest: str) -> None:
        name = rest.partition("/")[2]
        data = self.hub.repos.get(repo, {}).get(name)
        if data is None:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        digest, faults = self.hub.digest(name, data), self.hub.faults
        extra = {"ETag": f'"{digest}"', "X-Linked-Etag": f'"{digest}"', "X-Repo-Commit": self.hub.commit,
                 "X-Linked-Size": str(len(data))}  # fmt: skip
        if faults.redirect and self.command == "GET":
            return self._send(302, b"", {"Location": f"{faults.redirect}/{self.path.lstrip('/')}"})
        if faults.body is not None:
            data = faults.body
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if not start or faults.no_ranges:
            return self._send(200, data, extra)
        return self._send(206, data[start:], {**extra, "Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"})

    def _send(self, status: int, body: bytes, extra: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(extra or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        faults = self.hub.faults
        if "/resolve/" in self.path and status < 300:
            if faults.break_after:
                self.wfile.write(body[: faults.break_after.pop(0)])
                self.close_connection = True
                return
            if faults.silent_after is not None:
                self.wfile.write(body[: faults.silent_after])
                faults.released.wait(30)
                self.close_connection = True
                return
        self.wfile.write(body)
