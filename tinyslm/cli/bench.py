"""tinyslm bench: how fast a model runs here, and how near to this machine's limits."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import interrupt, source
from .terminal import Status, printable, say, size

if TYPE_CHECKING:
    from ..bench import Case, Result
    from ..shapes import Mixed

HELP = "measure speed, against the limits of this machine"
DESCRIPTION = """\
Measures how fast models read a prompt and generate, in tokens a second, on random tokens. Rows are named as llama-bench
names them: pp512 is a prompt of 512 tokens, tg128 a generation of 128, "@ d4096" behind 4096 tokens that are not
timed, "x4" four sequences that generate together. Beside each repetition the machine's own limits are measured, on the
same threads: the share is the median of what was reached of the limit beside it. Prompts are held against the rate of
8-bit multiplications and additions (two for each weight of the layers' matrices and each token), generation against
the rate of reading memory (the bytes of the weights that a token needs). As in llama-bench, of a prompt only the last
token's logits are computed; the last layer is then done for that token alone, and counted as if done for all.\
"""
EXAMPLES = """\
examples:
  tinyslm bench --shape llama-3.2-1b                     how fast this machine is, before any download
  tinyslm bench --shape smollm2-135m --type q4_0,q8_0
  tinyslm bench -m model.gguf -p 512 -n 128 -d 0,4096
  tinyslm bench -m a.gguf b.gguf -b 1,4 -r 9 -o json > bench.json

Ctrl-C ends it at once; what is measured by then has been printed.
"""
COLUMNS = ("model", "size", "threads", "test", "t/s", "rate", "limit", "share")
MOST = 512  # sequences in a step


def _numbers(low: int, high: int = 1 << 24) -> Callable[[str], list[int]]:
    """A parser of whole numbers with commas between."""

    def parse(text: str) -> list[int]:
        try:
            values = [int(part) for part in text.split(",")]
        except ValueError:
            raise ArgumentTypeError(f"{text!r} is no list of whole numbers") from None
        if not all(low <= v <= high for v in values):
            raise ArgumentTypeError(f"must be numbers from {low} to {high}, not {text}")
        return list(dict.fromkeys(values))

    return parse


def _number(text: str) -> int:
    values = _numbers(1)(text)
    if len(values) > 1:
        raise ArgumentTypeError(f"must be one number, not {text}")
    return values[0]


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("-m", "--model", metavar="MODEL", nargs="+", action="extend", help=source.HELP)
    add("--shape", metavar="NAME,…", help="in place of -m: random weights in the shape of a real model, made once and "
        "kept in the user's cache folder")  # fmt: skip
    add("--type", metavar="NAME,…", help="of --shape: q4_0, q8_0, q4_k_m … (q4_k_m)")
    add("-p", "--n-prompt", metavar="N,…", type=_numbers(0), default=[512], dest="prompt", help="tokens of a prompt; "
        "0: none (512)")  # fmt: skip
    add("-n", "--n-gen", metavar="N,…", type=_numbers(0), default=[128], dest="gen", help="tokens to generate; "
        "0: none (128)")  # fmt: skip
    add("-d", "--n-depth", metavar="N,…", type=_numbers(0), default=[0], dest="depth", help="tokens that stand before, "
        "not timed (0)")  # fmt: skip
    add(
        "-b", "--batch", metavar="N,…", type=_numbers(1, MOST), default=[1], help="sequences that generate together (1)"
    )
    add("-t", "--threads", metavar="N", type=_number, help="threads (the physical cores that this process may use)")
    add("--kv", choices=("f16", "q8_0"), default="f16", help="how keys and values are kept (f16)")
    add("-r", "--repetitions", metavar="N", type=_number, default=5, help="repetitions of each test (5)")
    add("-o", "--output", choices=("md", "csv", "json"), default="md", help="a Markdown table, CSV, or JSON with all "
        "samples, its keys those of llama-bench where they mean the same (md)")  # fmt: skip


def run(args: Namespace) -> int:
    if args.model and args.shape:
        args.parser.error("-m and --shape: one of the two")
    if args.type and not args.shape:
        args.parser.error("--type is of --shape")
    from .. import bench

    cases = bench.cases(args.prompt, args.gen, args.depth, args.batch)
    if not cases:
        args.parser.error("-p 0 -n 0 leaves nothing to measure")
    table = OUTPUTS[args.output]()
    for find in models(args):
        _measure(find(), cases, args, table)
    table.end()
    return 0


def _measure(path: Path, cases: Sequence[Case], args: Namespace, table: Table) -> None:
    from ..bench import Bench

    name = printable(path.name)
    with Status(f"loading {name}") as status:
        bench = Bench(path, args.threads, _shown(status), kv=args.kv)
    about = {"cpu_info": cpu()}
    with bench:
        for case in cases:
            bench.check(case)
        for case in cases:
            with Status(f"{name}: {case.name}") as status:
                result = bench.run(case, args.repetitions, _shown(status))
            now = {"test_time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
            table.add({**about, **bench.record(), **now, **result.record()}, result)


def _shown(status: Status) -> Callable[[float], None]:
    return partial(setattr, status, "share")


# ---- models ----


def models(args: Namespace) -> list[Callable[[], Path]]:
    """What brings each model's file; names are checked before anything is made."""
    if not args.shape:
        return [partial(source.find, name) for name in args.model or [None]]
    from ..shapes import Mixed

    mixed = [Mixed(shape, mix) for shape in args.shape.split(",") for mix in (args.type or "q4_k_m").split(",")]
    return [partial(_made, m) for m in mixed]


def _made(mixed: Mixed) -> Path:
    """The file in the cache; it is made where it is not there."""
    from ..shapes import cache_folder

    folder = cache_folder()
    path = folder / mixed.name
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    say(f"making {path}, {size(mixed.bytes)} of random weights; it is kept there")
    with tempfile.TemporaryDirectory(prefix=".making-", dir=folder, ignore_cleanup_errors=True) as scratch:
        discard = partial(shutil.rmtree, scratch, ignore_errors=True)
        with interrupt.doing(discard), Status(f"writing {mixed.name}") as status:
            mixed.write(Path(scratch) / mixed.name, _shown(status))
        os.replace(Path(scratch) / mixed.name, path)
    return path


def cpu() -> str:
    """The processor's name."""
    with suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


# ---- output ----


class Table:
    """Rows to stdout, each as soon as it is there."""

    def __init__(self) -> None:
        self.rows = 0

    def add(self, record: dict[str, Any], result: Result) -> None:
        self.write(self.row(record, result))
        self.rows += 1

    def row(self, record: dict[str, Any], result: Result) -> str:
        raise NotImplementedError

    def write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def end(self) -> None:
        pass


class Markdown(Table):
    """Widths are those of usual values: a row is printed before the next is known."""

    WIDTHS = (32, 9, 7, 20, 20, 12, 12, 6)

    def row(self, record: dict[str, Any], result: Result) -> str:
        unit, kind = ("GOPS", "gops") if result.case.prompt else ("GB/s", "gbps")
        values = (
            printable(Path(record["model_filename"]).name), size(record["model_size"]), str(record["n_threads"]),
            result.case.name, f"{record['avg_ts']:.2f} ± {record['stddev_ts']:.2f}", f"{record[kind]:.1f} {unit}",
            f"{record['probe_' + kind]:.1f} {unit}", f"{record['limit_share']:.0%}",
        )  # fmt: skip
        head = "" if self.rows else self._line(COLUMNS) + self._line([self._rule(i) for i in range(len(COLUMNS))])
        return head + self._line(values)

    def _rule(self, i: int) -> str:
        return "-" * (self.WIDTHS[i] - 1) + (":" if self._right(i) else "-")

    def _right(self, i: int) -> bool:
        return COLUMNS[i] not in ("model", "test")

    def _line(self, values: Sequence[str]) -> str:
        cells = [
            v.rjust(w) if self._right(i) else v.ljust(w)
            for i, (v, w) in enumerate(zip(values, self.WIDTHS, strict=True))
        ]
        return f"| {' | '.join(cells)} |\n"


class Csv(Table):
    """All that is one value."""

    def row(self, record: dict[str, Any], result: Result) -> str:
        plain = {key: value for key, value in record.items() if not isinstance(value, list)}
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not self.rows:
            writer.writerow(plain)
        writer.writerow(plain.values())
        return text.getvalue()


class Json(Table):
    """A list that Ctrl-C closes too."""

    def __init__(self) -> None:
        super().__init__()
        self._end = b"[]\n"
        interrupt.farewell = lambda: _write_all(self._end)

    def row(self, record: dict[str, Any], result: Result) -> str:
        return (",\n" if self.rows else "[\n") + json.dumps(record)

    def write(self, text: str) -> None:
        super().write(text)
        self._end = b"\n]\n"

    def end(self) -> None:
        interrupt.farewell = None
        sys.stdout.write(self._end.decode())


def _write_all(data: bytes) -> None:
    with suppress(OSError):
        os.write(1, data)


OUTPUTS: dict[str, Callable[[], Table]] = {"md": Markdown, "csv": Csv, "json": Json}
