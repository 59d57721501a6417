"""tinyslm pull: a model from the hub into its cache."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from . import source
from .terminal import say, size

HELP = "download a model from the Hugging Face hub"
DESCRIPTION = """\
Downloads a model from the Hugging Face hub into the cache that its other programs use too, checks it, and prints the
path of the file. A download that was interrupted goes on where it stopped. Run again, it fetches a newer version if
there is one.\
"""
EXAMPLES = """\
examples:
  tinyslm pull HuggingFaceTB/SmolLM2-360M-Instruct-GGUF
  tinyslm pull bartowski/Llama-3.2-1B-Instruct-GGUF             Q4_K_M, or what is nearest to it
  tinyslm pull bartowski/Llama-3.2-1B-Instruct-GGUF:Q8_0        what was asked for
  tinyslm pull OWNER/NAME:folder/model.gguf                     this file

environment:
  HF_HOME, HF_HUB_CACHE   where the cache lies
  HF_TOKEN                for repositories that are not open to all (or: hf auth login)
  HF_ENDPOINT             another hub
  HF_HUB_OFFLINE=1        take what the cache has, ask nobody
"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="REPO[:QUANT]", help="OWNER/NAME of the repository, and a quantisation or file"
    )


def run(args: Namespace) -> int:
    from .. import hub

    found = hub.find(args.model, update=True)
    already = found.path.is_file()
    path = source.bring(found)
    if not found.commit:
        say(f"{found.spec}, {size(found.choice.size)}, is in the cache; offline, so the hub was not asked")
    elif already:
        say(f"{found.spec}, {size(found.choice.size)}, is in the cache and up to date")
    print(path)
    return 0
