"""Writes GGUF version 3: the header, then tensor by tensor, streamed into a file that gets its name when whole."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from tinyslm.errors import FileError, OptionError
from tinyslm.formats import TYPES
from tinyslm.gguf_header import DEFAULT_ALIGNMENT, DTYPES, MAGIC, MAX_ALIGNMENT, SCALARS, ValueType

_TEMPORARY = ".tinyslm-{pid}-"
_DESCRIPTORS = "/proc/self/fd"
_KINDS = {dtype: ValueType(kind) for kind, dtype in DTYPES.items()}


class TensorData(NamedTuple):
    """A tensor to be written: `shape` in ggml's order (row length first), `type` a GGUF type id; `data` its bytes
    as an array of any shape, or an iterable of such arrays that is drawn on when the tensor's turn comes."""

    name: str
    shape: tuple[int, ...]
    type: int
    data: npt.NDArray[np.generic] | Iterable[npt.NDArray[np.generic]]

    @property
    def nbytes(self) -> int:
        size = TYPES[self.type]
        return prod(self.shape) // size.block * size.bytes


def write(
    path: str | os.PathLike[str],
    metadata: Mapping[str, object],
    tensors: Iterable[TensorData | tuple[str, tuple[int, ...], int, object]] = (),
    *,
    types: Mapping[str, ValueType] | None = None,
) -> None:
    """Writes a file, aligned as `metadata["general.alignment"]` says (else to 32).

    A value's type is that in `types` (as `GGUF.metadata_types`), else it follows from the value: bool, str, NumPy
    scalars and arrays by themselves, int as UINT32 (INT32 when negative, 64 bits when it must), float as FLOAT32, list
    as an array of its members (numbers: INT32 or FLOAT32), tuple as an array of arrays.

    The file appears under its name only when whole and on disk; whatever goes wrong before, nothing is left behind.
    OptionError for what cannot be written, FileError from the disk; what `data` raises passes through.
    """
    path = Path(path)
    listed = [TensorData(*tensor) for tensor in tensors]
    kinds = types or {}
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not 8 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise OptionError(f"general.alignment must be a power of two from 8 to {MAX_ALIGNMENT}, not {alignment!r}")
    header = _header(metadata, kinds, listed, alignment)
    if not path.name:
        raise OptionError(f"{str(path)!r} is no name for a file")
    try:
        with _appearing(path) as file:
            file.write(header)
            for tensor in listed:
                _pad(file, alignment)
                _write_data(file, tensor)
                _pad(file, alignment)
    except OSError as error:
        raise FileError(path, f"cannot be written: {error.strerror}") from error


@contextmanager
def _appearing(path: Path) -> Iterator[BinaryIO]:
    """A file that has its name once the block is done and all is on disk; should that fail, nothing is left behind.

    Linux has files without a name, which not even a killed process leaves; elsewhere it has a temporary one.
    """
    temporary = path.with_name(f"{_TEMPORARY.format(pid=os.getpid())}{os.urandom(8).hex()}.tmp")
    nameless = _nameless(path.parent)
    try:
        with nameless or open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if nameless:  # src_dir_fd is not needed, but only with it does Python follow the first name
                os.link(f"{_DESCRIPTORS}/{file.fileno()}", temporary, src_dir_fd=file.fileno(), follow_symlinks=True)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def _nameless(folder: Path) -> BinaryIO | None:
    if not hasattr(os, "O_TMPFILE") or not os.path.isdir(_DESCRIPTORS):
        return None
    try:
        return os.fdopen(os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o666), "wb")
    except OSError:  # not every file system has them; what else is wrong, opening a name says
        return None


def unfinished(folder: Path) -> list[Path]:
    """The files that this process is writing there, of those that have a name before they are whole."""
    return list(folder.glob(_TEMPORARY.format(pid=os.getpid()) + "*.tmp"))


def _header(
    metadata: Mapping[str, object], kinds: Mapping[str, ValueType], tensors: Sequence[TensorData], alignment: int
) -> bytes:
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise OptionError("two tensors have the same name")
    out = bytearray(MAGIC + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        out += _string(key)
        kind = kinds.get(key)
        out += _typed(_kind_of(value) if kind is None else kind, value)
    offset = 0
    for tensor in tensors:
        _check_shape(tensor)
        out += _string(tensor.name)
        out += struct.pack(f"<I{len(tensor.shape)}QIQ", len(tensor.shape), *tensor.shape, tensor.type, offset)
        offset += -(-tensor.nbytes // alignment) * alignment
    return bytes(out)


def _check_shape(tensor: TensorData) -> None:
    if tensor.type not in TYPES:
        raise OptionError(f"{tensor.name!r}: {tensor.type!r} is no GGUF type id")
    block = TYPES[tensor.type].block
    if not 1 <= len(tensor.shape) <= 4 or min(tensor.shape) < 1 or tensor.shape[0] % block:
        raise OptionError(f"{tensor.name!r}: bad shape {tensor.shape} for {TYPES[tensor.type].name}")


def _kind_of(value: object) -> ValueType:
    if isinstance(value, (np.ndarray, list, tuple)):
        return ValueType.ARRAY
    if isinstance(value, (bool, np.bool_)):
        return ValueType.BOOL
    if isinstance(value, str):
        return ValueType.STRING
    if isinstance(value, np.generic):
        return _kind_of_dtype(value.dtype)
    if isinstance(value, int):
        if value < 0:
            return ValueType.INT32 if value >= -(2**31) else ValueType.INT64
        return ValueType.UINT32 if value < 2**32 else ValueType.UINT64
    if isinstance(value, float):
        return ValueType.FLOAT32
    raise OptionError(f"metadata cannot hold a {type(value).__name__}")


def _kind_of_dtype(dtype: np.dtype[np.generic]) -> ValueType:
    kind = _KINDS.get(dtype.newbyteorder("<"))
    if kind is None:
        raise OptionError(f"metadata cannot hold numbers of type {dtype}")
    return kind


def _typed(kind: ValueType, value: object) -> bytes:
    return struct.pack("<I", kind) + (_array(value) if kind == ValueType.ARRAY else _plain(kind, value))


def _plain(kind: ValueType, value: object) -> bytes:
    if kind == ValueType.STRING:
        return _string(value)
    try:
        return SCALARS[kind].pack(value)
    except (struct.error, OverflowError) as error:
        raise OptionError(f"{value!r} is no {kind.name}") from error


def _string(value: object) -> bytes:
    if not isinstance(value, str):
        raise OptionError(f"expected a string, got {value!r}")
    raw = value.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _array(value: object) -> bytes:
    """Type of the members, their number, the members."""
    if isinstance(value, tuple):
        return struct.pack("<IQ", ValueType.ARRAY, len(value)) + b"".join(map(_array, value))
    if isinstance(value, list) and not all(isinstance(member, str) for member in value):
        value = _numbers(value)
    if isinstance(value, np.ndarray):
        kind = _kind_of_dtype(value.dtype)
        return struct.pack("<IQ", kind, value.size) + value.astype(DTYPES[kind]).tobytes()
    if not isinstance(value, list):
        raise OptionError(f"expected an array, got {value!r}")
    return struct.pack("<IQ", ValueType.STRING, len(value)) + b"".join(map(_string, value))


def _numbers(members: list[object]) -> npt.NDArray[np.generic]:
    """The members as one array of the narrowest type that `write` names."""
    if all(isinstance(member, bool) for member in members):
        return np.array(members, np.bool_)
    if all(isinstance(member, int) and not isinstance(member, bool) for member in members):
        wide = np.array(members)
        narrow = wide.astype(np.int32) if wide.dtype == np.int64 else wide
        return narrow if np.array_equal(narrow, wide) else wide
    if all(isinstance(member, (int, float)) and not isinstance(member, bool) for member in members):
        return np.array(members, np.float32)
    raise OptionError("the members of a list must be all strings, all bools or all numbers")


def _pad(file: BinaryIO, alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))


def _write_data(file: BinaryIO, tensor: TensorData) -> None:
    chunks = [tensor.data] if isinstance(tensor.data, np.ndarray) else tensor.data
    written = 0
    for chunk in chunks:
        raw = np.ascontiguousarray(chunk).reshape(-1).view(np.uint8)
        written += raw.size
        if written > tensor.nbytes:
            break
        file.write(raw.data)
    if written != tensor.nbytes:
        raise OptionError(
            f"{tensor.name!r}: its data has {written} bytes or more, its shape and type say {tensor.nbytes}"
        )
