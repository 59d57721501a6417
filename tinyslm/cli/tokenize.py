"""tinyslm tokenize: the token ids of a text."""

from __future__ import annotations

import json
from argparse import ArgumentParser, BooleanOptionalAction, Namespace

from . import prompt, source
from .terminal import printable

HELP = "show the tokens of a text"
DESCRIPTION = """\
Shows the tokens of a text: a line each, the id and the piece as the vocabulary spells it. Reads no weights, so that a
file with only a vocabulary will do.\
"""
EXAMPLES = """\
examples:
  tinyslm tokenize -m model.gguf "Once upon a time"
  tinyslm tokenize -m model.gguf --special "<|im_start|>user"    control tokens are found in the text
  tinyslm tokenize -m model.gguf -f book.txt | wc -l             how many there are
"""


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    source.add_argument(parser)
    prompt.add_arguments(parser)
    add("--bos", action=BooleanOptionalAction, default=None,
        help="put the token that begins a text before it, or nothing around it (as the file says)")  # fmt: skip
    add("--special", action="store_true", help="texts of control tokens become those tokens")
    add("--json", action="store_true", help="one JSON object: tokens (ids), pieces")


def run(args: Namespace) -> int:
    text = prompt.read(args, args.parser)
    from ..gguf import GGUF
    from ..tokenizer import load

    with GGUF.open(source.find(args.model)) as file:
        tokenizer = load(file.metadata, file.path)
    ids = tokenizer.encode(text, bos=args.bos, special=args.special)
    pieces = [tokenizer.token_text(i) for i in ids]
    if args.json:
        print(json.dumps({"tokens": ids, "pieces": pieces}))
    else:
        print("".join(f"{i:6} {printable(piece)}\n" for i, piece in zip(ids, pieces, strict=True)), end="")
    return 0
