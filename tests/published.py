"""The tokenizers of public models as their tokenizer.json has them, over vocabularies that are trained here.

The vocabulary is trained on texts that were not cut into words, and some merges are dropped while what they make stays:
so tokens reach across any place where a text could be cut, and cutting or `ignore_merges` shows in the ids.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

_WORD, _TAIL = r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\s*[\r\n]+|\s+(?!\S)|\s+"
_END = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
CL100K = rf"{_END}|{_WORD}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
QWEN2 = CL100K.replace("{1,3}", "")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
O200K = (
    rf"{_BEFORE}{_UPPER}*{_LOWER}+{_END}?|{_BEFORE}{_UPPER}+{_LOWER}*{_END}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
)
TEKKEN = O200K.replace(f"{_END}?", "").replace("{1,3}", "")
_CJK = "[一-龥ࠀ-一가-\ud7ff]+"
_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝ\u1f5f-\u1f7d"
    "ᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⲲⲳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿ"
    "ﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
).replace("Ⲳⲳ", "\u2cf2\u2cf3")
_SYMBOLS = "!-/:-~！-／：-～‘-‟\u3000-。"

Part = dict[str, Any]
DIGITS: Part = {"type": "Digits", "individual_digits": True}
NFC: Part = {"type": "NFC"}


def level(regex: bool) -> Part:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": regex}


def sequence(*parts: Part) -> Part:
    return {"type": "Sequence", "pretokenizers": list(parts)}


def split(pattern: str) -> Part:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


_DEEPSEEK_LLM = ("[\r\n]", rf"\s?[{_LETTERS}]+", rf"\s?[{_SYMBOLS}]+", r"\s+$", _CJK)
_FALCON = sequence({"type": "Punctuation", "behavior": "Contiguous"}, level(True),
                   {"type": "Digits", "individual_digits": False}, split("[0-9][0-9][0-9]"))  # fmt: skip
# llama.cpp's own where a file names none: no model's, so no library's
_DEFAULT = (
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    "[0-9][0-9][0-9]",
)
# name: how words are cut, the normaliser, ignore_merges, an architecture that uses it
FAMILIES: dict[str, tuple[Part, Part | None, bool, str]] = {
    "llama-bpe": (sequence(split(CL100K), level(False)), None, True, "llama"),
    "smaug-bpe": (sequence(split(CL100K), level(False)), None, False, "llama"),
    "dbrx": (sequence(split(CL100K), level(False)), None, False, "olmo2"),
    "qwen2": (sequence(split(QWEN2), level(False)), NFC, False, "qwen2"),
    "stablelm2": (sequence(split(QWEN2), level(False)), NFC, False, "stablelm"),
    "deepseek-r1-qwen": (sequence(split(QWEN2), level(False)), None, False, "qwen2"),
    "gpt-2": (level(True), None, False, "gpt2"),
    "phi-2": (level(True), None, False, "phi2"),
    "olmo": (level(True), NFC, False, "llama"),
    "mpt": (level(True), NFC, False, "llama"),
    "starcoder": (sequence(DIGITS, level(True)), None, False, "llama"),
    "refact": (sequence(DIGITS, level(True)), None, False, "granite"),
    "smollm": (sequence(DIGITS, level(True)), None, False, "llama"),
    "command-r": (sequence(DIGITS, level(True)), NFC, False, "llama"),
    "gpt-4o": (sequence(split(O200K), level(False)), None, False, "phi3"),
    "tekken": (sequence(split(TEKKEN), level(False)), None, True, "llama"),
    "falcon": (_FALCON, None, False, "llama"),
    "deepseek-llm": (sequence(*map(split, _DEEPSEEK_LLM), DIGITS, level(False)), None, False, "llama"),
    "deepseek-coder": (
        sequence(*map(split, ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK)), DIGITS, level(False)), None, False, "llama",
    ),
    "default": (sequence(*map(split, _DEFAULT), level(False)), None, False, "llama"),
}  # fmt: skip
ADDED = (("<tool>", False), ("<|endoftext|>", True), ("<|im_end|>", True))
ENDS = ("<|endoftext|>", "<|im_end|>", "<tool>", "</s>")  # are not learnt as words

ALPHABETS = [
    "abcdefgh ETAOIN", "0123456789 ,.", " \n\r\t", "\u00a0\u2003\u3000 \u200b\u200d\ufeff", "éüßœñÅİıſ ǅΩμ",
    "Привет, как дела", "中文字符。，！ 一龥\u3007", "ひらがなカタカナー", "한국어 \ud7a3ㄱ", "العربية ٠١٢٣",
    "हिन्दी देवनागरी ०१", "ไทย ๑๒", "e\u0301\u0308\u0327\u20ddoA\u030a \u1100\u1161\u11a8",
    "😀👩\u200d👩\u200d👧🏽🇩🇪☃\ufe0f", "\x00\x01\x07\x1b\x7f\x80\x9f\x85\x0b\x0c\u2028", "'sS tT rReE vVlLmMdD’",
    "$+<=>^~|`!?#%&*()[]{}_-/\\@:;\"", "²³¼½Ⅷ①৴𞥐", "\ud800\udfff\udc00",
    "\U0001d400\U00020000\U000e0041\U0010ffff\U0001d15e\u212b\u0958\ufb1d", "<|im_end|></s><s>▁",
]  # fmt: skip
SNIPPETS = [
    "<|endoftext|>", "<|im_end|>", "<tool>", "I'LL ", "don't ", "\r\n\r\n", "    ", "\n\n\n ", "123456", " 1,000.50",
    "http://a.b/c?d=e", "def f(x):\n\t", "</s>", "▁", "<0x0A>", "ﬁ", "İstanbul", "a" * 40, " " * 40, "\n" * 20,
    "!" * 30, "helloWorld HTTPServer", " \t x", "e\u0301" * 5, "\u0327\u0301" * 4, "1" * 9, "ｈｅｌｌｏ", "한글",
]  # fmt: skip


def strings(count: int, seed: int) -> Iterator[str]:
    """Short texts: of one script, of several, of characters from anywhere (surrogates too), of snippets."""
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


@cache
def trained(merges: int) -> tuple[dict[str, int], list[str]]:
    """A byte-level vocabulary and its merges, learnt from whole texts; every seventh merge is missing."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=256 + merges, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    texts = (well_formed(text) for text in strings(merges * 4, -1) if not any(end in text for end in ENDS))
    made.train_from_iterator(texts, trainer)
    model = json.loads(made.to_str())["model"]
    pairs = [" ".join(pair) for pair in model["merges"]]
    return model["vocab"], [pair for i, pair in enumerate(pairs) if i % 7]


def tokenizer_json(name: str, vocab: dict[str, int], merges: list[str]) -> dict[str, Any]:
    """A whole tokenizer.json of a family, with two control tokens and a user-defined one."""
    cutter, normaliser, ignore_merges, _ = FAMILIES[name]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": len(vocab) + i, "content": text, "special": special, **flags}
             for i, (text, special) in enumerate(ADDED)]  # fmt: skip
    model = {"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": ignore_merges, "byte_fallback": False,
             "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
             "fuse_unk": False}  # fmt: skip
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": normaliser,
            "pre_tokenizer": cutter, "post_processor": None, "decoder": level(True), "model": model}  # fmt: skip


def put(folder: Path, made: dict[str, Any]) -> int:
    """The published folder of such a tokenizer; how many tokens it has."""
    (folder / "tokenizer.json").write_text(json.dumps(made))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    return len(made["model"]["vocab"]) + len(ADDED)
