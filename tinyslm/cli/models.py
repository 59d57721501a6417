"""tinyslm models: what is at hand."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from typing import Any

from ..errors import FileError
from .terminal import printable, size

HELP = "list the models at hand: the built-in one and those in the hub's cache"
DESCRIPTION = """\
Lists the models that run without a download: the built-in one, and the GGUF files in the hub's cache, with the name
that -m takes. Touches no network.\
"""
EXAMPLES = """\
examples:
  tinyslm models
  tinyslm models --json | jq -r '.[].path'
"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="a JSON list: model (for -m), repo, file, path, quant, bytes"
    )


def run(args: Namespace) -> int:
    found = at_hand()
    print(json.dumps(found, indent=1) if args.json else "\n".join(_lines(found)))
    return 0


def at_hand() -> list[dict[str, Any]]:
    """One entry a model; of the built-in one, which -m need not name, model and repo are None."""
    from .. import builtin, hub

    entries: list[dict[str, Any]] = []
    try:
        path = builtin.path()
        entries.append(_entry(None, None, path.name, str(path), hub.quant_of(path.name), path.stat().st_size))
    except FileError:
        pass  # an install without it
    models = hub.cached()
    specs = [m.spec for m in models]
    for m in models:
        spec = m.spec if specs.count(m.spec) == 1 else f"{hub.PREFIX}{m.repo}:{m.choice.name}"
        entries.append(_entry(spec, m.repo, m.choice.name, str(m.path), m.choice.quant, m.choice.size))
    return entries


def _entry(model: str | None, repo: str | None, file: str, path: str, quant: str, count: int) -> dict[str, Any]:
    return {"model": model, "repo": repo, "file": file, "path": path, "quant": quant, "bytes": count}


def _lines(entries: list[dict[str, Any]]) -> list[str]:
    rows = [(e["model"] or "built in", e["quant"] or "-", size(e["bytes"]), e["file"]) for e in entries]
    rows = [("MODEL", "QUANT", "SIZE", "FILE"), *((printable(a), b, c, printable(d)) for a, b, c, d in rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return [f"{a:{widths[0]}}  {b:{widths[1]}}  {c:>{widths[2]}}  {d}" for a, b, c, d in rows]
