"""What the verbs share in talking to a terminal: lines on stderr, a status line, text that cannot harm, Ctrl-C."""

from __future__ import annotations

import os
import sys
import threading
from types import TracebackType

from . import interrupt

ERASE = "\r\x1b[K"
# A model's text may bring any character; on a terminal these would move the cursor, set its title, fill its clipboard.
_CONTROLS = {c: f"\\x{c:02x}" for c in (*range(32), *range(0x7F, 0xA0)) if chr(c) not in "\n\t"}


def printable(text: str) -> str:
    """The text in one line: what is no printable character is spelled as in Python."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def size(count: int) -> str:
    """Bytes as a person reads them, in decimal units."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.2f} {name}"
    return f"{count} bytes"


def say(line: str) -> None:
    """One line on stderr, with the program's name before it."""
    if sys.stderr is not None:
        with Status.lock:
            Status.erase()
            print(f"tinyslm: {printable(line)}", file=sys.stderr, flush=True)


class Output:
    """Generated text to stdout, each piece at once; on a terminal without control characters, a newline at the end."""

    def __init__(self) -> None:
        if sys.stdout is None:
            raise OSError("stdout is closed")
        self._terminal = sys.stdout.isatty()
        self.at_line_start = True

    def write(self, text: str) -> None:
        if not text:
            return
        with interrupt.writing:
            sys.stdout.write(text.translate(_CONTROLS) if self._terminal else text)
            sys.stdout.flush()
        self.at_line_start = text.endswith("\n")

    def end(self) -> None:
        """The cursor of a terminal back to the start of a line."""
        if self._terminal and not self.at_line_start:
            self.write("\n")


class Status:
    """A line on stderr that says what is going on, where that takes more than a second; gone when the block is left.

    Only on a terminal. `share`, 0 to 1, is shown once it is set.
    """

    lock = threading.Lock()

    def __init__(self, text: str) -> None:
        self.text, self.share = text, 0.0
        self._done = threading.Event()
        shown = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._thread = threading.Thread(target=self._run, daemon=True) if shown else None

    def _run(self) -> None:
        pause = 1.0
        while not self._done.wait(pause):
            with Status.lock:
                interrupt.last_words = ERASE.encode()
                print(f"{ERASE}{self.text}{f' {self.share:.0%}' if self.share else ' ...'}", end="", file=sys.stderr)
                sys.stderr.flush()
            pause = 0.1

    @staticmethod
    def erase() -> None:
        """Take the line off, if there is one; the caller holds the lock."""
        if interrupt.last_words != interrupt.NEWLINE:
            interrupt.last_words = interrupt.NEWLINE
            print(ERASE, end="", file=sys.stderr, flush=True)

    def __enter__(self) -> Status:
        if self._thread:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread:
            self._done.set()
            self._thread.join()
            with Status.lock:
                Status.erase()
