"""The vocabulary as a GGUF file states it: `tokenizer.ggml.*` checked, defaults filled in, end-of-generation ids found.

Nothing here trusts the file: every key has its type and length checked, every id its range.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from ..errors import FileError, UnsupportedError
from .pretokenizers import PRETOKENIZERS, PreTokenizer

# tokenizer.ggml.token_type, as sentencepiece numbers them
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

# Texts that end a generation in some model family; a file often names only one of several in its *_token_id keys.
END_TEXTS = frozenset({
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<end_of_turn>", "</s>",
    "<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>",
    "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]",  # a model that fills in the middle ends with these
    "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>",
})  # fmt: skip
_NO_ID = 0xFFFFFFFF  # -1 in an unsigned key: "none"
_BYTE_TEXT = re.compile("<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Vocabulary:
    """tokens, scores, types: one per id. merges: "left right", best first. row: how BPE cuts words, None for SPM.

    marked: the ids, ascending, of tokens that are not NORMAL; few of many.
    rstrip: ids that swallow the white space to their right when they are parsed in a text.
    """

    path: str | Path
    tokens: list[str]
    scores: list[float]
    types: list[int]
    marked: list[int]
    merges: list[str]
    row: PreTokenizer | None
    bos: int | None
    eos: int | None
    unk: int | None
    pad: int | None
    eot: int | None
    eom: int | None
    eog: frozenset[int]
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    squeeze_spaces: bool
    rstrip: frozenset[int] = field(default=frozenset())


class _Keys:
    """Typed access to `tokenizer.ggml.*`: a value of the wrong type is a FileError that names the key."""

    def __init__(self, metadata: Mapping[str, object], path: str | Path) -> None:
        self.metadata, self.path = metadata, path

    def fail(self, key: str, problem: str, expected: object = None, got: object = None) -> NoReturn:
        raise FileError(self.path, problem, where=f"tokenizer.ggml.{key}", expected=expected, got=got)

    def get(self, key: str) -> object:
        return self.metadata.get(f"tokenizer.ggml.{key}")

    def string(self, key: str) -> str | None:
        value = self.get(key)
        if value is not None and not isinstance(value, str):
            self.fail(key, "wrong type", "a string", type(value).__name__)
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, (bool, np.bool_)):
            self.fail(key, "wrong type", "true or false", type(value).__name__)
        return bool(value)

    def strings(self, key: str) -> list[str] | None:
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, np.ndarray) and not value.size:
            return []  # an empty array's element type says nothing
        if not isinstance(value, list) or not set(map(type, value)) <= {str}:
            self.fail(key, "wrong type", "an array of strings", type(value).__name__)
        try:
            "\n".join(value).encode()
        except UnicodeEncodeError:
            bad = next(i for i, text in enumerate(value) if not _is_utf8(text))
            self.fail(key, f"entry {bad} is not UTF-8", got=ascii(value[bad][:40]))
        return value

    def numbers(self, key: str, kinds: str, length: int) -> NDArray[np.generic] | None:
        """A one-dimensional array whose dtype.kind is in `kinds`, of one number per token."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype.kind not in kinds:
            self.fail(key, "wrong type", "an array of numbers", getattr(value, "dtype", type(value).__name__))
        if len(value) != length:
            self.fail(key, "wrong length", f"{length}, one per token", len(value))
        return value

    def token(self, key: str, size: int, default: int | None = None, lenient: bool = False) -> int | None:
        value = self.get(key)
        if value is None:
            return default if default is not None and default < size else None
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
            self.fail(key, "wrong type", "a token id", type(value).__name__)
        if value in (-1, _NO_ID):
            return None
        if not 0 <= value < size:
            if not lenient:
                self.fail(key, "not a token id", f"0 to {size - 1}", value)
            warnings.warn(
                f"{self.path}: tokenizer.ggml.{key} = {value} is outside the vocabulary: ignored", stacklevel=4
            )
            return None
        return int(value)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read(metadata: Mapping[str, object], path: str | Path) -> Vocabulary:
    """Check and complete the tokenizer keys of a GGUF file.

    Raises FileError for a missing, mistyped or inconsistent key, UnsupportedError for a tokenizer model or
    pre-tokenizer that is not known. Warns where the file leaves the pre-tokenizer open.
    """
    keys = _Keys(metadata, path)
    kind = keys.string("model")
    if kind is None:
        keys.fail("model", "the file has no tokenizer")
    if kind not in ("llama", "gpt2"):
        raise UnsupportedError(
            path, "unknown tokenizer", where="tokenizer.ggml.model", expected="'llama' or 'gpt2'", got=repr(kind)
        )
    spm = kind == "llama"
    charsmap = keys.get("precompiled_charsmap")
    if charsmap is not None and np.size(np.asarray(charsmap)):
        raise UnsupportedError(path, "text normalisation by table", where="tokenizer.ggml.precompiled_charsmap")
    tokens = _tokens(keys)
    size = len(tokens)
    row = None if spm else _row(keys)
    ids = {
        "bos": keys.token("bos_token_id", size, 1 if spm else None),
        "eos": keys.token("eos_token_id", size, 2 if spm else None),
        "unk": keys.token("unknown_token_id", size, 0 if spm else None),
        "eot": keys.token("eot_token_id", size),
        "eom": keys.token("eom_token_id", size),
        "pad": keys.token("padding_token_id", size, lenient=True),
    }
    merges = _merges(keys) if row else []
    enders = [i for i, text in enumerate(tokens) if text in END_TEXTS]
    types = _types(keys, tokens, merges, ids, spm, enders)
    add_bos = keys.flag("add_bos_token", ids["bos"] is not None and (row is None or row.add_bos))
    add_eos = keys.flag("add_eos_token", False)
    for flag, name in ((add_bos, "bos"), (add_eos, "eos")):
        if flag and ids[name] is None:
            keys.fail(f"{name}_token_id", f"missing, though add_{name}_token is true")
    return Vocabulary(
        path=path,
        tokens=tokens,
        scores=_scores(keys, size) if spm else [],
        types=types,
        marked=[i for i, kind in enumerate(types) if kind != NORMAL],
        merges=merges,
        row=row,
        **ids,
        eog=_ends(tokens, types, ids, enders),
        add_bos=add_bos,
        add_eos=add_eos,
        add_space_prefix=keys.flag("add_space_prefix", spm),
        squeeze_spaces=keys.flag("remove_extra_whitespaces", False),
        rstrip=_rstrip(metadata, tokens, types) if spm else frozenset(),
    )


def _tokens(keys: _Keys) -> list[str]:
    tokens = keys.strings("tokens")
    if not tokens:
        keys.fail("tokens", "the vocabulary is missing" if tokens is None else "the vocabulary is empty")
    if len(set(tokens)) != len(tokens):
        seen: dict[str, int] = {}
        for i, text in enumerate(tokens):
            if text and seen.setdefault(text, i) != i:
                keys.fail("tokens", f"tokens {seen[text]} and {i} have the same text", got=repr(text[:40]))
    return tokens


def _row(keys: _Keys) -> PreTokenizer:
    name = keys.string("pre")
    if name is None:
        warnings.warn(
            f"{keys.path}: tokenizer.ggml.pre is missing: words are cut as for GPT-2, which may not be what the "
            "model was trained with (convert it anew to be sure)",
            stacklevel=4,
        )
        return PRETOKENIZERS["gpt-2"]
    if name not in PRETOKENIZERS:
        raise UnsupportedError(keys.path, "unknown pre-tokenizer", where="tokenizer.ggml.pre", got=repr(name[:40]))
    return PRETOKENIZERS[name]


def _merges(keys: _Keys) -> list[str]:
    merges = keys.strings("merges")
    if merges is None:
        keys.fail("merges", "the merges are missing")
    return merges


def _scores(keys: _Keys, size: int) -> list[float]:
    scores = keys.numbers("scores", "fiu", size)
    if scores is None:
        keys.fail("scores", "the scores are missing")
    with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, which the next check finds
        narrow = scores.astype(np.float32)
    if not np.isfinite(narrow).all():
        keys.fail("scores", "a score is no finite number", got=scores[int(np.argmin(np.isfinite(narrow)))])
    return narrow.tolist()  # type: ignore[no-any-return]


def _types(
    keys: _Keys, tokens: list[str], merges: list[str], ids: Mapping[str, int | None], spm: bool, enders: list[int]
) -> list[int]:
    """One type per token; where the file has none, what follows from the ids and the texts.

    A token that ends a generation is a control token even if the file calls it user-defined (or a normal word, unless
    merges lead to it), lest a user's text end the generation.
    """
    given = keys.numbers("token_type", "iu", len(tokens))
    if given is None:
        types = [NORMAL] * len(tokens)
        for i in (ids["bos"], ids["eos"], ids["eot"], ids["eom"]):
            if i is not None:
                types[i] = CONTROL
        if spm:
            types = [BYTE if _BYTE_TEXT.fullmatch(text) else t for text, t in zip(tokens, types, strict=True)]
            if ids["unk"] is not None:
                types[ids["unk"]] = UNKNOWN
    else:
        if given.min() < 0 or given.max() > BYTE:
            keys.fail("token_type", "unknown token type", f"0 to {BYTE}", f"{given.min()} to {given.max()}")
        types = [t or NORMAL for t in given.tolist()]
    added = keys.strings("added_tokens") or []
    places = {text: i for i, text in enumerate(tokens)} if added else {}
    for text in added:
        if text not in places:
            keys.fail("added_tokens", "an added token is not among the tokens", got=repr(text[:40]))
        if types[places[text]] == NORMAL:
            types[places[text]] = USER_DEFINED
    for i in enders:
        if types[i] == USER_DEFINED or (types[i] == NORMAL and not _is_merged(tokens[i], merges)):
            types[i] = CONTROL
    for i in [i for i, kind in enumerate(types) if kind == BYTE]:
        if not _BYTE_TEXT.fullmatch(tokens[i]):
            keys.fail("tokens", f"token {i} is no byte", "<0x00> to <0xFF>", repr(tokens[i][:40]))
    return types


def _is_merged(text: str, merges: Sequence[str]) -> bool:
    return any(merge.replace(" ", "", 1) == text for merge in merges)


def _ends(tokens: list[str], types: list[int], ids: Mapping[str, int | None], enders: list[int]) -> frozenset[int]:
    ends = {i for i in enders if types[i] == CONTROL}
    texts = {tokens[i]: i for i in ends}
    harmony = {"<|return|>", "<|call|>"} <= texts.keys() or (
        "<|flush|>" in texts and not texts.keys().isdisjoint({"<|call|>", "<|calls|>"})
    )
    if harmony:  # there <|end|> ends a message within one answer
        ends.discard(texts.get("<|end|>", -1))
    return frozenset(ends | {i for name in ("eos", "eot", "eom") if (i := ids[name]) is not None})


def _rstrip(metadata: Mapping[str, object], tokens: list[str], types: list[int]) -> frozenset[int]:
    """Phi-3's control tokens swallow the white space to their right: its tokenizer file says so, a GGUF cannot."""
    name = str(metadata.get("general.name", "")).lower()
    if metadata.get("general.architecture") != "phi3" and "phi-3" not in name and "phi3" not in name:
        return frozenset()
    keep = {"<unk>", "<s>", "<|endoftext|>"}
    return frozenset(i for i, t in enumerate(types) if t in (UNKNOWN, CONTROL, USER_DEFINED) and tokens[i] not in keep)
