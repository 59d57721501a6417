"""The command line. One module a verb, which imports what is heavy only when it runs; only here does anything print."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0, 1 for an error, 2 for wrong usage. Ctrl-C ends the process with 130."""
    from .interrupt import exit_on_interrupt

    exit_on_interrupt()  # before the other imports, which take a while
    from .command import execute

    return execute(sys.argv[1:] if argv is None else argv)
