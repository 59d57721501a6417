"""Compares the tokenizers with the libraries that the models ship with, on random and adversarial strings.

    python tests/check_tokenizers.py [--strings 100000] [--seed 0] [--only NAME] [--megabyte] [--characters]

For each name of a pre-tokenizer, the library loads a tokenizer.json as the models publish it (`published.py`), over a
vocabulary that is trained here and goes through `tinyslm.convert`, which has to find the name; and over the model's own
vocabulary, where its file is in the shared data. SentencePiece models are trained here too, and Llama's own is tried
with all that a model may ask of spaces. Texts are encoded with control tokens parsed and as plain text, and the ids
decoded whole and one by one.

--characters: every character of Unicode instead, between others. --megabyte: a million times one character, and a
million random ones, for the time that they take and how it grows from half a million.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import gguf
from published import ADDED, ALPHABETS, FAMILIES, put, strings, tokenizer_json, trained, well_formed
from tokenizers import Tokenizer

from tinyslm import tokenizer
from tinyslm.convert import vocabulary
from tinyslm.gguf import GGUF

VOCABS = Path(__file__).resolve().parents[2] / "shared" / "data" / "vocab"
BATCH = 1000
MERGES = 4000
# name: (the file of its vocabulary, other names that go by it)
REAL = {
    "gpt-2": ("gpt-2", "phi-2", "olmo", "falcon", "deepseek-coder", "deepseek-llm", "default"),
    "llama-bpe": ("llama-bpe", "smaug-bpe", "dbrx", "gpt-4o", "tekken"),
    "qwen2": ("qwen2", "stablelm2"),
    "starcoder": ("starcoder", "refact", "smollm", "command-r"),
}
# name: whether a text gets a space before it, and whether spaces are squeezed
SPM = {
    "llama-spm": (True, False),
    "llama-spm, squeezed": (True, True),
    "llama-spm, no prefix": (False, False),
    "llama-spm, no prefix, squeezed": (False, True),
}


class Case(NamedTuple):
    """ours, and the library's: a function from texts to ids, one from ids to text, and how ours is to be asked."""

    name: str
    ours: tokenizer.Tokenizer
    encode: Callable[[list[str]], list[list[int]]]
    decode: Callable[[list[list[int]]], list[str]]
    special: bool


@cache
def fields(vocab: str) -> dict[str, Any]:
    """What the file says, by another reader than ours."""
    reader = gguf.GGUFReader(VOCABS / f"ggml-vocab-{vocab}.gguf")
    names = ("tokens", "merges", "token_type", "scores")
    found = {name: reader.get_field(f"tokenizer.ggml.{name}") for name in names}
    return {name: field.contents() for name, field in found.items() if field}


def ours(vocab: str, **changes: object) -> tokenizer.Tokenizer:
    path = VOCABS / f"ggml-vocab-{vocab}.gguf"
    with GGUF.open(path) as file:
        keys = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
        return tokenizer.load({**file.metadata, **keys}, path)


def library(made: dict[str, Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    tok = Tokenizer.from_str(json.dumps(made))
    return (
        lambda texts: [found.ids for found in tok.encode_batch(texts, add_special_tokens=False)],
        lambda ids: tok.decode_batch(ids, skip_special_tokens=False),
    )


def convert(folder: Path, size: int, arch: str) -> tokenizer.Tokenizer:
    return tokenizer.load(vocabulary.read(folder, {"vocab_size": size}, arch), folder)


def trained_bpe(name: str) -> Iterator[Case]:
    made = tokenizer_json(name, *trained(MERGES))
    with tempfile.TemporaryDirectory() as folder:
        tok = convert(Path(folder), put(Path(folder), made), FAMILIES[name][3])
    yield Case(name, tok, *library(made), True)
    plain = made | {"added_tokens": [token for token in made["added_tokens"] if not token["special"]]}
    yield Case(f"{name}, as text", tok, *library(plain), False)


def real_bpe(name: str) -> Iterator[Case]:
    for vocab in REAL.values():
        if name in vocab:
            found = fields(vocab[0])
            kinds = found["token_type"]
            words = {text: i for i, text in enumerate(found["tokens"]) if kinds[i] not in (2, 3)}
            made = tokenizer_json(name, words, found["merges"]) | {"added_tokens": []}
            yield Case(f"{name}, {vocab[0]}'s vocabulary", ours(vocab[0], pre=name), *library(made), False)


def _sentencepiece(proto: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    from sentencepiece import SentencePieceProcessor

    made = SentencePieceProcessor(model_proto=proto.SerializeToString())
    return lambda texts: [made.encode(text) for text in texts], lambda ids: [made.decode(one) for one in ids]


def real_spm(name: str) -> Iterator[Case]:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    prefix, squeeze = SPM[name]
    found, proto = fields("llama-spm"), ModelProto()
    for text, score, kind in zip(found["tokens"], found["scores"], found["token_type"], strict=True):
        proto.pieces.add(piece=text, score=score, type=kind)
    proto.trainer_spec.model_type = 2
    proto.trainer_spec.byte_fallback = True
    proto.normalizer_spec.add_dummy_prefix = prefix
    proto.normalizer_spec.remove_extra_whitespaces = squeeze
    tok = ours("llama-spm", add_space_prefix=prefix, remove_extra_whitespaces=squeeze)
    yield Case(name, tok, *_sentencepiece(proto), False)


def trained_spm(prefix: bool) -> Iterator[Case]:
    """A model that the library trained, with two control pieces beside its own."""
    from sentencepiece import SentencePieceTrainer
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    with tempfile.TemporaryDirectory() as folder:
        known = set("".join(ALPHABETS)) - {"\0"}  # the rest is left to bytes
        texts = ("".join(filter(known.__contains__, text)) for text in map(well_formed, strings(20_000, -1)))
        SentencePieceTrainer.train(
            sentence_iterator=texts, model_prefix=f"{folder}/tokenizer", model_type="bpe", vocab_size=MERGES + 1000,
            byte_fallback=True, normalization_rule_name="identity", add_dummy_prefix=prefix, minloglevel=2,
            remove_extra_whitespaces=False, character_coverage=0.98, split_by_whitespace=False,
            control_symbols=[text for text, special in ADDED if special],
        )  # fmt: skip
        proto = ModelProto()
        proto.ParseFromString((Path(folder) / "tokenizer.model").read_bytes())
        tok = convert(Path(folder), len(proto.pieces), "llama")
    yield Case(f"trained SPM{'' if prefix else ', no prefix'}", tok, *_sentencepiece(proto), False)


def cases(only: str | None) -> Iterator[Case]:
    for name in FAMILIES:
        if only in (None, name):
            yield from trained_bpe(name)
            yield from real_bpe(name)
    for name in SPM:
        if only in (None, name):
            yield from real_spm(name)
    for prefix in (True, False):
        if only in (None, "trained SPM"):
            yield from trained_spm(prefix)


def streamed(tok: tokenizer.Tokenizer, ids: list[int], special: bool) -> str:
    decoder = tok.stream(special=special)
    return "".join([decoder.push(token) for token in ids]) + decoder.flush()


def compare(case: Case, texts: Iterable[str]) -> tuple[int, list[str]]:
    """How many texts were tried, and those that differ."""
    tok, special = case.ours, case.special
    count, differ, rest = 0, [], iter(texts)
    while batch := list(islice(rest, BATCH)):
        wanted = case.encode([well_formed(text) for text in batch])
        for text, ids, back in zip(batch, wanted, case.decode(wanted), strict=True):
            if (
                tok.encode(text, bos=False, special=special) != ids
                or tok.decode(ids, special=special) != back
                or streamed(tok, ids, special) != back
            ):
                differ.append(text)
        count += len(batch)
    return count, differ


def characters() -> Iterator[str]:
    for code in range(0x110000):
        yield f"a{chr(code)} {chr(code)}{chr(code)}1 {chr(code)}b"


ONES = ("a", " ", "\n", "1", "!", "é", "中", "'", "\u0301", "\u0301\u0327", "😀", "\x00", " a", "a ", "\r ", "A1", "'s")


def megabyte(tok: tokenizer.Tokenizer) -> str:
    """The slowest text of a million characters, its seconds on the processor, and the worst growth from half of it."""
    texts = {ascii(char): char * (1_000_000 // len(char)) for char in ONES}
    texts["random"] = "".join(islice((char for text in strings(100_000, 1) for char in text), 1_000_000))
    slowest, growth = (0.0, ""), (0.0, "")
    for name, text in texts.items():
        half, whole = (_seconds(tok, part) for part in (text[: len(text) // 2], text))
        slowest, growth = max(slowest, (whole, name)), max(growth, (whole / half, name))
    return f"{slowest[0]:6.2f} s at the most ({slowest[1]}), at most {growth[0]:.1f} x half of it ({growth[1]})"


def _seconds(tok: tokenizer.Tokenizer, text: str) -> float:
    start = time.process_time()
    ids = tok.encode(text, bos=False)
    tok.decode(ids)
    return time.process_time() - start


def main() -> int:
    parser = argparse.ArgumentParser(description="compares the tokenizers with the libraries of the models")
    parser.add_argument("--strings", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="NAME")
    parser.add_argument("--megabyte", action="store_true")
    parser.add_argument("--characters", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # StarCoder's vocabulary lacks a byte
    failed = 0
    for case in cases(args.only):
        if args.megabyte:
            if case.name.endswith("as text"):
                continue  # the same tokenizer again
            print(f"{case.name:<36} {megabyte(case.ours)}", flush=True)
            continue
        count, differ = compare(case, characters() if args.characters else strings(args.strings, args.seed))
        failed += bool(differ)
        shown = ", ".join(ascii(text) for text in sorted(differ, key=len)[:3])
        print(f"{case.name:<36} {count} strings, {len(differ)} differ {shown}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
