"""tinyslm convert: a model as it is published, to a GGUF file."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path

from .quantize import discarding
from .terminal import Status, say, size

HELP = "make a GGUF file of a model's published files (safetensors)"
DESCRIPTION = """\
Writes a GGUF file of a folder that a model was downloaded to, or that save_pretrained of the transformers library made.
It holds config.json, model.safetensors or its parts with model.safetensors.index.json, and the tokenizer:
tokenizer.json, or tokenizer.model, or vocab.json with merges.txt; tokenizer_config.json, generation_config.json and
chat_template.jinja are read where they are there.

  auto   each matrix as it is stored, most often bf16 (the default)
  f16    half the bits of f32, and more of them for precision than bf16; what most GGUF files are
  bf16   the range of f32, for weights that f16 cannot hold
  f32    all bits, twice the size
  q8_0   8.5 bits a weight

Norms and biases stay in f32. For fewer bits: convert, then tinyslm quantize. Keys, names and layouts are those of
llama.cpp's converter, and the file loads there too (but OPT, which it does not know).\
"""
EXAMPLES = """\
examples:
  hf download HuggingFaceTB/SmolLM2-135M-Instruct --local-dir smollm2
  tinyslm convert smollm2 smollm2.gguf
  tinyslm convert smollm2 smollm2-f16.gguf --type f16
  tinyslm quantize smollm2-f16.gguf smollm2-q4_k_m.gguf Q4_K_M
  tinyslm run -m smollm2-q4_k_m.gguf "Once upon a time"

The file appears under its name when it is whole; Ctrl-C or a full disk leaves nothing behind.
"""
TYPES = ("auto", "f32", "f16", "bf16", "q8_0")


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", metavar="HF_DIR", type=Path, help="the folder: config.json, safetensors, tokenizer")
    add("target", metavar="OUT.gguf", type=Path, help="the file to be written; one that is there is replaced")
    add("--type", metavar="TYPE", default="auto", type=str.lower, choices=TYPES, help="auto, f32, f16, bf16 or q8_0")
    text = "how words are cut, a name of tokenizer.ggml.pre (llama-bpe, qwen2 ...): where it is not recognised"
    add("--pre", metavar="NAME", help=text)


def run(args: Namespace) -> int:
    from ..convert import convert_folder

    with discarding(args.target), Status(f"writing {args.target.name}") as status:
        progress = partial(setattr, status, "share")
        result = convert_folder(args.folder, args.target, args.type, pre=args.pre, progress=progress)
    types = ", ".join(f"{kind} {count}" for kind, count in result.types.most_common())
    say(f"{args.target}: {size(result.after)}, {result.weights} weights; tensors: {types}")
    return 0
