"""Where a verb's text comes from: the argument, -p, -f, or what is piped in."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..errors import OptionError


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("text", metavar="TEXT", nargs="*", help="the text, in quotes; or one of:")
    parser.add_argument("-p", "--prompt", metavar="TEXT", help="the text (also where it begins with a dash)")
    parser.add_argument("-f", "--file", metavar="FILE", type=Path,
                        help="a file that holds the text, - for stdin; a newline at its end is left out")  # fmt: skip


def read(args: Namespace, parser: ArgumentParser) -> str:
    """The one text that was given. Exits with a usage error where there is none, or more than one."""
    if len(args.text) > 1:
        parser.error(f"{len(args.text)} texts are given, one is wanted: put it in quotes")
    given = [source for source in (*args.text, args.prompt, args.file) if source is not None]
    if len(given) > 1:
        parser.error("the text is given more than once: as an argument, with -p or with -f, only one can be")
    if given and isinstance(given[0], str):
        return _checked(given[0])
    if not given and (sys.stdin is None or sys.stdin.isatty()):
        parser.error("no text: give it as an argument in quotes, with -f FILE, or through a pipe")
    return from_file(given[0] if given else Path("-"))


def from_file(path: Path) -> str:
    """The text of a file, - for stdin, without the newline at its end. OptionError where it is not UTF-8, OSError."""
    if path != Path("-"):
        return _decoded(path.read_bytes(), str(path))
    if sys.stdin is None:
        raise OSError("stdin is closed")
    return _decoded(sys.stdin.buffer.read(), "stdin")


def _decoded(data: bytes, name: str) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise OptionError(f"{name}: the text is not UTF-8 at byte {error.start}") from None
    return text[: -2 if text.endswith("\r\n") else -1] if text.endswith("\n") else text


def _checked(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise OptionError(f"the text is not UTF-8 at character {error.start}") from None
    return text
