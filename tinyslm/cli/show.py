"""tinyslm show: what a GGUF file holds. Reads the header only."""

from __future__ import annotations

import json
import math
import warnings
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any

from . import source
from .terminal import printable, size

if TYPE_CHECKING:
    from ..gguf import GGUF

HELP = "show what a GGUF file holds"
DESCRIPTION = """\
Shows what a GGUF file holds: architecture, parameters, sizes, tokenizer, metadata, and what this version does not
understand. Reads the header only, and also shows files that cannot run.\
"""
EXAMPLES = """\
examples:
  tinyslm show model.gguf
  tinyslm show model.gguf --tensors
  tinyslm show model.gguf --json | jq .architecture
"""
SHOWN = 60  # characters of a text, in the summary
MEMBERS = 4  # of an array, in the summary
KEPT = 16  # members of an array that --json gives whole
KNOWN_PREFIXES = ("general.", "tokenizer.", "split.", "quantize.")
DIMENSIONS = {
    "context": "context_length", "layers": "block_count", "width": "embedding_length",
    "feed-forward": "feed_forward_length", "heads": "attention.head_count",
    "key/value heads": "attention.head_count_kv",
}  # fmt: skip


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", nargs="?", help=source.HELP)
    parser.add_argument("--tensors", action="store_true", help="each tensor: type, shape (row length first), bytes")
    parser.add_argument("--json", action="store_true", help="one JSON object; of long arrays, the first entries")


def run(args: Namespace) -> int:
    from ..gguf import GGUF

    with GGUF.open(source.find(args.model)) as file:
        found = describe(file)
        if not args.tensors:
            del found["tensors"]
        print(json.dumps(found, indent=1) if args.json else "\n".join(lines(file, found)))
    return 0


def describe(file: GGUF) -> dict[str, Any]:
    """All that is to be shown, as JSON can hold it."""
    arch = file.metadata.get("general.architecture")
    types: dict[str, dict[str, int]] = {}
    for t in file.tensors.values():
        of = types.setdefault(t.type_name, {"tensors": 0, "parameters": 0, "bytes": 0})
        of["tensors"] += 1
        of["parameters"] += math.prod(t.shape)
        of["bytes"] += t.nbytes
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vocabulary, problems = _vocabulary(file)
    unread, why = _check(file)
    return {
        "file": str(file.path),
        "parts": len(file.sizes),
        "bytes": file.size,
        "version": file.version,
        "architecture": _plain(arch),
        "parameters": sum(of["parameters"] for of in types.values()),
        "types": types,
        "dimensions": {
            name: _plain(file.metadata[f"{arch}.{key}"])
            for name, key in DIMENSIONS.items()
            if f"{arch}.{key}" in file.metadata
        },
        "tokenizer": vocabulary,
        "metadata": {key: _plain(value) for key, value in file.metadata.items()},
        "problems": [text.removeprefix(f"{file.path}: ") for text in why + problems],
        "warnings": [str(w.message) for w in caught] + [f"this key is not understood: {key}" for key in unread],
        "tensors": [
            {"name": t.name, "type": t.type_name, "shape": list(t.shape), "bytes": t.nbytes, "offset": t.offset}
            for t in file.tensors.values()
        ],
    }


def _vocabulary(file: GGUF) -> tuple[dict[str, Any] | None, list[str]]:
    """The tokenizer as the file states it, and why it cannot be used."""
    from ..errors import TinySLMError
    from ..tokenizer.vocabulary import read

    def key(name: str) -> Any:
        return file.metadata.get(f"tokenizer.ggml.{name}")

    if key("model") is None:
        return None, ["the file has no tokenizer"]
    tokens = key("tokens")
    found: dict[str, Any] = {
        "model": _plain(key("model")),
        "pre": _plain(key("pre")),
        "tokens": len(tokens) if isinstance(tokens, list) else 0,
    }
    try:
        vocabulary = read(file.metadata, file.path)
    except TinySLMError as error:
        return found, [str(error)]
    ids = {name: getattr(vocabulary, name) for name in ("bos", "eos", "eot", "eom", "unk", "pad")}
    found["special"] = {name: {"id": i, "text": vocabulary.tokens[i]} for name, i in ids.items() if i is not None}
    found["ends"] = sorted(vocabulary.eog)
    found |= {"add_bos": vocabulary.add_bos, "add_eos": vocabulary.add_eos}
    return found, []


def _check(file: GGUF) -> tuple[list[str], list[str]]:
    """Keys that are not understood, and why the file cannot run here."""
    import numpy as np

    from .. import models
    from ..config import Keys
    from ..errors import TinySLMError

    strangers = [k for k in file.metadata if not k.startswith((*KNOWN_PREFIXES, f"{_architecture(file)}."))]
    try:
        keys = Keys(file.path, file.metadata)
    except TinySLMError as error:
        return strangers, [str(error)]
    # the values of short vectors do not matter to what fits; the header alone is read
    tensors = models.Tensors(file.path, file.tensors, lambda name: np.ones(file.tensors[name].shape[0], np.float32))
    try:
        program = models.build(keys, tensors)
        for weight in program.weights():
            _ = file.tensors[weight.name].format
    except TinySLMError as error:
        understood = getattr(error, "where", None) in keys.unread()  # all else was read when this one was refused
        return strangers + [k for k in keys.unread() if understood and k != getattr(error, "where", None)], [str(error)]
    return strangers + list(keys.unread()), []


def _architecture(file: GGUF) -> str:
    return str(file.metadata.get("general.architecture"))


def _plain(value: object) -> Any:
    """A metadata value for JSON: a long array becomes its length and its first entries."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    members = list(value[: KEPT + 1])  # type: ignore[index]
    plain = [_plain(m.item() if hasattr(m, "item") and not getattr(m, "ndim", 0) else m) for m in members]
    length = len(value)  # type: ignore[arg-type]
    return plain if length <= KEPT else {"length": length, "first": plain[:MEMBERS]}


# ---- for people ----


def lines(file: GGUF, found: dict[str, Any]) -> list[str]:
    bits = f", {found['bytes'] * 8 / found['parameters']:.2f} bits each" if found["parameters"] else ""
    parts = f" in {found['parts']} parts" if found["parts"] > 1 else ""
    rows = [
        ("file", f"{found['file']}, {size(found['bytes'])}{parts}, GGUF version {found['version']}"),
        ("architecture", _short(found["architecture"]) if found["architecture"] is not None else "none is named"),
        ("parameters", f"{found['parameters']:,}{bits}"),
    ]
    for name, of in sorted(found["types"].items(), key=lambda item: -item[1]["bytes"]):
        rows.append((name, f"{size(of['bytes'])} in {of['tensors']:,} tensor{'s' * (of['tensors'] > 1)}"))
    rows += [(name, _short(value)) for name, value in found["dimensions"].items()]
    rows += _tokenizer_rows(found["tokenizer"])
    out = [f"{name:15} {printable(value)}" for name, value in rows]
    width = min(40, max(map(len, found["metadata"]), default=0))
    out += ["", "metadata"]
    for key, value in found["metadata"].items():
        out.append(f"  {printable(key):{width}}  {file.metadata_types[key].name.lower():7}  {_short(value)}")
    if "tensors" in found:
        out += ["", "tensors", *_tensor_lines(found["tensors"])]
    for title, texts in (("this version cannot run it", found["problems"]), ("warnings", found["warnings"])):
        if texts:
            out += ["", title, *(f"  {printable(text)}" for text in texts)]
    return out


def _tokenizer_rows(vocabulary: dict[str, Any] | None) -> list[tuple[str, str]]:
    if vocabulary is None:
        return [("tokenizer", "none")]
    kinds = {"llama": "SentencePiece", "gpt2": "byte-level BPE"}
    text = f"{_short(vocabulary['model'])} ({kinds.get(str(vocabulary['model']), 'unknown')})"
    if vocabulary["pre"] is not None:
        text += f", pre {_short(vocabulary['pre'])}"
    rows = [("tokenizer", text), ("vocabulary", f"{vocabulary['tokens']:,} tokens")]
    special = vocabulary.get("special", {})
    return rows + [(f"  {name}", f"{token['id']} {_short(token['text'])}") for name, token in special.items()]


def _tensor_lines(tensors: list[dict[str, Any]]) -> list[str]:
    cells = [
        (printable(t["name"]), t["type"], " x ".join(map(str, t["shape"])), f"{t['bytes']:,} bytes") for t in tensors
    ]
    widths = [max((len(row[i]) for row in cells), default=0) for i in range(4)]
    return [f"  {a:{widths[0]}}  {b:{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}" for a, b, c, d in cells]


def _short(value: Any) -> str:
    """A value of `_plain` in a few words."""
    if isinstance(value, str):
        more = f"... ({len(value):,} characters)" if len(value) > SHOWN else ""
        return printable(value[:SHOWN]) + more
    if isinstance(value, dict):
        return f"[{', '.join(map(_short, value['first']))}, ...] ({value['length']:,} entries)"
    if isinstance(value, list):
        return f"[{', '.join(map(_short, value[:MEMBERS]))}{', ...' if len(value) > MEMBERS else ''}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)
