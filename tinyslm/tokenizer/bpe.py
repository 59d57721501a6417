"""Byte-level BPE vocabularies (`tokenizer.ggml.model` = `gpt2`) through the tokenizers library."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import FileError
from .pretokenizers import PreTokenizer
from .vocabulary import CONTROL, UNKNOWN, Vocabulary

if TYPE_CHECKING:
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import Split

CHUNK = 1 << 18  # characters the library sees at once: it keeps about 160 bytes for each until it is done

# A space between two ASCII letters: every pre-tokenizer of the table cuts there, whatever stands further off.
_SEAM = re.compile("(?<=[A-Za-z])(?= [A-Za-z])")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte: itself if printable, else the next code point from 256 on."""
    table, extra = {}, 256
    for byte in range(256):
        if 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255:
            table[chr(byte)] = byte
        else:
            table[chr(extra)] = byte
            extra += 1
    return table


BYTES = _byte_alphabet()
_NEVER_IN_UTF8 = frozenset({0xC0, 0xC1, *range(0xF5, 0x100)})


def raw_bytes(text: str) -> bytes:
    """The bytes that a token's text stands for; a text outside the byte alphabet stands for itself."""
    try:
        return bytes([BYTES[char] for char in text])
    except KeyError:
        return text.encode()


def _words_and_hidden(vocab: Vocabulary) -> tuple[dict[str, int], set[str]]:
    """Tokens that text may become, with their ids, and control tokens' texts, which the library is not told."""
    words: dict[str, int] = {}
    hidden = set()
    for i, (text, kind) in enumerate(zip(vocab.tokens, vocab.types, strict=True)):
        if kind in (CONTROL, UNKNOWN):
            hidden.add(text)
        elif text:
            words[text] = i
    return words, hidden


def _checked_merges(vocab: Vocabulary, words: dict[str, int], hidden: set[str]) -> list[tuple[str, str]]:
    """The merges, without those that lead to or from a control token. Raises FileError for one that names no tokens."""
    merges = []
    for i, merge in enumerate(vocab.merges):
        left, _, right = merge.partition(" ")
        if left in words and right in words and left + right in words:
            merges.append((left, right))
        elif hidden.isdisjoint((left, right, left + right)):
            raise FileError(
                vocab.path, f"merge {i} does not fit the tokens", where="tokenizer.ggml.merges",
                expected="two tokens, a space between them, that make a third", got=repr(merge[:40]),
            )  # fmt: skip
    return merges


def _model(vocab: Vocabulary, row: PreTokenizer) -> tuple[BPE, dict[str, int]]:
    """The library's model and the words it knows. Raises FileError where merges and tokens disagree."""
    from tokenizers.models import BPE

    words, hidden = _words_and_hidden(vocab)
    # Where a merge makes no token the library panics; where it is not made of tokens the library raises. So a quick
    # check of what the merges make, and the thorough one only after either: it costs twice as much.
    if all(map(words.__contains__, [merge.replace(" ", "", 1) for merge in vocab.merges])):
        pairs = [tuple(merge.split(" ", 1)) for merge in vocab.merges]
        with contextlib.suppress(Exception):  # bare Exception is what it raises; below, a merge is named
            return BPE(vocab=words, merges=pairs, ignore_merges=row.ignore_merges), words  # type: ignore[arg-type]
    checked = _checked_merges(vocab, words, hidden)
    return BPE(vocab=words, merges=checked, ignore_merges=row.ignore_merges), words


def cuts(row: PreTokenizer) -> list[Split]:
    """The library's form of a row's patterns, to be applied in order."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    return [Split(Regex(pattern), "isolated") for pattern in row.patterns]


def encoder(vocab: Vocabulary, row: PreTokenizer) -> Callable[[str], list[int]]:
    """A function from plain text to ids, the text cut by `row`. Raises FileError where merges and tokens disagree."""
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import ByteLevel, Sequence

    model, words = _model(vocab, row)
    library = Tokenizer(model)
    library.pre_tokenizer = Sequence([*cuts(row), ByteLevel(add_prefix_space=False, use_regex=False)])
    missing = frozenset(byte for char, byte in BYTES.items() if char not in words) - _NEVER_IN_UTF8

    def encode(text: str) -> list[int]:
        lacking = missing.intersection(text.encode()) if missing else None
        if lacking:  # the library drops them without a word, as llama.cpp does
            warnings.warn(
                f"{vocab.path}: the vocabulary has no token for some bytes of the text, which are left out: "
                + " ".join(f"0x{byte:02X}" for byte in sorted(lacking)),
                stacklevel=4,
            )
        ids: list[int] = []
        start = 0
        while start < len(text):
            seam = _SEAM.search(text, start + CHUNK) if len(text) - start > CHUNK else None
            stop = seam.start() if seam else len(text)
            ids += library.encode(text[start:stop], add_special_tokens=False).ids
            start = stop
        return ids

    return encode
