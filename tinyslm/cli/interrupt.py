"""Ctrl-C. Imported before anything else, so it imports little."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

NEWLINE = b"\n"
last_words = NEWLINE  # to a terminal on the way out, so that the shell's prompt gets a line of its own
writing = threading.Lock()  # held while text is written to a terminal: none may follow the last words
farewell: Callable[[], None] | None = None  # what else is to be done on the way out
_waiter: threading.Thread | None = None


@contextmanager
def doing(last: Callable[[], None]) -> Iterator[None]:
    """`last` is done on the way out while the block runs."""
    global farewell
    before, farewell = farewell, last
    try:
        yield
    finally:
        farewell = before


def exit_on_interrupt() -> None:
    """Have Ctrl-C end the process at once, with code 130.

    Python runs a handler when the main thread comes back to it, which may take long in a compiler or a library; a
    thread that waits for the signal needs no more than the interpreter's lock.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN or not hasattr(signal, "pthread_sigmask"):
        return
    global _waiter
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    _waiter = threading.Thread(target=_wait_for_interrupt, daemon=True)
    _waiter.start()


def hand_over() -> None:
    """From here on Ctrl-C is for a handler of Python's, in the main thread."""
    global _waiter
    waiter, _waiter = _waiter, None
    if waiter is None or waiter.ident is None:
        return
    with contextlib.suppress(ProcessLookupError):  # a Ctrl-C came just now
        signal.pthread_kill(waiter.ident, signal.SIGINT)
    waiter.join()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _wait_for_interrupt() -> None:
    signal.sigwait({signal.SIGINT})
    if _waiter is None:
        return
    try:
        if farewell:
            farewell()
        writing.acquire(timeout=0.2)  # a terminal that was stopped keeps its writer, and nobody waits for that
        if os.isatty(2):
            os.write(2, last_words)
    finally:
        os._exit(130)
