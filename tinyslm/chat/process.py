"""The other end of worker.py: one process for all models, started when a template is first rendered."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import BackendError
from .wire import receive, send

WALL_SECONDS = 20.0 if hasattr(signal, "setitimer") else 2.0  # the worker's own limit counts the CPU, where it can
_SCRIPT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from tinyslm.chat.worker import serve; serve()"


class TimeUpError(Exception):
    """A rendering used up its time."""


class DiedError(Exception):
    """The process ended in the midst of a rendering: its stack, or its memory, was used up."""


class Worker:
    """Any number of threads may ask; one rendering runs at a time."""

    def __init__(self) -> None:
        self.forget()
        atexit.register(self.close)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._leave_to_parent)

    def forget(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Have the process get ready, without waiting for it. Raises BackendError."""
        with self._lock:
            self._running()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request. Raises TimeUpError, DiedError, and BackendError where no process can be started."""
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            late = threading.Timer(WALL_SECONDS, process.kill)
            late.start()
            try:
                with suppress(BrokenPipeError):  # it died; the answer is missing then too
                    send(process.stdin, request)
                answer = receive(process.stdout)
            except BaseException:  # Ctrl-C: an answer may be on its way that nobody waits for
                self._end()
                raise
            finally:
                in_time = late.is_alive()
                late.cancel()
            if answer is None:
                code = self._end()
                raise TimeUpError if not in_time or code == -getattr(signal, "SIGPROF", 0) else DiedError
            return answer

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._process is None:
            path = [str(Path(__file__).resolve().parents[2]), *sys.path]
            command = [sys.executable, "-I", "-S", "-c", _SCRIPT, json.dumps(path)]
            try:  # a session of its own: Ctrl-C is not for it
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
                    start_new_session=True,
                )  # fmt: skip
            except (OSError, ValueError) as error:
                raise BackendError(f"chat templates run in a process of their own, and none starts: {error}") from error
        return self._process

    def _end(self) -> int:
        """End the process; its exit code."""
        process, self._process = self._process, None
        assert process is not None
        process.kill()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                if pipe:
                    pipe.close()
        return process.wait()

    def close(self) -> None:
        with self._lock:
            if self._process is not None:
                self._end()

    def _leave_to_parent(self) -> None:
        """After a fork: the process is the parent's child."""
        if self._process is not None:
            self._process.returncode = 0  # not to be waited for here
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe:
                    pipe.close()
        self.forget()


WORKER = Worker()
