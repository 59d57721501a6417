"""Which model a verb uses: a file, one of the hub, or the built-in one."""

from __future__ import annotations

import shutil
import time
from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import OptionError
from .terminal import Status, say, size

if TYPE_CHECKING:
    from ..hub import Found

HELP = "a GGUF file (of a split model, the first part), or hf:REPO[:QUANT] from the hub; without it, the built-in model"
LARGER = "hf:HuggingFaceTB/SmolLM2-360M-Instruct-GGUF"
OTHERS = 12  # names that a line has room for


def add_argument(parser: ArgumentParser) -> None:
    parser.add_argument("-m", "--model", metavar="MODEL", help=HELP)


def add_threads(parser: ArgumentParser) -> None:
    text = "threads (the physical cores that this process may use)"
    parser.add_argument("-t", "--threads", metavar="N", type=count, help=text)


def count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1 << 20:
        raise ArgumentTypeError(f"must be a number from 1 to {1 << 20}, not {text}")
    return int(text)


def find(name: str | None) -> Path:
    """The file of the model that was named. Says what is not plain from the name."""
    if name is None:
        from .. import builtin

        path = builtin.path()
        say(f"no -m: this is the built-in model, a small one that tells tales; for a larger one: -m {LARGER}")
        return path
    if not name.startswith("hf:"):
        if not name:
            raise OptionError("the name of the model is empty")
        return Path(name)
    from .. import hub

    found = hub.find(name)
    if not found.commit:
        say(f"{found.spec}, {size(found.choice.size)}, from the cache")
    return bring(found)


def bring(found: Found) -> Path:
    """Download what is missing of a model, and show how it goes on."""
    from .. import hub

    total, name = found.choice.size, found.choice.name.rpartition("/")[2]
    if not found.commit:
        return found.path
    if not found.path.is_file():
        parts = f" and {len(found.choice.files) - 1} more parts" if len(found.choice.files) > 1 else ""
        say(f"{found.repo} has {found.choice.name}{parts}, {size(total)}{_others(found)}")
        say("downloading it; should that be interrupted, the same command goes on where it stopped")
    with Status(f"downloading {name}") as status:
        begin, first = time.monotonic(), -1

        def show(done: int) -> None:
            nonlocal first
            first = done if first < 0 else first
            speed = (done - first) / max(time.monotonic() - begin, 0.1)
            left = f", {(total - done) / speed:.0f} s left" if speed else ""
            status.share, status.text = done / max(total, 1), _line(name, f"{size(done)}, {size(int(speed))}/s{left}")

        return hub.download(found, show)


def _others(found: Found) -> str:
    """What else there is, for a line."""
    names = found.others[:OTHERS]
    more = f" and {len(found.others) - OTHERS} more" if len(found.others) > OTHERS else ""
    return f"; also there: {', '.join(names)}{more}" if names else ""


def _line(name: str, numbers: str) -> str:
    """A status line that a terminal's width holds, with room for the share."""
    room = max(shutil.get_terminal_size().columns - len(numbers) - 12, 8)
    return f"{name if len(name) <= room else '…' + name[1 - room :]}  {numbers}"
