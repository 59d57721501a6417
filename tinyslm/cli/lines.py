"""What a user types or pipes in, a message at a time."""

from __future__ import annotations

import re
import sys
from contextlib import suppress

from ..errors import OptionError

QUOTES = '"""'
_SURROGATE = re.compile("[\ud800-\udfff]")


class Lines:
    """Messages from stdin: a line each, or what stands between two triple quotes; a pasted text is one.

    terminal: whether someone types; only then are there prompts, and lines that can be edited.
    """

    def __init__(self) -> None:
        if sys.stdin is None:
            raise OptionError("stdin is closed: chat reads what you say from there")
        self.terminal = sys.stdin.isatty()
        self._edited = False
        if self.terminal and sys.stdout is not None and sys.stdout.isatty():
            with suppress(ImportError):  # a Python without it
                import readline

                readline.parse_and_bind("set enable-bracketed-paste on")
                self._edited = True

    def begun(self) -> bool:
        """Whether something stands on the line that is being typed."""
        if not self._edited:
            return False
        import readline

        return bool(readline.get_line_buffer())

    def read(self, prompt: str) -> str | None:
        """The next message; None at the end of the input. Raises OptionError where a line is not UTF-8."""
        line = self._line(prompt)
        if line is None or not line.lstrip().startswith(QUOTES):
            return line
        text = line.lstrip().removeprefix(QUOTES)
        while not text.rstrip().endswith(QUOTES):
            line = self._line("... ")
            if line is None:
                return text
            text += "\n" + line
        return text.rstrip().removesuffix(QUOTES).strip("\n")

    def _line(self, prompt: str) -> str | None:
        try:
            if self._edited:
                line = input(prompt)
            else:
                if self.terminal and sys.stderr is not None:
                    print(prompt, end="", file=sys.stderr, flush=True)
                line = sys.stdin.readline()
                if not line:
                    return None
        except EOFError:
            return None
        except UnicodeDecodeError as error:
            raise OptionError(f"what came in is not UTF-8 at byte {error.start}") from None
        return _SURROGATE.sub("\ufffd", line.removesuffix("\n").removesuffix("\r"))
