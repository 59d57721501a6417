"""Byte-level BPE vocabularies (`tokenizer.ggml.model` = `gpt2`) through the tokenizers library."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING

from ..errors import FileError
from .pretokenizers import DIGIT, PUNCTUATION, PreTokenizer
from .vocabulary import CONTROL, UNKNOWN, Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer as Cutter

CHUNK = 1 << 18  # characters the library sees at once: it keeps about 160 bytes for each until it is done
FIRST = 1000  # characters of first texts that have models of their own, if cut into words of up to LONG bytes
LONG = 64
LEAST = 25  # characters that a text counts as at least: a model of its own goes through all merges, however short it is

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


def _words_and_merges(vocab: Vocabulary) -> tuple[dict[str, int], list[str]]:
    """Tokens that text may become, with their ids; the merges, without those that lead to or from a control token.

    Raises FileError for a merge that names no tokens: the library would panic.
    """
    words = dict(zip(vocab.tokens, count()))
    hidden = {vocab.tokens[i] for i in vocab.marked if vocab.types[i] in (CONTROL, UNKNOWN)}
    for text in {"", *hidden}:
        words.pop(text, None)
    out = []
    for i, merge in enumerate(vocab.merges):
        left, _, right = merge.partition(" ")
        if left in words and right in words and left + right in words:
            out.append(merge)
        elif hidden.isdisjoint((left, right, left + right)):
            raise FileError(
                vocab.path, f"merge {i} does not fit the tokens", where="tokenizer.ggml.merges",
                expected="two tokens, a space between them, that make a third", got=repr(merge[:40]),
            )  # fmt: skip
    return words, out


def cuts(row: PreTokenizer) -> list[Cutter]:
    """The library's form of a row's patterns, to be applied in order."""
    from tokenizers.pre_tokenizers import Digits, Punctuation

    own = {DIGIT: Digits(individual_digits=True), PUNCTUATION: Punctuation("contiguous")}
    return [own.get(pattern) or _split(pattern) for pattern in row.patterns]


def _split(pattern: str) -> Cutter:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    return Split(Regex(pattern), "isolated")


def cutter(row: PreTokenizer) -> Cutter:
    """All that a row does to a text, as the library's words of stand-ins for bytes."""
    from tokenizers.pre_tokenizers import ByteLevel, Sequence

    level = ByteLevel(add_prefix_space=False, use_regex=False)
    return Sequence([*cuts(row), level, *map(_split, row.byte_patterns)])


class _Models:
    """The library's model of a vocabulary, to encode texts with.

    To make it takes tenths of a second, so the first short texts have one of their own, of the words and merges that
    can come about in them: whatever is merged is part of a word that the text was cut into.
    """

    def __init__(self, vocab: Vocabulary, row: PreTokenizer) -> None:
        from tokenizers.normalizers import NFC

        self.words, self._merges = _words_and_merges(vocab)
        self._ignore_merges = row.ignore_merges
        self._cutter, self._nfc = cutter(row), NFC() if row.nfc else None
        self._first, self._lock = FIRST, threading.Lock()
        self._whole: Tokenizer | None = None

    def encode(self, text: str) -> list[int]:
        """Ids of a text of bytes that all have tokens."""
        if self._nfc:
            text = self._nfc.normalize_str(text)
        library = self._whole or self._own(text) or self._all()
        return library.encode(text, add_special_tokens=False).ids

    def _make(self, words: dict[str, int], merges: list[str]) -> Tokenizer:
        from tokenizers import Tokenizer
        from tokenizers.models import BPE

        pairs = [tuple(merge.split(" ", 1)) for merge in merges]
        library = Tokenizer(BPE(vocab=words, merges=pairs, ignore_merges=self._ignore_merges))  # type: ignore[arg-type]
        library.pre_tokenizer = self._cutter
        return library

    def _all(self) -> Tokenizer:
        with self._lock:
            if self._whole is None:
                self._whole = self._make(self.words, self._merges)
            return self._whole

    def _own(self, text: str) -> Tokenizer | None:
        """A model for this text alone; None where the whole one is due."""
        with self._lock:
            self._first -= max(len(text), LEAST)
            if self._first < 0:
                return None
        cut = {word for word, _ in self._cutter.pre_tokenize_str(text)}
        if max(map(len, cut), default=0) > LONG:
            return None
        parts = {word[i:j] for word in cut for i in range(len(word)) for j in range(i + 1, len(word) + 1)}
        words = {part: self.words[part] for part in parts if part in self.words}
        merges = {f"{word[:i]} {word[i:]}" for word in words for i in range(1, len(word))}
        return self._make(words, [merge for merge in self._merges if merge in merges])


def encoder(vocab: Vocabulary, row: PreTokenizer) -> Callable[[str], list[int]]:
    """A function from plain text to ids, the text cut by `row`. Raises FileError where merges and tokens disagree."""
    models = _Models(vocab, row)
    missing = frozenset(byte for char, byte in BYTES.items() if char not in models.words) - _NEVER_IN_UTF8

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
            ids += models.encode(text[start:stop])
            start = stop
        return ids

    return encode
