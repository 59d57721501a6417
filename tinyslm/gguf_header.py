"""The values in the header of a GGUF file: a bounded parse of hostile input (the format: ggml's docs/gguf.md).

Whatever a file claims, nothing is allocated or looped over before the claim is held against the bytes that are left,
and what Python's objects take beyond those bytes stays within `SPARE_MEMORY`.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from tinyslm.errors import FileError

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 21  # a huge page: nothing that files are laid out for is larger

# The largest headers known hold some 700 thousand strings in 20 MB, a hundred keys, and a few thousand tensors.
MAX_HEADER = 256 << 20
MAX_KEYS = 1 << 16
MAX_NAME = 65535  # bytes, as the specification says of keys
MAX_DEPTH = 8  # arrays within arrays
SPARE_MEMORY = 64 << 20

_CHUNK = 256 << 10
_MANY = 1000  # strings for which it pays to look at the whole buffer at once
# What a key and an array take in Python's objects, rounded up generously: the memory bounds the time as well.
_KEY_COST, _ARRAY_COST = 256, 1024


class ValueType(enum.IntEnum):
    """The type of a metadata value."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


_CODES = dict(zip([*range(8), 10, 11, 12], "BbHhIif?Qqd", strict=True))
SCALARS: dict[int, struct.Struct] = {
    kind: struct.Struct("<" + code.replace("?", "B"))  # for a byte of 2 would be True too
    for kind, code in _CODES.items()
}
DTYPES: dict[int, np.dtype[np.generic]] = {kind: np.dtype("<" + code) for kind, code in _CODES.items()}
_U32, _U64 = SCALARS[ValueType.UINT32], SCALARS[ValueType.UINT64]


@dataclass
class Budget:
    """Memory that the headers of one model's parts have taken together, beyond their own bytes."""

    taken: int = 0


def shorten(name: str) -> str:
    return name if len(name) <= 80 else name[:77] + "..."


class Cursor:
    """Walks over a header through a small window of the file."""

    __slots__ = ("base", "budget", "buffer", "file", "path", "pos", "size", "where")

    def __init__(self, file: FileIO, path: Path, size: int, budget: Budget) -> None:
        self.file, self.path, self.size, self.budget = file, path, size, budget
        self.buffer, self.base, self.pos = b"", 0, 0  # buffer[0] is byte `base` of the file
        self.where: str | None = None

    @property
    def offset(self) -> int:
        return self.base + self.pos

    def fail(
        self, problem: str, offset: int, expected: object = None, got: object = None, kind: type[FileError] = FileError
    ) -> NoReturn:
        where = None if self.where is None else shorten(self.where)
        raise kind(self.path, problem, where=where, offset=offset, expected=expected, got=got)

    def room(self, n: int) -> None:
        """Fails unless n more bytes may be read."""
        offset = self.offset
        if n > self.size - offset:
            self.fail("the file ends too early", offset, f"{n} more bytes", f"{self.size - offset}")
        if offset + n > MAX_HEADER:
            self.fail("the header is too long", offset, f"at most {MAX_HEADER} bytes", f"{offset + n}")

    def charge(self, memory: int) -> None:
        """Accounts for bytes of Python objects, less the bytes of the file that they stand for."""
        self.budget.taken += memory
        if self.budget.taken > SPARE_MEMORY:
            expected = f"at most {SPARE_MEMORY} bytes beyond its own"
            self.fail("the header takes too much memory", self.offset, expected)

    def need(self, n: int) -> None:
        """Sees to it that n bytes stand in the buffer."""
        if n > len(self.buffer) - self.pos:
            self.room(n)
            rest = self.buffer[self.pos :]
            self.base, self.pos = self.offset, 0
            more = bytearray(min(max(_CHUNK, n), self.size - self.base) - len(rest))
            self._fill(memoryview(more))
            self.buffer = rest + more

    def _fill(self, view: memoryview) -> None:
        done = 0
        while done < len(view):
            try:
                got = self.file.readinto(view[done:])
            except OSError as error:
                raise FileError(self.path, f"cannot be read: {error.strerror}", offset=self.offset) from error
            if not got:
                self.fail("the file shrank while it was read", self.offset)
            done += got

    def take(self, n: int) -> bytes | bytearray:
        """The next n bytes; long runs go past the buffer."""
        if n <= max(len(self.buffer) - self.pos, _CHUNK):
            self.need(n)
            self.pos += n
            return self.buffer[self.pos - n : self.pos]
        self.room(n)
        out = bytearray(n)
        rest = self.buffer[self.pos :]
        out[: len(rest)] = rest
        self._fill(memoryview(out)[len(rest) :])
        self.base, self.pos, self.buffer = self.offset + n, 0, b""
        return out

    def unpack(self, scalar: struct.Struct) -> int | float:
        self.need(scalar.size)
        self.pos += scalar.size
        value: int | float = scalar.unpack_from(self.buffer, self.pos - scalar.size)[0]
        return value

    def u32(self) -> int:
        return int(self.unpack(_U32))

    def u64(self) -> int:
        return int(self.unpack(_U64))

    def text(self) -> str:
        """A string that must be UTF-8."""
        at = self.offset
        length = self.u64()
        raw = self.take(length)
        self.charge(64 + length * (1 if raw.isascii() else 4))  # CPython stores all letters as wide as the widest
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError as error:
            got = f"byte 0x{raw[error.start]:02x}"
            self.fail("a string is not UTF-8", at + 8 + error.start, "valid UTF-8", got)

    def name(self) -> str:
        """Of a key or a tensor."""
        self.need(8)
        length = _U64.unpack_from(self.buffer, self.pos)[0]
        if length > MAX_NAME:
            self.fail("a name is too long", self.offset, f"at most {MAX_NAME} bytes", length)
        return self.text()

    def value(self, kind: int) -> object:
        """One metadata value: bool, int, float or str; an array as `array` says."""
        if kind == ValueType.STRING:
            return self.text()
        if kind == ValueType.ARRAY:
            return self.array(1)
        scalar = SCALARS.get(kind)
        if scalar is None:
            self.fail("unknown value type", self.offset - 4, "0 to 12", kind)
        value = self.unpack(scalar)
        if kind == ValueType.BOOL:
            if value > 1:
                self.fail("a bool is neither 0 nor 1", self.offset - 1, got=value)
            return bool(value)
        return value

    def array(self, depth: int) -> npt.NDArray[np.generic] | list[str] | tuple[object, ...]:
        """Numbers and bools come as a read-only NumPy array, strings as a list, arrays as a tuple, so that even an
        empty value shows its type."""
        at = self.offset
        kind, count = self.u32(), self.u64()
        self.charge(_ARRAY_COST)
        if kind == ValueType.STRING:
            self.room(8 * count)
            return self.strings(count)
        if kind == ValueType.ARRAY:
            if depth == MAX_DEPTH:
                self.fail("arrays are nested too deeply", at, f"at most {MAX_DEPTH} levels")
            self.room(12 * count)
            return tuple([self.array(depth + 1) for _ in range(count)])
        dtype = DTYPES.get(kind)
        if dtype is None:
            self.fail("unknown value type of an array", at, "0 to 12", kind)
        numbers = np.frombuffer(memoryview(self.take(count * dtype.itemsize)).toreadonly(), dtype)
        if kind == ValueType.BOOL and count and numbers.view(np.uint8).max() > 1:
            self.fail("a bool is neither 0 nor 1", at)
        return numbers

    def strings(self, count: int) -> list[str]:
        """Tokens: real vocabularies hold bytes that are no UTF-8, which are kept as surrogates (PEP 383)."""
        out: list[str] = []
        while len(out) < count:
            at = self.offset
            part = self._strings_in_buffer(min(count - len(out), 65536))
            if not part:  # the next one reaches beyond the buffer
                self.need(8)
                length = _U64.unpack_from(self.buffer, self.pos)[0]
                self.room(8 + length)
                self.charge(4 * length if length > _CHUNK else 0)
                part = [str(memoryview(self.take(8 + length))[8:], "utf-8", "surrogateescape")]
            self.charge(sum(map(str.__sizeof__, part)) + 8 * len(part) - (self.offset - at))
            out += part
        return out

    def _strings_in_buffer(self, count: int) -> list[str]:
        """Up to count strings, as far as the buffer holds them whole."""
        out = self._plain_strings(count) if count >= _MANY else []
        buffer, pos, end = self.buffer, self.pos, len(self.buffer)
        unpack = _U64.unpack_from
        for _ in range(count - len(out)):
            start = pos + 8
            if start > end:
                break
            stop = start + unpack(buffer, pos)[0]
            if stop > end:
                break
            out.append(buffer[start:stop].decode("utf-8", "surrogateescape"))
            pos = stop
        self.pos = pos
        return out

    def _plain_strings(self, count: int) -> list[str]:
        """Up to count strings of the buffer, as long as they have 1 to 255 bytes and no NUL: several times faster.

        Each is led by its length, a byte and seven zeros, and there are no other zeros.
        """
        window = np.frombuffer(self.buffer, np.uint8)[self.pos :]
        some = window != 0
        leads = some[: max(0, len(some) - 7)].copy()
        for i in range(1, 8):
            leads &= ~some[i : i + len(leads)]
        at = np.flatnonzero(leads)
        follows = at[1:] == at[:-1] + window[at[:-1]] + 8
        n = min(count, len(follows) if follows.all() else int(follows.argmin()))
        if not n or at[0] or np.count_nonzero(some[: at[n]]) != at[n] - 7 * n:
            return []
        self.pos += int(at[n])
        split: bytes = np.where(leads[: at[n]], np.uint8(0), window[: at[n]])[some[: at[n]]].tobytes()
        return split[1:].decode("utf-8", "surrogateescape").split("\0")


def read_count(cursor: Cursor, what: str, *, each: int, limit: int) -> int:
    """A count of things of at least `each` bytes."""
    at = cursor.offset
    count = cursor.u64()
    possible = min(limit, (cursor.size - at - 8) // each)
    if count > possible:
        cursor.fail(f"{what} is more than the file can hold", at, f"at most {possible}", count)
    return count


def read_metadata(cursor: Cursor, count: int) -> tuple[dict[str, object], dict[str, ValueType]]:
    metadata: dict[str, object] = {}
    types: dict[str, ValueType] = {}
    for index in range(count):
        cursor.where = f"metadata key {index + 1} of {count}"
        at = cursor.offset
        key = cursor.name()
        cursor.where = key
        if key in metadata:
            cursor.fail("the metadata key stands there twice", at)
        cursor.charge(_KEY_COST)
        kind = cursor.u32()
        metadata[key] = cursor.value(kind)
        types[key] = ValueType(kind)
    cursor.where = None
    return metadata, types


def read_alignment(cursor: Cursor, metadata: dict[str, object], types: dict[str, ValueType]) -> int:
    cursor.where = key = "general.alignment"
    alignment = metadata.get(key, DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or types.get(key, ValueType.UINT32) != ValueType.UINT32:
        cursor.fail("the alignment has the wrong type", cursor.offset, "UINT32", types[key].name)
    if not 8 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        cursor.fail("bad alignment", cursor.offset, f"a power of two from 8 to {MAX_ALIGNMENT}", alignment)
    cursor.where = None
    return alignment
