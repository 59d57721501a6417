"""A published tokenizer as GGUF's `tokenizer.ggml.*` keys, the way llama.cpp's converter writes them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FileError, UnsupportedError
from ..tokenizer.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from . import pretokenizer
from .safetensors import read_json

LONGEST = 1 << 28  # bytes of a tokenizer's file
MOST = 1 << 24  # tokens
ADDED, PADDING = -1000.0, -10000.0  # scores of tokens that no merge leads to
SPECIAL = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}
TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "<|end_of_role|>")
# Tokenizers that are published without a tokenizer.json cut words by their class.
SLOW = {"GPT2Tokenizer": "gpt-2", "Qwen2Tokenizer": "qwen2"}


@dataclass
class Published:
    """What the folder says of its tokenizer. `added`: id to text and whether it is special."""

    folder: Path
    path: Path
    config: Mapping[str, Any]
    ids: Mapping[str, Any]
    generation: Mapping[str, Any]
    tokens: dict[int, str] = field(default_factory=dict)
    types: dict[int, int] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)
    added: dict[int, tuple[str, bool]] = field(default_factory=dict)
    keys: dict[str, object] = field(default_factory=dict)


def read(folder: Path, model: Mapping[str, Any], arch: str, pre: str | None = None) -> dict[str, object]:
    """The tokenizer's keys. `model`: config.json; `pre`: a name of `tokenizer.ggml.pre`, else it is recognised.

    Raises FileError for a file that is missing or wrong, UnsupportedError for a tokenizer that is of another kind.
    Warns of tokens that the model has no embedding for; they are left out.
    """
    size = model.get("vocab_size")
    if type(size) is not int or not 0 < size <= MOST:
        raise FileError(folder / "config.json", "a key is absurd", where="vocab_size",
                        expected=f"1 to {MOST}", got=size)  # fmt: skip
    try:
        keys = _read(folder, model, arch, pre, size)
        json.dumps(keys.get("chat_template", ""), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise FileError(folder, "the chat template is no UTF-8", got=ascii(error.object[:40])) from error
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise FileError(folder, f"the tokenizer's files cannot be understood: {error}") from error
    return {f"tokenizer.{name}" if name.startswith("chat") else f"tokenizer.ggml.{name}": value
            for name, value in keys.items()}  # fmt: skip


def _read(folder: Path, model: Mapping[str, Any], arch: str, pre: str | None, size: int) -> dict[str, object]:
    path, tokenizer = _source(folder)
    p = Published(folder, path, _optional(folder, "tokenizer_config.json"), model,
                  _optional(folder, "generation_config.json"))  # fmt: skip
    if path.name == "tokenizer.model":
        _sentencepiece(p)
    elif path.name == "vocab.json":
        _slow(p, pre)
    elif tokenizer.get("model", {}).get("byte_fallback"):
        _merged_pieces(p, tokenizer)
    else:
        _byte_level(p, tokenizer, arch, pre)
    _add(p, tokenizer)
    _listed(p, size)
    _around(p, tokenizer.get("post_processor"))
    _specials(p)
    _template(p)
    return p.keys


def _optional(folder: Path, name: str) -> dict[str, Any]:
    return read_json(folder / name, LONGEST) if (folder / name).is_file() else {}


def _source(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The file that the vocabulary is taken from, and tokenizer.json where there is one."""
    tokenizer = _optional(folder, "tokenizer.json")
    model = tokenizer.get("model", {})
    if tokenizer and (not isinstance(model, dict) or model.get("type", "BPE") != "BPE"):
        kind = model.get("type") if isinstance(model, dict) else model
        raise UnsupportedError(folder / "tokenizer.json", "this kind of tokenizer is not supported", where="model.type",
                               expected="'BPE'", got=repr(kind)[:60])  # fmt: skip
    if (folder / "tokenizer.model").is_file() and (not tokenizer or model.get("byte_fallback")):
        return folder / "tokenizer.model", tokenizer
    if tokenizer:
        return folder / "tokenizer.json", tokenizer
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return folder / "vocab.json", {}
    raise FileError(folder, "there is no tokenizer: neither tokenizer.json nor tokenizer.model nor vocab.json with "
                    "merges.txt; put there the files of the model it was made from")  # fmt: skip


# ---- the kinds ----


def _sentencepiece(p: Published) -> None:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

    proto = ModelProto()
    try:
        with open(p.path, "rb") as file:
            proto.ParseFromString(file.read(LONGEST))
    except OSError as error:
        raise FileError(p.path, f"cannot be read: {error.strerror}") from error
    except Exception as error:  # protobuf's DecodeError, of which there are several
        raise FileError(p.path, "this is no SentencePiece model") from error
    if not proto.pieces:
        raise FileError(p.path, "this is no SentencePiece model: it has no pieces")
    if proto.trainer_spec.model_type != 2:
        raise UnsupportedError(p.path, "this kind of SentencePiece model is not supported", where="model_type",
                               expected="2 (BPE)", got=proto.trainer_spec.model_type)  # fmt: skip
    if proto.normalizer_spec.precompiled_charsmap:
        raise UnsupportedError(p.path, "text normalisation by table", where="normalizer_spec.precompiled_charsmap")
    for i, piece in enumerate(proto.pieces):
        # a user-defined piece is looked for in the text itself, where spaces are spaces
        text = piece.piece.replace("▁", " ") if piece.type == USER_DEFINED else piece.piece
        p.tokens[i], p.types[i], p.scores[i] = text, piece.type, piece.score
    p.keys |= {"model": "llama", "pre": "default", "add_space_prefix": bool(proto.normalizer_spec.add_dummy_prefix)}
    if proto.normalizer_spec.remove_extra_whitespaces:
        p.keys["remove_extra_whitespaces"] = True


def _vocabulary(p: Published, vocab: object) -> None:
    """Texts by their ids, all of them words so far."""
    if not isinstance(vocab, dict) or not all(type(i) is int and 0 <= i < MOST for i in vocab.values()):
        raise FileError(p.path, "the vocabulary is wrong", where="vocab", expected="ids by texts")
    p.tokens = {i: text for text, i in vocab.items()}
    if len(p.tokens) < len(vocab):
        raise FileError(p.path, "two tokens have the same id", where="vocab")
    p.types = dict.fromkeys(p.tokens, NORMAL)


def _merges(p: Published, merges: object) -> list[tuple[str, str]]:
    """Pairs; older files have "left right"."""
    pairs = [tuple(m.split(" ", 1)) if isinstance(m, str) else m for m in merges] if isinstance(merges, list) else None
    if pairs is None or not all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(part, str) for part in pair)
        for pair in pairs
    ):
        raise FileError(p.path, "the merges are wrong", where="merges", expected="pairs of texts")
    return [(left, right) for left, right in pairs]


def _byte_level(p: Published, tokenizer: Mapping[str, Any], arch: str, pre: str | None) -> None:
    model = tokenizer["model"]
    nfc = _nfc(p, tokenizer.get("normalizer"))
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(name):
            raise UnsupportedError(p.path, "merges of this kind are not supported", where=name, got=model[name])
    _vocabulary(p, model.get("vocab"))
    merges = [f"{left} {right}" for left, right in _merges(p, model.get("merges"))]
    ignore = bool(model.get("ignore_merges"))
    name = pre or pretokenizer.name_of(tokenizer.get("pre_tokenizer"), ignore, nfc, arch, p.path)
    p.keys |= {"model": "gpt2", "pre": name, "merges": merges}


def _nfc(p: Published, normaliser: Any) -> bool:
    """Whether text is brought to NFC before it is cut; nothing else may be done to it, for GGUF cannot say it."""
    kind = normaliser.get("type") if isinstance(normaliser, dict) else normaliser
    if kind == "Sequence" and isinstance(normaliser.get("normalizers"), list):
        return True in [_nfc(p, part) for part in normaliser["normalizers"]]
    if kind not in (None, "NFC"):
        raise UnsupportedError(p.path, "text normalisation of this kind", where="normalizer", got=repr(kind)[:60])
    return kind == "NFC"


def _slow(p: Published, pre: str | None) -> None:
    kind = p.config.get("tokenizer_class")
    name = pre or SLOW.get(str(kind))
    if name is None:
        raise UnsupportedError(p.folder / "tokenizer_config.json", "nothing says how words are cut; name it with --pre",
                               where="tokenizer_class", expected=" or ".join(SLOW), got=repr(kind)[:60])  # fmt: skip
    _vocabulary(p, read_json(p.path, LONGEST))
    try:
        with open(p.folder / "merges.txt", encoding="utf-8") as file:
            lines = file.read(LONGEST).split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(p.folder / "merges.txt", f"cannot be read: {error}") from error
    merges = [line.rstrip("\r") for line in lines if line.strip() and not line.startswith("#version")]
    p.keys |= {"model": "gpt2", "pre": name, "merges": merges}


def _merged_pieces(p: Published, tokenizer: Mapping[str, Any]) -> None:
    """A SentencePiece model that was turned into merges: the earlier a merge makes a piece, the higher its score."""
    model = tokenizer["model"]
    _vocabulary(p, model.get("vocab"))
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(_merges(p, model.get("merges"))):
        ranks.setdefault(left + right, rank)
    for i, text in p.tokens.items():
        if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            p.types[i] = BYTE
        elif text == model.get("unk_token"):
            p.types[i] = UNKNOWN
        p.scores[i] = -float(ranks.get(text, len(ranks)))
    p.keys |= {"model": "llama", "pre": "default", "add_space_prefix": _space_prefix(p, tokenizer)}


def _space_prefix(p: Published, tokenizer: Mapping[str, Any]) -> bool:
    """Whether a text gets a space before it, by either place that says so."""
    found, normaliser, cutter = False, tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")
    parts = normaliser.get("normalizers", [normaliser]) if isinstance(normaliser, dict) else []
    for part in parts:
        if part == {"type": "Prepend", "prepend": "▁"}:
            found = True
        elif part != {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
            raise UnsupportedError(p.path, "text normalisation of this kind", where="normalizer", got=repr(part)[:80])
    if isinstance(cutter, dict) and cutter.get("type") == "Metaspace":
        scheme = cutter.get("prepend_scheme", "always" if cutter.get("add_prefix_space", True) else "never")
        return found or scheme != "never"
    if cutter is not None and not (cutter.get("type") == "Split" and cutter.get("pattern") == {"String": " "}):
        raise UnsupportedError(p.path, "words are cut in a way that is not known", where="pre_tokenizer",
                               got=json.dumps(cutter)[:120])  # fmt: skip
    return found


# ---- tokens that were added, and what comes around a text ----


def _add(p: Published, tokenizer: Mapping[str, Any]) -> None:
    """From all the files that may say so."""
    listed = [*_entries(tokenizer.get("added_tokens"))]
    if p.path.name == "tokenizer.model":  # says itself which of its pieces are special
        listed = [(i, entry) for i, entry in listed if p.types.get(i, NORMAL) in (NORMAL, UNUSED)]
    decoder = p.config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        listed += [(int(i) if i.isdecimal() else -1, entry) for i, entry in decoder.items()]
    listed += [(i, {"content": text}) for text, i in _optional(p.folder, "added_tokens.json").items()]
    for i, entry in listed:
        text = entry.get("content") if isinstance(entry, dict) else None
        if not isinstance(text, str) or type(i) is not int or not 0 <= i < MOST:
            raise FileError(p.folder, "an added token is wrong", expected="id and content", got=repr(entry)[:80])
        special = bool(entry.get("special")) or p.added.get(i, ("", False))[1]
        p.added[i] = (text, special)
    spm = p.keys["model"] == "llama"
    for i, (text, special) in p.added.items():
        if p.types.get(i) == BYTE and p.tokens[i] == text:
            continue
        control = special or _looks_special(text)
        p.types[i] = CONTROL if control else USER_DEFINED
        p.tokens[i] = text if control or not spm else text.replace("▁", " ")
        p.scores[i] = ADDED


def _entries(added: object) -> list[tuple[Any, Any]]:
    return [(e.get("id") if isinstance(e, dict) else None, e) for e in added] if isinstance(added, list) else []


def _looks_special(text: str) -> bool:
    """Some models' files do not say it of all."""
    framed = text.startswith(("<|", "<｜")) and text.endswith(("|>", "｜>"))
    return (
        framed
        or text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<unused") and text.endswith(">"))
    )


def _listed(p: Published, size: int) -> None:
    """As many tokens as the model has embeddings."""
    beyond = [i for i in p.tokens if i >= size]
    if len(beyond) == len(p.tokens):
        raise FileError(p.path, "the vocabulary is empty, or another model's")
    if beyond:
        warnings.warn(f"{p.path}: {len(beyond)} tokens, {p.tokens[beyond[0]]!r} first, are beyond the model's "
                      f"vocabulary of {size}: left out", stacklevel=4)  # fmt: skip
    p.keys["tokens"] = [p.tokens.get(i, f"[PAD{i}]") for i in range(size)]
    if p.keys["model"] == "llama":
        p.keys["scores"] = np.array([p.scores.get(i, PADDING) for i in range(size)], np.float32)


def _around(p: Published, processor: Any) -> None:
    """add_bos_token and add_eos_token: what the template of a single text puts there, else what the configuration says;
    add_space_prefix by the configuration, if it says so."""
    steps = processor.get("processors", [processor]) if isinstance(processor, dict) else []
    shown = set[str]()
    for step in steps if isinstance(steps, list) else []:
        single = step.get("single") if isinstance(step, dict) and step.get("type") == "TemplateProcessing" else None
        if isinstance(single, list) and single:
            shown |= {name for name, at in (("bos", 0), ("eos", -1)) if "SpecialToken" in single[at]}
    for name in ("bos", "eos"):
        said = p.config.get(f"add_{name}_token")
        if name in shown or isinstance(said, bool):
            p.keys[f"add_{name}_token"] = name in shown or said
        elif p.keys["model"] == "gpt2":
            p.keys[f"add_{name}_token"] = False
    if p.keys["model"] == "llama" and isinstance(said := p.config.get("add_prefix_space"), bool):
        p.keys["add_space_prefix"] = said


def _specials(p: Published) -> None:
    """The ids of special tokens; those tokens become control tokens where nothing else was said of them."""
    named, ids = _optional(p.folder, "special_tokens_map.json"), dict[str, int]()
    tokens: list[str] = p.keys["tokens"]  # type: ignore[assignment]
    places = {text: i for i, text in enumerate(tokens)}
    for name, key in SPECIAL.items():
        text = next((t for source in (p.config, named) if (t := _text(source.get(f"{name}_token")))), None)
        numbers = [n for source in (p.ids, p.generation) for n in _numbers(source.get(f"{name}_token_id"))]
        known = places.get(text) if text is not None else None
        found = known if known is not None else next((n for n in numbers if 0 <= n < len(tokens)), None)
        if found is not None:
            ids[name] = p.keys[key] = found
            if p.types.get(found) == NORMAL:
                p.types[found] = CONTROL
        elif name in ("bos", "eos") and p.keys.get(f"add_{name}_token"):
            raise FileError(p.path, f"texts get a {name.upper()} token, and no file names it", where=f"{name}_token",
                            expected="in tokenizer_config.json", got=text)  # fmt: skip
    ends = [n for n in _numbers(p.generation.get("eos_token_id")) if 0 <= n < len(tokens) and n != ids.get("eos")]
    if ends:
        p.keys["eot_token_id"] = next((n for n in ends if tokens[n] in TURN_ENDS), ends[0])
    p.keys["token_type"] = np.array([p.types.get(i, UNUSED) for i in range(len(tokens))], np.int32)


def _text(value: Any) -> str | None:
    found = value.get("content") if isinstance(value, dict) else value
    return found if isinstance(found, str) else None


def _numbers(value: Any) -> list[int]:
    return [n for n in (value if isinstance(value, list) else [value]) if type(n) is int]


def _template(p: Published) -> None:
    """The chat template: a file of its own, or in the configuration; of several, each by its name."""
    path = p.folder / "chat_template.jinja"
    found: Any = p.config.get("chat_template") or _optional(p.folder, "chat_template.json").get("chat_template")
    if path.is_file():
        try:
            with open(path, encoding="utf-8") as file:
                found = file.read(LONGEST)
        except (OSError, UnicodeDecodeError) as error:
            raise FileError(path, f"cannot be read: {error}") from error
    if isinstance(found, str):
        p.keys["chat_template"] = found
    elif isinstance(found, list):
        named = {e["name"]: e["template"] for e in found if isinstance(e, dict) and _text(e.get("name"))
                 and _text(e.get("template"))}  # fmt: skip
        if "default" in named:
            p.keys["chat_template"] = named.pop("default")
        p.keys |= {f"chat_template.{name}": text for name, text in named.items()}
        if named:
            p.keys["chat_templates"] = list(named)
