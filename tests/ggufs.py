"""Builds GGUF files byte by byte, sound or broken, independently of the package's own writer."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
REAL_FILES = sorted(SHARED.glob("*/*.gguf"))

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def array(kind: int, members: Iterable[bytes]) -> bytes:
    """The body of an array value whose members are already packed."""
    listed = list(members)
    return struct.pack("<IQ", kind, len(listed)) + b"".join(listed)


def numbers(kind: int, *values: float) -> bytes:
    return array(kind, [struct.pack("<" + CODES[kind], value) for value in values])


def key(name: str | bytes, kind: int, body: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + body


def scalar(name: str | bytes, kind: int, value: float) -> bytes:
    return key(name, kind, struct.pack("<" + CODES[kind], value))


def text(name: str | bytes, value: str | bytes) -> bytes:
    return key(name, STRING, string(value))


def tensor(name: str | bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf(
    keys: Iterable[bytes] = (),
    tensors: Iterable[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    key_count: int | None = None,
    tensor_count: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A file; the counts may lie."""
    keys, tensors = list(keys), list(tensors)
    counts = (
        len(tensors) if tensor_count is None else tensor_count,
        len(keys) if key_count is None else key_count,
    )
    header = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(tensors)
    return header + bytes(-len(header) % alignment) + data if data else header


def every_kind_of_value() -> list[bytes]:
    """Keys that hold each value type, arrays of each, and arrays within arrays."""
    keys = [text("general.architecture", "llama"), text("empty", ""), text("letters", "né 😀")]
    keys += [scalar(f"scalar.{kind}", kind, 1) for kind in CODES]
    keys += [key(f"array.{kind}", ARRAY, numbers(kind, 0, 1, 1)) for kind in CODES]
    keys += [key(f"none.{kind}", ARRAY, array(kind, [])) for kind in [*CODES, STRING, ARRAY]]
    keys += [
        scalar("negative", I64, -(2**63)),
        key("tokens", ARRAY, array(STRING, [string("a"), string(b"\xff\xfe"), string("é")])),
        key("nested", ARRAY, array(ARRAY, [numbers(U8, 1, 2), array(STRING, [string("x")]), array(ARRAY, [])])),
    ]
    return keys


def small_file(version: int = 3) -> bytes:
    """A sound file with every kind of value and four tensors, one of them a Q4_0."""
    tensors = [
        tensor("vector", (8,), 0, 0),
        tensor("matrix", (32, 4), 2, 32),
        tensor("cube", (4, 3, 2), 1, 128),
        tensor("point", (1, 1, 1, 1), 24, 192),
    ]
    data = bytes(range(104)) + bytes(24) + bytes(range(48)) + bytes(16) + b"\7"
    return gguf(every_kind_of_value(), tensors, data, version=version)


def split_model(folder: Path, stem: str = "model") -> list[Path]:
    """Three parts, the first without tensors, as llama.cpp's splitter can make them."""
    paths = []
    for part in range(3):
        keys = [scalar("split.no", U16, part), scalar("split.count", U16, 3), scalar("split.tensors.count", I32, 2)]
        if part == 0:
            keys.append(text("general.architecture", "llama"))
        tensors = [tensor(f"t{part}", (8,), 0, 0)] if part else []
        paths.append(folder / f"{stem}-{part + 1:05}-of-00003.gguf")
        paths[-1].write_bytes(gguf(keys, tensors, bytes([part]) * 32 if part else b""))
    return paths
