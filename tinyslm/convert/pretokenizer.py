"""Which name of `tokenizer.ggml.pre` a tokenizer.json means: the one whose row cuts text as it does.

Expressions with one meaning are written in many ways, so it is the cuts that are compared, over texts in which any two
rows of the table differ.
"""

from __future__ import annotations

import json
import warnings
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FileError, UnsupportedError
from ..tokenizer.bpe import cutter
from ..tokenizer.pretokenizers import PRETOKENIZERS, PreTokenizer

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer as Library

# Of rows that cut alike, the name that llama.cpp's converter gives models of these architectures.
USUAL = {
    "qwen2": "qwen2", "qwen3": "qwen2", "qwen3moe": "qwen2", "phi2": "phi-2", "stablelm": "stablelm2", "olmo2": "dbrx",
    "granite": "refact", "gpt2": "gpt-2", "opt": "gpt-2", "phi3": "gpt-4o",
}  # fmt: skip
FIRST = ("llama-bpe", "qwen2", "gpt-2", "smollm", "smaug-bpe", "tekken", "gpt-4o", "deepseek-v3")
# A character or two of each kind that a row tells apart.
_KINDS = (
    "a", "Q", "ß", "ǅ", "ʰ", "א", "中", "あ", "ア", "한", "ㄱ", "ㄅ", "ё", "क", "े", "\u0301", "1", "٣", "Ⅷ", "½", " ",
    "\u00a0", "\u3000", "\t", "\n", "\r", "\r\n", "!", "。", "，", "…", "'", "’", "_", "-", "/", "$", "+", "^", "😀",
    "\u200d", "\0", "ª", "ǁ", "।",
)  # fmt: skip
_CONTRACTIONS = ("'s", "'S", "'T", "'re", "'RE", "'ve", "'m", "'ll", "'Ll", "'d", "'x", "’s")


def probes() -> list[str]:
    texts = ["".join(pair) + tail for pair in product(_KINDS, repeat=2) for tail in ("", "b", " 1", "\n", "  x")]
    texts += [f"it{c}x I{c} {c} 1{c}{c}" for c in _CONTRACTIONS]
    texts += [kind * n + end for kind in _KINDS for n in (3, 4, 5, 7, 17, 600) for end in ("", "b")]
    texts += ["helloWorld HTTPServer aBC ABc", "1234567 12 345.678,9", " a\n\n b \n c\r\n\td  ", "x = foo(bar)[1:2];\n"]
    return texts


def name_of(found: Any, ignore_merges: bool, nfc: bool, arch: str, path: Path) -> str:
    """The name for the `pre_tokenizer` entry of a tokenizer.json. Raises FileError, UnsupportedError.

    nfc: whether it brings text to NFC. Warns where no name says both how words are cut and that.
    """
    from tokenizers import Tokenizer

    blank = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
             "pre_tokenizer": found, "post_processor": None, "decoder": None,
             "model": {"type": "BPE", "vocab": {}, "merges": []}}  # fmt: skip
    try:
        wanted = Tokenizer.from_str(json.dumps(blank)).pre_tokenizer
    except Exception as error:  # bare Exception is what the library raises
        raise FileError(path, f"no pre-tokenizer: {error}", where="pre_tokenizer") from error
    order = [USUAL.get(arch, FIRST[0]), *FIRST, *PRETOKENIZERS]
    rows: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for name in dict.fromkeys(order):
        rows.setdefault((PRETOKENIZERS[name].patterns, PRETOKENIZERS[name].byte_patterns), []).append(name)
    texts = probes()
    for names in rows.values():
        row = cutter(PRETOKENIZERS[names[0]])
        if all(_pieces(wanted, text) == _pieces(row, text) for text in texts):
            return _by_flag(names, ignore_merges, nfc, path)
    raise UnsupportedError(
        path, "its words are cut in a way that is not known; name one that is near with --pre",
        where="pre_tokenizer", got=json.dumps(found)[:200],
    )  # fmt: skip


def _pieces(cutter: Library | None, text: str) -> list[str]:
    """Without one, a text is one word."""
    if cutter is None:
        return [text]
    return [piece for piece, _ in cutter.pre_tokenize_str(text)]


def _by_flag(names: list[str], ignore_merges: bool, nfc: bool, path: Path) -> str:
    fit = [name for name in names if PRETOKENIZERS[name].ignore_merges == ignore_merges]
    if not fit:
        raise UnsupportedError(path, "no pre-tokenizer cuts like this one and has this flag; name one with --pre",
                               where="ignore_merges", expected=f"as {names[0]} has it", got=ignore_merges)  # fmt: skip
    found = next((name for name in fit if PRETOKENIZERS[name].nfc == nfc), None)
    if found is None:
        does = "brings" if nfc else "does not bring"
        warnings.warn(f"{path}: the tokenizer {does} text to NFC, which no pre-tokenizer that cuts as it does says: "
                      f"it is called {fit[0]}, and accents that are written apart from their letters may differ",
                      stacklevel=6)  # fmt: skip
    return found or fit[0]


def row_of(name: str) -> PreTokenizer | None:
    return PRETOKENIZERS.get(name)
