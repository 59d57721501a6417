"""Compares the tokenizers with the libraries that the models ship with, on random and adversarial strings.

    python tests/check_tokenizers.py [--strings 100000] [--seed 0] [--only NAME] [--megabyte]

For each name of a pre-tokenizer, the library's own components are put together as the models' tokenizer.json has them,
over the merges of a real vocabulary; for SentencePiece, a model is built whose normaliser does what is done here by
hand. --megabyte: a million times one character instead, for the time that it takes.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import gguf
from tokenizers import Regex, Tokenizer, models
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split

from tinyslm import tokenizer
from tinyslm.gguf import GGUF

VOCABS = Path(__file__).resolve().parents[2] / "shared" / "data" / "vocab"

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def splits(*patterns: str) -> list[PreTokenizer]:
    return [Split(Regex(pattern), "isolated") for pattern in patterns] + [ByteLevel(False, use_regex=False)]


GPT2 = [ByteLevel(False)]
DIGITS_GPT2 = [Digits(individual_digits=True), ByteLevel(False)]
TEKKEN = GPT4O.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace("{1,3}", "")
# Falcon is not here: its tokenizer.json looks for digits after characters have become bytes, which llama.cpp does not.
# name: (vocabulary, components, words of the vocabulary go before merges)
FAMILIES: dict[str, tuple[str, list[PreTokenizer], bool]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "mpt"), ("gpt-2", GPT2, False)),
    **dict.fromkeys(("starcoder", "refact", "smollm", "command-r"), ("starcoder", DIGITS_GPT2, False)),
    **{name: ("qwen2", splits(LLAMA3.replace("{1,3}", "")), False) for name in ("qwen2", "stablelm2")},
    "llama-bpe": ("llama-bpe", splits(LLAMA3), True),
    "dbrx": ("llama-bpe", splits(LLAMA3), False),
    "smaug-bpe": ("llama-bpe", splits(LLAMA3), False),
    "gpt-4o": ("llama-bpe", splits(GPT4O), False),
    "tekken": ("llama-bpe", splits(TEKKEN), True),
    "deepseek-coder": ("gpt-2", [
        *(Split(Regex(p), "isolated") for p in (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+")),
        Digits(individual_digits=True), ByteLevel(False, use_regex=False),
    ], False),
}  # fmt: skip

ALPHABETS = [
    "abcdefgh ETAOIN", "0123456789 ,.", " \n\r\t", "\u00a0\u2003\u3000 \u200b\u200d\ufeff", "éüßœñÅİıſ ǅΩμ",
    "Привет, как дела", "中文字符。，！ 一龥\u3007", "ひらがなカタカナー", "한국어 \ud7a3ㄱ", "العربية ٠١٢٣",
    "हिन्दी देवनागरी ०१",
    "ไทย ๑๒", "e\u0301\u0308\u0327\u20dd", "😀👩\u200d👩\u200d👧🏽🇩🇪☃\ufe0f", "\x00\x01\x07\x1b\x7f\x80\x9f",
    "'sS tT rReE vVlLmMdD’",
    "$+<=>^~|`!?#%&*()[]{}_-/\\@:;\"", "²³¼½Ⅷ①৴", "\ud800\udfff\udc00", "\U0001d400\U00020000\U000e0041\U0010ffff",
    "<|im_end|></s><s>▁",
]  # fmt: skip
SNIPPETS = [
    "<|endoftext|>", "I'LL ", "don't ", "\r\n\r\n", "    ", "\n\n\n ", "123456", " 1,000.50", "http://a.b/c?d=e",
    "def f(x):\n\t",
    "</s>", "▁", "<0x0A>", "ﬁ", "İstanbul", "a" * 40, " " * 40, "\n" * 20, "!" * 30,
]  # fmt: skip


def strings(count: int, seed: int) -> Iterator[str]:
    """Short texts: of one script, of several, of characters from anywhere, of snippets."""
    draw = random.Random(seed)
    for _ in range(count):
        parts = []
        for _ in range(draw.randint(1, 6)):
            kind = draw.random()
            if kind < 0.6:
                alphabet = draw.choice(ALPHABETS)
                parts.append("".join(draw.choice(alphabet) for _ in range(draw.randint(1, 12))))
            elif kind < 0.8:
                parts.append(draw.choice(SNIPPETS))
            else:
                top = draw.choice((0x100, 0x3000, 0x10000, 0x110000))
                parts.append("".join(chr(draw.randrange(top)) for _ in range(draw.randint(1, 5))))
        yield "".join(parts)


def well_formed(text: str) -> str:
    return "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in text)


def ours(vocab: str, **changes: object) -> tokenizer.Tokenizer:
    path = VOCABS / f"ggml-vocab-{vocab}.gguf"
    with GGUF.open(path) as file:
        keys = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
        return tokenizer.load({**file.metadata, **keys}, path)


@cache
def fields(vocab: str) -> dict[str, Any]:
    """What the file says, by another reader than ours."""
    reader = gguf.GGUFReader(VOCABS / f"ggml-vocab-{vocab}.gguf")
    names = ("tokens", "merges", "token_type", "scores")
    found = {name: reader.get_field(f"tokenizer.ggml.{name}") for name in names}
    return {name: field.contents() for name, field in found.items() if field}


def library_bpe(vocab: str, components: list[PreTokenizer], ignore_merges: bool) -> Callable[[str], list[int]]:
    found = fields(vocab)
    kinds = found["token_type"]
    words = {text: i for i, text in enumerate(found["tokens"]) if kinds[i] not in (2, 3)}
    merges = [tuple(merge.split(" ")) for merge in found["merges"]]
    made = Tokenizer(models.BPE(words, merges, ignore_merges=ignore_merges))
    made.pre_tokenizer = Sequence(components)
    return lambda text: made.encode(well_formed(text), add_special_tokens=False).ids  # type: ignore[no-any-return]


def library_spm(vocab: str, prefix: bool, squeeze: bool) -> Callable[[str], list[int]]:
    from sentencepiece import SentencePieceProcessor
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    found, proto = fields(vocab), ModelProto()
    for text, score, kind in zip(found["tokens"], found["scores"], found["token_type"], strict=True):
        proto.pieces.add(piece=text, score=score, type=kind)
    proto.trainer_spec.model_type = 2
    proto.trainer_spec.byte_fallback = True
    proto.normalizer_spec.add_dummy_prefix = prefix
    proto.normalizer_spec.remove_extra_whitespaces = squeeze
    made = SentencePieceProcessor(model_proto=proto.SerializeToString())
    return lambda text: made.encode(well_formed(text))  # type: ignore[no-any-return]


def cases(only: str | None) -> Iterator[tuple[str, tokenizer.Tokenizer, Callable[[str], list[int]]]]:
    for name, (vocab, components, ignore_merges) in FAMILIES.items():
        if only in (None, name):
            yield name, ours(vocab, pre=name), library_bpe(vocab, components, ignore_merges)
    for prefix in (True, False):
        for squeeze in (False, True):
            name = f"llama-spm{'' if prefix else ', no prefix'}{', squeezed' if squeeze else ''}"
            if only in (None, name):
                made = ours("llama-spm", add_space_prefix=prefix, remove_extra_whitespaces=squeeze)
                yield name, made, library_spm("llama-spm", prefix, squeeze)


def compare(made: tokenizer.Tokenizer, library: Callable[[str], list[int]], texts: Iterator[str]) -> list[str]:
    return [text for text in texts if made.encode(text, bos=False) != library(text)]


def megabyte(made: tokenizer.Tokenizer) -> float:
    """The most seconds on the processor that a million of one character take."""
    worst = 0.0
    for char in ("a", " ", "\n", "1", "!", "é", "中", "'", "\u0301", " a", "a ", "\r ", "A1"):
        start = time.process_time()
        made.encode(char * (1_000_000 // len(char)), bos=False)
        worst = max(worst, time.process_time() - start)
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(description="compares the tokenizers with the libraries of the models")
    parser.add_argument("--strings", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="NAME")
    parser.add_argument("--megabyte", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # StarCoder's vocabulary lacks a byte
    failed = 0
    for name, made, library in cases(args.only):
        if args.megabyte:
            print(f"{name:<28} {megabyte(made):6.2f} s at the most", flush=True)
            continue
        differ = compare(made, library, strings(args.strings, args.seed))
        failed += bool(differ)
        shown = ", ".join(ascii(text) for text in sorted(differ, key=len)[:3])
        print(f"{name:<28} {args.strings} strings, {len(differ)} differ {shown}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
