"""SentencePiece vocabularies (`tokenizer.ggml.model` = `llama`) through the sentencepiece library."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import FileError, OptionError
from .vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, Vocabulary


def encoder(vocab: Vocabulary) -> Callable[[str], list[int]]:
    """A function from plain text to ids: greedy merges by score, characters outside the vocabulary as bytes.

    The library's model type BPE with byte fallback is what llama.cpp calls SPM. The space before the text is the
    caller's affair: it depends on the control tokens around the text, which the library never sees.

    Raises FileError where the vocabulary makes no SentencePiece model.
    """
    from sentencepiece import SentencePieceProcessor
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

    size, unk, fallback = len(vocab.tokens), _unknown(vocab), vocab.types.count(BYTE) == 256
    proto = ModelProto()
    add = proto.pieces.add
    for i, (text, score, kind) in enumerate(zip(vocab.tokens, vocab.scores, vocab.types, strict=True)):
        name = text
        if not text or "\0" in text:  # the library refuses these, or prints that it does not use them
            name, kind = f"[TOKEN_{i}]", CONTROL
        if i == unk:
            kind = UNKNOWN
        elif kind == UNKNOWN or (kind == BYTE and not fallback):
            kind = (
                CONTROL  # the library wants exactly one unknown piece, and all bytes or none; text never matches these
            )
        add(piece=name, score=score, type=kind)
    if unk is None:
        add(piece=f"[TOKEN_{size}]", score=0.0, type=UNKNOWN)
    proto.trainer_spec.model_type = 2  # BPE
    proto.trainer_spec.byte_fallback = fallback
    proto.normalizer_spec.add_dummy_prefix = False
    proto.normalizer_spec.remove_extra_whitespaces = False
    proto.normalizer_spec.escape_whitespaces = True
    try:
        library_encode = SentencePieceProcessor(model_proto=proto.SerializeToString()).encode
    except Exception as error:  # the library raises RuntimeError, TypeError and others of its own
        problem = f"no SentencePiece vocabulary: {str(error)[:120]!r}"
        raise FileError(vocab.path, problem, where="tokenizer.ggml.tokens") from error

    def encode(text: str) -> list[int]:
        ids: list[int] = library_encode(text)
        if not fallback and unk is None and size in ids:
            raise OptionError("the text has a character that is not in this model's vocabulary")
        return ids

    return encode


def _unknown(vocab: Vocabulary) -> int | None:
    """The one piece that the library is to use for characters it cannot write: never a byte or a word."""
    if vocab.unk is not None and vocab.types[vocab.unk] not in (NORMAL, BYTE) and vocab.tokens[vocab.unk]:
        return vocab.unk
    return next((i for i, kind in enumerate(vocab.types) if kind == UNKNOWN and vocab.tokens[i]), None)
