"""Takes a command apart, has its verb run, and turns what goes wrong into one line and an exit code."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from .. import __version__
from ..errors import TinySLMError
from . import bench, chat, convert, imatrix, models, perplexity, pull, quantize, run, show, tokenize
from .terminal import say

VERBS = {"run": run, "chat": chat, "pull": pull, "models": models, "show": show, "tokenize": tokenize, "bench": bench,
         "perplexity": perplexity, "quantize": quantize, "imatrix": imatrix, "convert": convert}  # fmt: skip
EXAMPLES = """\
examples:
  tinyslm run "Once upon a time"                   with the built-in model
  tinyslm run -m model.gguf "Once upon a time"
  tinyslm run -m hf:HuggingFaceTB/SmolLM2-360M-Instruct-GGUF "Once upon a time"
  tinyslm chat -m model.gguf
  tinyslm pull bartowski/Llama-3.2-1B-Instruct-GGUF
  tinyslm models
  tinyslm show model.gguf
  tinyslm tokenize -m model.gguf "Once upon a time"
  tinyslm bench --shape llama-3.2-1b
  tinyslm perplexity -m model.gguf -f text.txt
  tinyslm convert FOLDER model-f16.gguf --type f16 of a model as the hub has it, in safetensors
  tinyslm quantize model-f16.gguf model-q4_k_m.gguf Q4_K_M
  tinyslm run -h                                   all that a verb can do

environment:
  TINYSLM_THREADS   threads, where -t is not given
  TINYSLM_BACKEND   native, numba or reference
  TINYSLM_ISA       the instruction set that native uses, instead of the best one of this CPU

Models are files that end in .gguf, or names on the hub: https://huggingface.co/models?library=gguf
"""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        say(f"{message} ({self.prog} -h says more)")
        self.exit(2)


class Version(argparse.Action):
    """Prints the version, and what would run a model here."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from .. import backends

        backend = backends.choose()
        if backend == "native":
            from ..backends.native import choose_isa

            backend += f", {choose_isa()}"
        print(f"tinyslm {__version__} ({backend})")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "tinyslm", description="Small language models on the CPU, from GGUF files.", epilog=EXAMPLES,
        allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action=Version, nargs=0, help="the version, and what would run a model here")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for name, verb in VERBS.items():
        sub = verbs.add_parser(
            name, help=verb.HELP, description=verb.DESCRIPTION, epilog=verb.EXAMPLES, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        verb.add_arguments(sub)
        sub.set_defaults(parser=sub, run=verb.run)
    return parser


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    if not argv:
        parser.print_help(sys.stderr)
        parser.exit(2)
    if argv[0] not in VERBS and not argv[0].startswith("-"):
        import difflib

        near = difflib.get_close_matches(argv[0], VERBS, 1)
        instead = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(VERBS)}"
        parser.error(f"there is no verb {argv[0]!r}; {instead}")
    args, rest = parser.parse_known_args(argv)
    if rest:
        args.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return args


def _describe(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return f"out of memory: {error}".rstrip(": ")
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    return str(error)


def _call(argv: Sequence[str]) -> int:
    try:
        args = _parse(argv)
        code: int = args.run(args)
    except SystemExit as exit:  # argparse leaves so
        code = exit.code if isinstance(exit.code, int) else 0
    if sys.stdout is not None:
        sys.stdout.flush()
    return code


def execute(argv: Sequence[str]) -> int:
    """Run one command. The exit code: 0, 1 for an error, 2 for wrong usage."""
    warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        return _call(argv)
    except BrokenPipeError:  # who reads has enough
        _discard_stdout()
        return 0
    except (TinySLMError, MemoryError, OSError) as error:
        with contextlib.suppress(OSError):
            say(_describe(error))
        _discard_stdout()
        return 1


def _discard_stdout() -> None:
    """What is left in the buffer would fail again, loudly, when the interpreter exits."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
