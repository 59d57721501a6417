"""tinyslm quantize: a model file in fewer bits."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from . import interrupt, source
from .terminal import Status, say, size

HELP = "make a model file smaller: Q8_0, Q4_K_M, Q4_0 ..."
DESCRIPTION = """\
Writes a model file with its matrices in another type. From the original (F32, F16 or BF16), which loses least:

  Q8_0                   8.5 bits a weight; as good as the original
  Q6_K  Q5_K_M  Q4_K_M   6.6, 5.7 and 4.8 bits: the usual choices. Q4_K_M loses little, and is a quarter of F16
  Q4_0                   4.5 bits, the fastest
  Q3_K_M  Q2_K           3.9 and 3.2 bits: for models that would not fit otherwise; --imatrix helps most here

_S, _M and _L say how many of the matrices that matter most get more bits. All types, and what each matrix gets, are
those of llama.cpp's quantiser, and the file loads there too. Rows that a type's blocks of 256 do not divide are held in
a type with blocks of 32: Q4_K in Q5_0, Q5_K in Q5_1, Q6_K in Q8_0, others in Q4_0 or IQ4_NL. TQ1_0, TQ2_0, Q2_0 and
Q1_0 are for models that were trained with two or three values a weight; others they ruin.

The scales of each block are searched for, so that the squared differences are least; with --imatrix, those count most
that meet large inputs. Names, tokenizer and all other metadata stay as they are.\
"""
EXAMPLES = """\
examples:
  tinyslm quantize model-f16.gguf model-q4_k_m.gguf Q4_K_M
  tinyslm quantize model-f16.gguf model-q8_0.gguf Q8_0
  tinyslm imatrix -m model-f16.gguf -f text.txt -o imatrix.gguf
  tinyslm quantize --imatrix imatrix.gguf model-f16.gguf model-q2_k.gguf Q2_K
  tinyslm quantize --requantize model-q8_0.gguf model-q4_0.gguf Q4_0    from a file that has lost already

The file appears under its name when it is whole; Ctrl-C or a full disk leaves nothing behind.
"""


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="IN.gguf", help="a GGUF file (of a split model, the first part), or hf:REPO[:QUANT]")
    add("target", metavar="OUT.gguf", type=Path, help="the file to be written; one that is there is replaced")
    add("type", metavar="TYPE", help="Q4_K_M, Q8_0 ...; in either case")
    add("--imatrix", metavar="FILE", type=Path, help="how much each column matters: from tinyslm imatrix or llama.cpp")
    add("--requantize", action="store_true", help="allow a source that is quantised already")
    source.add_threads(parser)


def run(args: Namespace) -> int:
    mix = _mix(args)
    from ..quantise import quantise_file, read_importance

    path = source.find(args.source)
    importance = read_importance(args.imatrix) if args.imatrix else None
    with discarding(args.target), Status(f"writing {args.target.name}") as status:
        result = quantise_file(path, args.target, mix, requantise=args.requantize, importance=importance,
                               threads=args.threads, progress=partial(setattr, status, "share"))  # fmt: skip
    types = ", ".join(f"{kind} {count}" for kind, count in result.types.most_common())
    bits = 8 * result.after / result.weights
    say(f"{args.target}: {size(result.after)} (from {size(result.before)}), {bits:.2f} bits a weight; tensors: {types}")
    return 0


@contextmanager
def discarding(target: Path) -> Iterator[None]:
    """Should Ctrl-C end the process within the block, what there is of `target` goes."""
    from ..gguf_writer import unfinished

    def discard() -> None:
        for path in unfinished(target.parent):
            path.unlink(missing_ok=True)

    with interrupt.doing(discard):
        yield


def _mix(args: Namespace) -> str:
    """The mix that was named; a usage error, with the nearest name, where there is none such."""
    from ..formats import TYPE_IDS
    from ..mixes import ALIASES, MIXES

    name: str = ALIASES.get(args.type.upper(), args.type.upper())
    if name not in MIXES:
        import difflib

        near = difflib.get_close_matches(name, MIXES, 1)
        mean = f"did you mean {near[0]}? " if near else ""
        what = f"nothing here quantises to {name}" if name in TYPE_IDS else f"there is no type {args.type!r}"
        args.parser.error(f"{what}; {mean}there are {', '.join(MIXES)}")
    return name
