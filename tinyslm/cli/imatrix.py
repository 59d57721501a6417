"""tinyslm imatrix: which columns of a model's matrices matter."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path

from . import prompt, source
from .quantize import discarding
from .terminal import Status, say

HELP = "measure what quantize --imatrix needs, over a text"
DESCRIPTION = """\
Runs a model over a text and writes how large the inputs of each matrix are, column by column: an importance matrix.
With it, `tinyslm quantize --imatrix` makes those weights exact that meet large inputs. It gains most at 2 and 3 bits.

The text should be of the kind that the model is for; some hundred thousand tokens are plenty, and ten chunks help
already. It is cut into chunks of -c tokens. The file is that of llama.cpp's llama-imatrix: either reads the other's.\
"""
EXAMPLES = """\
examples:
  tinyslm imatrix -m model-f16.gguf -f text.txt -o imatrix.gguf
  tinyslm imatrix -m model-f16.gguf -f text.txt -o imatrix.gguf -c 1024 --chunks 50
  tinyslm quantize --imatrix imatrix.gguf model-f16.gguf model-q3_k_m.gguf Q3_K_M
"""


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    source.add_argument(parser)
    prompt.add_arguments(parser)
    add("-o", "--output", metavar="OUT.gguf", type=Path, required=True, help="the file to be written")
    add("-c", "--ctx-size", metavar="N", type=source.count, default=512, dest="context", help="tokens of a chunk (512)")
    add("--chunks", metavar="N", type=source.count, help="most chunks (all that the text has)")
    source.add_threads(parser)


def run(args: Namespace) -> int:
    text = prompt.read(args, args.parser)
    from ..quantise.collect import collect_importance

    path = source.find(args.model)
    with discarding(args.output), Status(f"reading {args.file or 'the text'}") as status:
        chunks = collect_importance(
            path, text, args.output, context=args.context, chunks=args.chunks, dataset=str(args.file or ""),
            threads=args.threads, progress=partial(setattr, status, "share"),
        )  # fmt: skip
    say(f"{args.output}: the inputs of the matrices of {path}, over {chunks} chunks of {args.context} tokens")
    return 0
