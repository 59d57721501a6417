"""Asking the hub, and downloads that go on where they stopped; on huggingface_hub's HTTP client. See hub.py."""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO
from urllib.parse import quote, urlsplit

from huggingface_hub import constants, errors, get_session, get_token
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

from . import __version__
from .errors import HubError
from .hub import File

TRIES = 5  # in a row that bring nothing
PAUSE = 1.0  # seconds between two
CHUNK = 1 << 20  # bytes read from the disk at once
SPARE = 1 << 26  # bytes that a download leaves free on the disk
TRANSIENT = (408, 429, 500, 502, 503, 504)
LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# httpx or httpx2, by huggingface_hub's version
_http: ModuleType = importlib.import_module(errors.HfHubHTTPError.__mro__[1].__module__.partition(".")[0])


class _TransientError(Exception):
    """A download that stopped in the middle; worth another try."""


# ---- what a repository holds ----


def listing(repo: str) -> tuple[str, list[File]]:
    """The newest commit of a repository and its files. Raises HubError."""
    url = f"{constants.ENDPOINT}/api/models/{repo}/revision/main?blobs=true"
    try:
        with _get(url, constants.HF_HUB_ETAG_TIMEOUT) as response:
            _check(response, repo)
            text = response.read()
    except (_http.HTTPError, _http.InvalidURL, OSError) as error:
        raise _unreachable(error) from None
    try:
        return parse_listing(text)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise HubError(f"{_host()} answered with something that is no list of {repo}'s files") from None


def parse_listing(text: bytes) -> tuple[str, list[File]]:
    """The commit and the files in an answer; files whose names could do harm are left out.

    Raises ValueError, KeyError, TypeError or AttributeError for what is no such answer.
    """
    answer = json.loads(text)
    commit, files = answer["sha"], []
    if not _COMMIT.fullmatch(commit):
        raise ValueError(commit)
    for entry in answer["siblings"]:
        name, large = entry["rfilename"], entry.get("lfs") or {}
        size, digest = large.get("size", entry.get("size")), large.get("sha256", entry.get("blobId"))
        if is_safe(name) and isinstance(size, int) and size >= 0 and _DIGEST.fullmatch(str(digest)):
            files.append(File(name, size, digest))
        elif is_safe(name) and name.lower().endswith(".gguf"):
            raise ValueError(name)
    return commit, files


def is_safe(name: str) -> bool:
    """Whether a name, which a stranger chose, can be a path below a folder on any system, and be printed."""
    parts = name.split("/")
    return name.isprintable() and not any(c in name for c in '\\:*?"<>|') and all(p.strip(". ") for p in parts)


# ---- into the cache ----


def bring(repo: str, commit: str, files: Sequence[File], folder: Path, progress: Callable[[int], None]) -> None:
    """Download what is missing of `files` into a repository's cache folder. progress: bytes that are there.

    Raises HubError.
    """
    done = 0
    try:
        (folder / "blobs").mkdir(parents=True, exist_ok=True)
        _check_space(folder, sum(_missing(folder, commit, file) for file in files))
        for file in files:
            with WeakFileLock(_lock(folder, file)):
                if _missing(folder, commit, file):
                    url = f"{constants.ENDPOINT}/{repo}/resolve/{commit}/{quote(file.name)}"
                    _Download(repo, url, file, folder, partial(_add, progress, done)).run()
                _link(folder, commit, file)
            done += file.size
            progress(done)
        _write(folder / "refs" / "main", commit)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise HubError(f"the disk of {folder.parent} is full; what came is kept for another try") from None
        raise HubError(f"{error.filename or folder}: {error.strerror or error}") from None


def _add(progress: Callable[[int], None], before: int, count: int) -> None:
    progress(before + count)


def _missing(folder: Path, commit: str, file: File) -> int:
    """Bytes of a file that are still to come."""
    for path in (folder / "snapshots" / commit / file.name, folder / "blobs" / file.digest):
        if path.is_file() and path.stat().st_size == file.size:
            return 0
    begun = folder / "blobs" / f"{file.digest}.incomplete"
    return max(file.size - (begun.stat().st_size if begun.exists() else 0), 1)


def _check_space(folder: Path, missing: int) -> None:
    free = shutil.disk_usage(folder).free
    if missing and free < missing + SPARE:
        raise HubError(f"{missing / 1e9:.2f} GB are to come, the disk of {folder.parent} has {free / 1e9:.2f} GB free")


def _lock(folder: Path, file: File) -> Path:
    """The file by which huggingface_hub, too, keeps a second process out."""
    lock = folder.parent / ".locks" / folder.name / f"{file.digest}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    return lock


def _link(folder: Path, commit: str, file: File) -> None:
    """Give a blob its name. Where the system has no symbolic links, the blob itself moves."""
    blob, place = folder / "blobs" / file.digest, folder / "snapshots" / commit / file.name
    if place.is_file() and place.stat().st_size == file.size:
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    try:
        if getattr(constants, "HF_HUB_DISABLE_SYMLINKS", False):  # huggingface_hub 1.0 does not know it
            raise NotImplementedError
        place.symlink_to(os.path.relpath(blob, place.parent))
    except (NotImplementedError, OSError):
        os.replace(blob, place)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    new.write_text(text)
    os.replace(new, path)


class _Download:
    """One file on its way: blobs/DIGEST.incomplete grows, and is renamed when it is whole and its digest right."""

    def __init__(self, repo: str, url: str, file: File, folder: Path, progress: Callable[[int], None]) -> None:
        self._repo, self._url, self._file, self._progress = repo, url, file, progress
        self._blob = folder / "blobs" / file.digest
        self._partial = self._blob.with_name(f"{file.digest}.incomplete")

    def run(self) -> None:
        with self._partial.open("a+b") as self._out:
            self._begin()
            tries = 0
            while self._have < self._file.size:
                before = self._have
                try:
                    self._receive()
                except (_TransientError, _http.HTTPError) as error:
                    tries = 1 if self._have > before else tries + 1
                    if tries == TRIES:
                        raise HubError(f"{self._file.name}: {_reason(error)}; the same command goes on later") from None
                    time.sleep(PAUSE)
            self._out.flush()
            os.fsync(self._out.fileno())
        if self._hash.hexdigest() != self._file.digest:
            self._partial.unlink()
            raise HubError(f"{self._file.name}: what {_host()} sent has a wrong checksum and is deleted: try again")
        os.replace(self._partial, self._blob)

    def _begin(self) -> None:
        """Take in what an earlier try left."""
        self._restart_hash()
        self._out.seek(0)
        while chunk := self._out.read(CHUNK):
            self._hash.update(chunk)
            self._have += len(chunk)
        if self._have > self._file.size:
            self._restart()

    def _restart_hash(self) -> None:
        self._have = 0
        if len(self._file.digest) == 64:
            self._hash = hashlib.sha256()
        else:  # git's name of a blob
            self._hash = hashlib.sha1(b"blob %d\0" % self._file.size, usedforsecurity=False)

    def _restart(self) -> None:
        self._out.truncate(0)
        self._restart_hash()

    def _receive(self) -> None:
        """One request for what is missing, up to its end or the connection's."""
        with _get(self._url, constants.HF_HUB_DOWNLOAD_TIMEOUT, start=self._have) as response:
            if response.status_code in TRANSIENT:
                raise _TransientError(f"{_host()} answered with status {response.status_code}")
            _check(response, self._repo, self._file.name)
            if self._have and not _starts_at(response, self._have):
                self._restart()
            for chunk in response.iter_bytes():
                if self._have + len(chunk) > self._file.size:
                    self._restart()
                    raise HubError(f"{self._file.name}: {_host()} sends more than the {self._file.size} bytes it has")
                self._out.write(chunk)
                self._hash.update(chunk)
                self._have += len(chunk)
                self._progress(self._have)
        if self._have < self._file.size:
            raise _TransientError("the connection ended early")

    _out: BinaryIO
    _have: int
    _hash: Any


# ---- requests ----


def _get(url: str, timeout: float, start: int = 0) -> AbstractContextManager[Any]:
    """A response whose body is read by pieces. The client sends the token to the hub alone, not where it redirects."""
    headers = {"User-Agent": f"tinyslm/{__version__}"}
    headers["Accept-Encoding"] = "identity"  # ranges count the file's own bytes
    if not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN and (token := get_token()):
        headers["Authorization"] = f"Bearer {token}"
    if start:
        headers["Range"] = f"bytes={start}-"
    response: AbstractContextManager[Any] = get_session().stream(
        "GET", url, headers=headers, timeout=timeout, follow_redirects=True
    )
    return response


def _starts_at(response: Any, start: int) -> bool:
    got: str = response.headers.get("Content-Range", "")
    return response.status_code == 206 and got.startswith(f"bytes {start}-")


def _check(response: Any, repo: str, name: str = "") -> None:
    """Raises HubError for a refusal. What the server says about it is not shown: a stranger wrote it."""
    status, code = response.status_code, response.headers.get("X-Error-Code")
    if status in (200, 206):
        return
    if code == "GatedRepo" or status == 403:
        raise HubError(f"{repo} is gated: ask for access at {constants.ENDPOINT}/{repo}, then {LOGIN}")
    if status == 401 and response.headers.get("X-Error-Message", "").startswith("Invalid credentials"):
        raise HubError(f"{_host()} does not know the token: {LOGIN}")
    if status in (401, 404) and not name:
        raise HubError(f"{_host()} has no {repo}, or it is private: see to its spelling, or {LOGIN}")
    if status in (401, 404):
        raise HubError(f"{_host()} does not hand out {name} of {repo}: it was removed, or needs that you {LOGIN}")
    if status == 429:
        raise HubError(f"{_host()} had too many requests from here: wait some minutes, or {LOGIN}")
    raise HubError(f"{_host()} answered with status {status}")


def _host() -> str:
    return urlsplit(constants.ENDPOINT).netloc.rpartition("@")[2] or constants.ENDPOINT


def _reason(error: BaseException) -> str:
    if isinstance(error, _TransientError):
        return str(error)
    if isinstance(error, _http.TimeoutException):
        return f"{_host()} is silent for too long"
    if isinstance(error, _http.ConnectError):
        return f"no connection to {_host()}"
    return f"the connection to {_host()} broke"


def _unreachable(error: BaseException) -> HubError:
    if isinstance(error, _http.InvalidURL | _http.UnsupportedProtocol):
        return HubError(f"HF_ENDPOINT={constants.ENDPOINT!r} is no address")
    return HubError(f"{_reason(error)}: see to the network; a model that is in the cache runs without it")
