"""Reads safetensors: 8 bytes that say how long the header is, a header in JSON, the tensors' bytes.

Read by hand, in a bounded way, as the format's own library maps files into memory and has no BF16 in NumPy, which most
models are published in. The format: https://github.com/huggingface/safetensors (docs, "Format").
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FileError, UnsupportedError

LONGEST = 100_000_000  # bytes of a header: the format's own limit
DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}  # BF16 by its bits
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


@dataclass(frozen=True)
class Stored:
    """A tensor of a file: `shape` with the row length last, `offset` the position of its bytes in the file."""

    path: Path
    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int

    def read(self) -> np.ndarray:
        """Its values; those of BF16 as uint16. Raises FileError."""
        dtype, count = DTYPES[self.kind], prod(self.shape)
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                values: np.ndarray = np.fromfile(file, dtype, count)
        except OSError as error:
            raise FileError(self.path, f"cannot be read: {error.strerror}", where=self.name) from error
        if values.size < count:
            raise FileError(self.path, "the file was cut short while it was read", where=self.name)
        return values.reshape(self.shape)


def read_json(path: Path, longest: int = LONGEST) -> dict[str, Any]:
    """A file that holds one object. Raises FileError."""
    try:
        with open(path, "rb") as file:
            raw = file.read(longest + 1)
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror}") from error
    if len(raw) > longest:
        raise FileError(path, "the file is absurdly long", expected=f"up to {longest} bytes")
    return _object(path, raw)


def _object(path: Path, raw: bytes, offset: int | None = None) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise FileError(path, f"no JSON: {error}", offset=offset) from error
    if not isinstance(found, dict):
        raise FileError(path, "wrong JSON", offset=offset, expected="an object", got=type(found).__name__)
    return found


def open_folder(folder: Path) -> dict[str, Stored]:
    """The tensors of model.safetensors or of the parts that an index names. Raises FileError, UnsupportedError."""
    index = folder / INDEX
    if (folder / SINGLE).is_file() or not index.is_file():
        if not (folder / SINGLE).is_file():
            pickled = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt*"))
            advice = ("; its weights are pickles, which can run code and are not read: save them anew with "
                      "save_pretrained of the transformers library" if pickled else
                      ": is the download complete?")  # fmt: skip
            raise FileError(folder, f"there is no {SINGLE} and no {INDEX}{advice}")
        return open_file(folder / SINGLE)
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise FileError(index, "the parts are not named", where="weight_map", expected="an object of file names")
    parts: dict[str, dict[str, Stored]] = {}
    found: dict[str, Stored] = {}
    for name, part in places.items():
        if not isinstance(part, str) or not part or Path(part).name != part:
            raise FileError(index, "no name of a file of this folder", where=name, got=repr(part)[:60])
        if part not in parts:
            if not (folder / part).is_file():
                raise FileError(folder / part, f"this part is missing, though {INDEX} names it: download it again")
            parts[part] = open_file(folder / part)
        if name not in parts[part]:
            raise FileError(folder / part, f"a tensor is missing that {INDEX} says is here", where=name)
        found[name] = parts[part][name]
    return found


def open_file(path: Path) -> dict[str, Stored]:
    """The tensors of a file, in the order of their bytes, which leave no gaps and end where the file ends.

    Raises FileError for a file that breaks the format or was cut short, UnsupportedError for another dtype.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, LONGEST):
                limit = f"a header of up to {min(max(size - 8, 0), LONGEST)} bytes"
                problem = "no safetensors file, or one that is cut short: download it again"
                raise FileError(path, problem, offset=0, expected=limit, got=length)
            header = _object(path, file.read(length), 8)
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror}") from error
    header.pop("__metadata__", None)
    spans = sorted((_span(path, name, entry), name) for name, entry in header.items())
    at, start = 0, 8 + length
    found: dict[str, Stored] = {}
    for (begin, end), name in spans:
        kind, shape = header[name]["dtype"], tuple(header[name]["shape"])
        if begin != at:
            raise FileError(path, "tensors overlap or leave a gap", where=name, expected=f"bytes from {at}", got=begin)
        if start + end > size:
            problem = "the file is cut short: download it again"
            raise FileError(path, problem, where=name, expected=f"{start + end} bytes or more", got=size)
        if kind not in DTYPES:
            problem = f"only {', '.join(DTYPES)} are converted; take the model's unquantised files"
            raise UnsupportedError(path, problem, where=name, got=kind)
        if end - begin != prod(shape) * DTYPES[kind].itemsize:
            raise FileError(path, "a tensor's bytes do not fit its shape", where=name,
                            expected=prod(shape) * DTYPES[kind].itemsize, got=end - begin)  # fmt: skip
        found[name] = Stored(path, name, kind, shape, start + begin)
        at = end
    if start + at != size:
        raise FileError(path, "bytes follow the last tensor", expected=f"{start + at} bytes", got=size)
    return found


def _span(path: Path, name: str, entry: object) -> tuple[int, int]:
    """The first byte and the one after the last; the entry has the right types from then on."""
    fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
    shape, span = _counts(fields.get("shape"), 8), _counts(fields.get("data_offsets"), 2)
    sound = isinstance(fields.get("dtype"), str) and shape is not None and span and len(span) == 2
    if not sound or span is None or span[0] > span[1]:
        problem = "a tensor's entry is wrong"
        raise FileError(path, problem, where=name[:80], expected="dtype, shape and data_offsets", got=repr(entry)[:80])
    return span[0], span[1]


def _counts(value: object, most: int) -> list[int] | None:
    """The list, if it is one of up to `most` numbers that a file can have."""
    sound = isinstance(value, list) and len(value) <= most and all(type(n) is int and 0 <= n < 1 << 63 for n in value)
    return value if sound and isinstance(value, list) else None
