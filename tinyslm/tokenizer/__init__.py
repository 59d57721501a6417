"""Text to token ids and back, from the vocabulary that a GGUF file carries.

`load` reads `tokenizer.ggml.*`; two kinds are known: SentencePiece (`llama`) and byte-level BPE (`gpt2`). The libraries
that do the merging are imported when a tokenizer is built. What they are not trusted with is done here, for both kinds
alike: finding control and user-defined tokens in a text, the space before a text, and turning ids back into text.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from ..errors import OptionError
from . import bpe, spm
from .vocabulary import BYTE, CONTROL, UNKNOWN, USER_DEFINED, Vocabulary, read

__all__ = ["Decoder", "Tokenizer", "load"]

_SURROGATE = re.compile("[\ud800-\udfff]")
_WHITE = " \t\n\v\f\r"
# How control tokens are spelled that some files call user-defined: DeepSeek-R1's <｜User｜>, early Gemma files' turns.
_MARKER = re.compile(r"<[|｜].+[|｜]>|<(?:start|end)_of_turn>|\[/?INST\]", re.DOTALL)


def load(metadata: Mapping[str, object], path: str | Path) -> Tokenizer:
    """Build the tokenizer that a GGUF file's metadata describe; `path` is the file's name, for messages.

    Raises FileError for a missing, mistyped or inconsistent key and UnsupportedError for a `tokenizer.ggml.model` or
    `tokenizer.ggml.pre` that is not known; warns where `tokenizer.ggml.pre` is missing.
    """
    vocab = read(metadata, path)
    return Tokenizer(vocab, spm.encoder(vocab) if vocab.row is None else bpe.encoder(vocab, vocab.row))


class Tokenizer:
    """Immutable once built, so any number of threads may use it.

    bos, eos, unk, pad, eot, eom: ids, None where the file names none. eog: all ids that end a generation.
    add_bos, add_eos: what the file wants around a text.
    """

    def __init__(self, vocab: Vocabulary, encode_text: Callable[[str], list[int]]) -> None:
        self._vocab, self._encode_text = vocab, encode_text
        self.vocab_size = len(vocab.tokens)
        self.bos, self.eos, self.unk, self.pad = vocab.bos, vocab.eos, vocab.unk, vocab.pad
        self.eot, self.eom, self.eog = vocab.eot, vocab.eom, vocab.eog
        self.add_bos, self.add_eos = vocab.add_bos, vocab.add_eos
        self._pieces: list[bytes | None] = [None] * self.vocab_size
        self._user_defined = _Finder(vocab, (USER_DEFINED,))
        self._special = _Finder(vocab, (UNKNOWN, CONTROL, USER_DEFINED))

    def encode(self, text: str, bos: bool | None = None, special: bool = False) -> list[int]:
        """Token ids of `text`.

        bos: put BOS before the text (None: as the file's add_bos_token says); unless False, EOS follows where the
        file's add_eos_token asks for it. special: texts of control tokens become those tokens; otherwise they stay
        text. User-defined tokens are found either way, the longest first.

        A lone surrogate, which no UTF-8 can hold, is read as U+FFFD; NUL is a character like any other. Where a BPE
        vocabulary lacks a byte of the text (StarCoder's has none for 0xF1), a warning names it and it is left out.
        Raises OptionError where bos is True and the file names none, or a SentencePiece vocabulary has neither bytes
        nor an unknown token for a character.
        """
        if bos and self.bos is None:
            raise OptionError("bos=True, but this model has no BOS token")
        vocab = self._vocab
        ids = [self.bos] if self.bos is not None and (vocab.add_bos if bos is None else bos) else []
        for part in (self._special if special else self._user_defined).split(_SURROGATE.sub("\ufffd", text)):
            ids += [part] if isinstance(part, int) else self.encode_part(part)
        if vocab.add_eos and bos is not False and self.eos is not None:
            ids.append(self.eos)
        return ids

    def parts(self, text: str, own: bytes) -> list[int | str]:
        """A text cut into the ids of control and user-defined tokens, and what lies between.

        own: a byte for each character, 0 where it is someone's text that must not become a control token. A token is
        one only where none of its characters is 0; a user-defined one that is no marker of turns is one anywhere.
        """
        return list(self._special.split(_SURROGATE.sub("\ufffd", text), own))

    def encode_part(self, part: str) -> list[int]:
        """Ids of a text that stands at the start or after a token, as text alone.

        Those are the places where a SentencePiece text gets its space.
        """
        if self._vocab.squeeze_spaces:
            part = re.sub(" +", " ", part).lstrip(" ").rstrip(" ▁")  # the library strips the end when spaces are "▁"
            if not part:
                return []
        return self._encode_text(" " + part if self._vocab.add_space_prefix else part)

    def token(self, text: str) -> int | None:
        """The id of the control or user-defined token that is spelled so."""
        return self._special.ids.get(text)

    def is_special(self, token: int) -> bool:
        """Whether this is a token that no text is merged to: a control or user-defined one."""
        self._check(token)
        return self._vocab.types[token] in (UNKNOWN, CONTROL, USER_DEFINED)

    def decode(self, ids: Iterable[int], special: bool = False, continues: bool = False) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD.

        special: show the texts of control tokens. continues: the ids go on from earlier text, so that a first space
        is theirs; otherwise the space that encoding puts before a text is taken off again.
        Raises OptionError for an id outside the vocabulary.
        """
        take = Decoder(self, special, continues).take
        return b"".join(map(take, ids)).decode("utf-8", "replace")

    def stream(self, special: bool = False, continues: bool = False) -> Decoder:
        """A decoder fed id by id; what it returns, joined, is decode() of all ids with the same arguments."""
        return Decoder(self, special, continues)

    def piece(self, token: int) -> bytes:
        """The bytes that a token adds to a text: part of a character at times, none for control tokens."""
        self._check(token)
        piece = self._pieces[token]
        if piece is None:
            piece = self._pieces[token] = self._make_piece(token)
        return piece

    def token_text(self, token: int) -> str:
        """A token as the vocabulary spells it."""
        self._check(token)
        return self._vocab.tokens[token]

    def _check(self, token: int) -> None:
        if not 0 <= token < self.vocab_size:
            raise OptionError(f"token id {token} is outside the vocabulary of {self.vocab_size}")

    def _make_piece(self, token: int) -> bytes:
        text, kind = self._vocab.tokens[token], self._vocab.types[token]
        if kind in (CONTROL, UNKNOWN):
            return b""
        if kind == BYTE:
            return bytes([int(text[3:5], 16)])
        if self._vocab.row is None:
            return text.replace("▁", " ").encode()
        return text.encode() if kind == USER_DEFINED else bpe.raw_bytes(text)

    def _has_prefix(self, token: int) -> bool:
        """Whether the first space of this token, the first of a text, is the one that encoding put there."""
        vocab = self._vocab
        return (vocab.add_space_prefix or vocab.squeeze_spaces) and vocab.types[token] != USER_DEFINED


class Decoder:
    """Turns ids into text as they come; never returns part of a character. One stream, one thread."""

    def __init__(self, tokenizer: Tokenizer, special: bool, continues: bool) -> None:
        self._tokenizer, self._special, self._started = tokenizer, special, continues
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that is complete with this token. Raises OptionError for an id outside the vocabulary."""
        return self._utf8.decode(self.take(token))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never completed."""
        return self._utf8.decode(b"", final=True)

    def take(self, token: int) -> bytes:
        """The bytes of the next token, less the space before the text if this is its first."""
        tokenizer = self._tokenizer
        piece = tokenizer.piece(token)
        if self._special and not piece:
            piece = tokenizer.token_text(token).encode()
        if self._started or not piece:
            return piece
        if tokenizer._has_prefix(token):
            piece = piece.removeprefix(b" ")
        self._started = bool(piece) or not tokenizer._vocab.squeeze_spaces
        return piece


class _Finder:
    """Cuts a text into tokens of given types and what lies between: leftmost first, then longest.

    ids: the tokens by their texts.

    Where a token may start is found by its first character (one regular expression, a set), then whole tokens are
    looked up by each length that the first two characters have: thousands of tokens cost little more than a few.
    """

    def __init__(self, vocab: Vocabulary, types: tuple[int, ...]) -> None:
        self.ids = {vocab.tokens[i]: i for i in vocab.marked if vocab.types[i] in types and vocab.tokens[i]}
        self._rstrip = vocab.rstrip
        self._anywhere = {
            text for text, i in self.ids.items() if vocab.types[i] == USER_DEFINED and not _MARKER.fullmatch(text)
        }
        lengths: dict[str, set[int]] = {}
        for text in self.ids:
            lengths.setdefault(text[:2], set()).add(len(text))
        self._lengths = {
            prefix: sorted(of | {1} if prefix[0] in self.ids else of, reverse=True) for prefix, of in lengths.items()
        }
        first = "".join(map(re.escape, sorted({prefix[0] for prefix in lengths})))
        self._first = re.compile(f"[{first}]") if first else None

    def split(self, text: str, own: bytes | None = None) -> Iterator[str | int]:
        start = at = 0
        while self._first and (hit := self._first.search(text, at)):
            at = hit.start()
            token = self._longest(text, at, own)
            if token is None:
                at += 1
                continue
            if at > start:
                yield text[start:at]
            yield self.ids[token]
            start = at + len(token)
            if self.ids[token] in self._rstrip:
                while start < len(text) and text[start] in _WHITE:
                    start += 1
            at = start
        if start < len(text):
            yield text[start:]

    def _longest(self, text: str, at: int, own: bytes | None) -> str | None:
        lengths = self._lengths.get(text[at : at + 2]) or self._lengths.get(text[at]) or []
        found = (part for n in lengths if (part := text[at : at + n]) in self.ids)
        if own is None:
            return next(found, None)
        return next((part for part in found if part in self._anywhere or 0 not in own[at : at + len(part)]), None)
