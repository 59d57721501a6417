"""GGUF files: open (one file or a split model), read rows of tensors; `write` makes one.

Nothing here trusts the file: the header is checked as it is parsed (its values in `gguf_header`, its tensors here), and
every read is a `pread`, so that a file that shrinks under us is an error, not a crash.
"""

from __future__ import annotations

import os
import re
import stat
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from tinyslm.errors import ClosedError, FileError, OptionError, UnsupportedError
from tinyslm.formats import FORMATS, REMOVED, TYPE_NAMES, TYPES, Format
from tinyslm.gguf_header import (
    MAGIC,
    MAX_KEYS,
    Budget,
    Cursor,
    ValueType,
    read_alignment,
    read_count,
    read_metadata,
    shorten,
)
from tinyslm.gguf_writer import TensorData, write

__all__ = ["GGUF", "TensorData", "TensorInfo", "ValueType", "write"]

_PART_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


MAX_DIMS = 4  # ggml's own bound
MAX_TENSORS = 1 << 16


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies. `shape` is in ggml's order: shape[0] is the row length K, contiguous in the file."""

    name: str
    shape: tuple[int, ...]
    type: int
    path: Path
    """The file (of a split model: the part) that holds it."""
    offset: int
    """Of its first byte, from the start of that file."""

    @property
    def type_name(self) -> str:
        return TYPE_NAMES[self.type]

    @property
    def rows(self) -> int:
        return prod(self.shape[1:])

    @property
    def row_bytes(self) -> int:
        size = TYPES[self.type]
        return self.shape[0] // size.block * size.bytes

    @property
    def nbytes(self) -> int:
        return self.rows * self.row_bytes

    @property
    def format(self) -> Format:
        """How to compute with it. UnsupportedError for a type that can only be copied."""
        if self.type not in FORMATS:
            raise UnsupportedError(
                self.path,
                f"tensor type {self.type_name} is not supported yet; llama.cpp's tool makes a file that is: "
                "llama-quantize --allow-requantize IN.gguf OUT.gguf Q8_0",
                where=shorten(self.name),
            )
        return FORMATS[self.type]


@dataclass
class Header:
    version: int
    alignment: int
    metadata: dict[str, object]
    metadata_types: dict[str, ValueType]
    tensors: dict[str, TensorInfo]


class GGUF:
    """An open model file: the header parsed, the tensors' bytes left on disk.

    `metadata` maps keys to bool, int, float, str, read-only NumPy arrays (of numbers and bools), lists (of strings,
    where bytes that are no UTF-8 stand as surrogates) or tuples (of arrays); `metadata_types` has each value's type.
    `sizes` maps each part, in order, to its bytes.
    """

    def __init__(self, path: Path, header: Header, files: dict[Path, FileIO], sizes: dict[Path, int]) -> None:
        self.path, self.version, self.alignment = path, header.version, header.alignment
        self.metadata, self.metadata_types = header.metadata, header.metadata_types
        self.tensors: dict[str, TensorInfo] = header.tensors
        self.sizes = sizes
        self._files = files
        self._seek = threading.Lock()

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> GGUF:
        """Reads the header only. A split model is opened by its first part. Raises FileError, UnsupportedError."""
        path = Path(path)
        budget = Budget()
        with ExitStack() as stack:
            files: dict[Path, FileIO] = {}
            sizes: dict[Path, int] = {}

            def add(part: Path) -> Header:
                file, size = _open_file(part)
                files[part], sizes[part] = stack.enter_context(file), size
                _check_magic(file, part, size)
                return _read_header(file, part, size, budget)

            header = add(path)
            for number, part in enumerate(_other_parts(path, header), start=1):
                if not part.exists():
                    raise FileError(part, f"part {number + 1} of a split model is missing; all parts lie in one folder")
                _merge(header, add(part), part, number)
            _check_total(path, header)
            stack.pop_all()
        return cls(path, header, files, sizes)

    @property
    def size(self) -> int:
        """Bytes of all parts together."""
        return sum(self.sizes.values())

    def read_into(
        self, tensor: TensorInfo, row_start: int, row_stop: int, buffer: memoryview | npt.NDArray[np.uint8]
    ) -> None:
        """Reads rows [row_start, row_stop) into a contiguous, writable buffer of exactly their size; from any thread.

        FileError when the file no longer holds them, ClosedError after `close`, OptionError for wrong arguments.
        """
        if not 0 <= row_start <= row_stop <= tensor.rows:
            raise OptionError(f"rows {row_start} to {row_stop} of {tensor.name!r}, which has {tensor.rows}")
        wanted = (row_stop - row_start) * tensor.row_bytes
        whole = buffer if isinstance(buffer, memoryview) else buffer.data
        if whole.nbytes != wanted or whole.readonly or not whole.c_contiguous:
            raise OptionError(f"the buffer must be contiguous, writable and {wanted} bytes long, not {whole.nbytes}")
        if wanted:
            self._pread(tensor, tensor.offset + row_start * tensor.row_bytes, whole.cast("B"))

    def read(self, tensor: TensorInfo) -> npt.NDArray[np.uint8]:
        """The whole tensor, (rows, row_bytes)."""
        out = np.empty((tensor.rows, tensor.row_bytes), np.uint8)
        self.read_into(tensor, 0, tensor.rows, out)
        return out

    def _pread(self, tensor: TensorInfo, offset: int, view: memoryview) -> None:
        fileno, done = self.fileno(tensor), 0
        while done < len(view):
            try:
                if hasattr(os, "preadv"):
                    got = os.preadv(fileno, [view[done:]], offset + done)
                else:
                    with self._seek:
                        file = self._files[tensor.path]
                        file.seek(offset + done)
                        got = file.readinto(view[done:]) or 0
            except OSError as error:
                raise unreadable(tensor, offset + done, error.errno) from error
            if got == 0:
                raise unreadable(tensor, offset + done)
            done += got

    def fileno(self, tensor: TensorInfo) -> int:
        """The descriptor of the open file that holds a tensor. ClosedError after `close`."""
        file = self._files.get(tensor.path)
        if file is None:
            raise ClosedError(f"{tensor.path}: the file was closed, or the tensor is of another file")
        return file.fileno()

    def close(self) -> None:
        """Closes the files; reads must have ended. What was parsed stays."""
        files, self._files = self._files, {}
        for file in files.values():
            file.close()

    def __enter__(self) -> GGUF:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def unreadable(tensor: TensorInfo, offset: int, error: int | None = None) -> FileError:
    """What to raise where reading a tensor failed with an errno, or found the file's end."""
    where = shorten(tensor.name)
    if error:
        return FileError(tensor.path, f"cannot be read: {os.strerror(error)}", where=where, offset=offset)
    expected = f"{tensor.offset + tensor.nbytes - offset} more bytes"
    problem = "the file shrank while it was read"
    return FileError(tensor.path, problem, where=where, offset=offset, expected=expected, got=0)


def _open_file(path: Path) -> tuple[FileIO, int]:
    try:
        mode = os.stat(path).st_mode  # first, for opening a pipe would wait for its writer
        if stat.S_ISDIR(mode):
            raise FileError(path, "this is a directory, not a GGUF file")
        if not stat.S_ISREG(mode):
            raise FileError(path, "this is not a regular file")
        file = FileIO(path)
        return file, os.fstat(file.fileno()).st_size
    except FileNotFoundError as error:
        raise FileError(path, "no such file") from error
    except (OSError, ValueError) as error:
        raise FileError(path, f"cannot be opened: {getattr(error, 'strerror', None) or error}") from error


# How files that are often taken for a model begin.
_LOOKALIKES: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "a zip archive, such as a PyTorch checkpoint"),
    (b"\x80", "a Python pickle, such as an old PyTorch checkpoint"),
    (b"version https://git-lfs", "a Git LFS pointer: the model itself was not fetched (git lfs pull)"),
    (b"<!doctype", "a web page: the download did not fetch the model"),
    (b"<html", "a web page: the download did not fetch the model"),
    (b"FUGG", "a GGUF file with its bytes swapped (big-endian)"),
    (b"lmgg", "a ggml file from before GGUF: convert the model again"),
    (b"fmgg", "a ggml file from before GGUF: convert the model again"),
    (b"tjgg", "a ggml file from before GGUF: convert the model again"),
    (b"algg", "a ggml adapter from before GGUF: convert it again"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive: unpack it first"),
    (b"\xfd7zXZ", "an xz archive: unpack it first"),
    (b"7z\xbc\xaf", "a 7-Zip archive: unpack it first"),
    (b"\x89HDF", "an HDF5 file"),
    (b"{", "a JSON file"),
)


def _check_magic(file: FileIO, path: Path, size: int) -> None:
    """Leaves the file at its start."""
    if size == 0:
        raise FileError(path, "the file is empty")
    head = file.read(512) or b""
    file.seek(0)
    if not head.startswith(MAGIC):
        raise FileError(path, f"this is not a GGUF file: it looks like {_looks_like(head)}", offset=0)


def _looks_like(head: bytes) -> str:
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 27:
        return "a safetensors file: convert the model with llama.cpp's convert_hf_to_gguf.py"
    text = head.lstrip().lower()
    for start, what in _LOOKALIKES:
        if head.startswith(start) or text.startswith(start):
            return what
    if not head.strip(b"\0"):
        return "zeros only, as an unfinished download leaves them"
    printable = sum(byte >= 32 or byte in b"\t\n\r" for byte in head)
    return "text" if printable == len(head) else f"something else (its first bytes are {head[:8].hex(' ')})"


def _split_number(path: Path, header: Header, key: str, default: int) -> int:
    value = header.metadata.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise FileError(path, "bad number", where=key, expected="a count", got=shorten(repr(value)))
    return value


def _other_parts(path: Path, header: Header) -> list[Path]:
    """The files to read after the first part; none when the model is one file."""
    count = _split_number(path, header, "split.count", 1)
    number = _split_number(path, header, "split.no", 0)
    if count <= 1:
        return []
    named = _PART_NAME.fullmatch(path.name)
    stem = named["stem"] if named else "NAME"
    first = f"{stem}-00001-of-{count:05}.gguf"
    if number != 0:
        raise FileError(path, f"this is part {number + 1} of {count} of a split model: open its first part, {first}")
    if path.name != first:
        raise FileError(path, "the first part of a split model must bear that in its name", expected=first)
    return [path.with_name(f"{stem}-{part:05}-of-{count:05}.gguf") for part in range(2, count + 1)]


def _merge(header: Header, other: Header, path: Path, number: int) -> None:
    """Adds the tensors of part `number` (from 0) to those of the first part."""
    for key, expected in (("split.no", number), ("split.count", header.metadata["split.count"])):
        if other.metadata.get(key) != expected:
            raise FileError(
                path, "not the part its name says", where=key, expected=expected, got=other.metadata.get(key)
            )
    for name, tensor in other.tensors.items():
        if name in header.tensors:
            raise FileError(path, f"the tensor is in {header.tensors[name].path.name} too", where=shorten(name))
        header.tensors[name] = tensor


def _check_total(path: Path, header: Header) -> None:
    found = len(header.tensors)
    expected = _split_number(path, header, "split.tensors.count", found)
    if expected != found:
        raise FileError(path, "tensors are missing", where="split.tensors.count", expected=expected, got=found)


def _read_header(file: FileIO, path: Path, size: int, budget: Budget) -> Header:
    """Parses the header of a file of `size` bytes that starts with the magic. Raises FileError and UnsupportedError."""
    cursor = Cursor(file, path, size, budget)
    cursor.need(4)
    cursor.pos = 4
    version = _version(cursor)
    tensor_count = read_count(cursor, "the number of tensors", each=32, limit=MAX_TENSORS)
    key_count = read_count(cursor, "the number of metadata keys", each=13, limit=MAX_KEYS)
    metadata, types = read_metadata(cursor, key_count)
    alignment = read_alignment(cursor, metadata, types)
    tensors = _read_tensors(cursor, tensor_count, alignment)
    return Header(version, alignment, metadata, types, tensors)


def _version(cursor: Cursor) -> int:
    version = cursor.u32()
    if version not in (2, 3):
        _refuse_version(cursor, version)
    return version


def _refuse_version(cursor: Cursor, version: int) -> None:
    if version == 0:
        cursor.fail("no GGUF version", 4, "2 or 3", 0)
    if version & 0xFFFF == 0:
        version = int.from_bytes(version.to_bytes(4, "big"), "little")
        problem = f"a big-endian file (GGUF version {version}); convert it with gguf-convert-endian of the gguf package"
        cursor.fail(problem, 4, "a little-endian file", kind=UnsupportedError)
    age = "too old; convert the model again" if version == 1 else "not known; a newer tinyslm may know it"
    cursor.fail(f"GGUF version {version} is {age}", 4, "2 or 3", version, kind=UnsupportedError)


def _read_tensors(cursor: Cursor, count: int, alignment: int) -> dict[str, TensorInfo]:
    """The tensors in the header's order, their offsets made absolute; all lie in the file, and none on another."""
    found: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for index in range(count):
        cursor.where = f"tensor {index + 1} of {count}"
        at = cursor.offset
        name = cursor.name()
        cursor.where = name
        if name in found:
            cursor.fail("the tensor stands there twice", at)
        cursor.charge(1024)  # its objects, rounded up generously: this bounds the time as well
        shape, kind = _shape_and_type(cursor)
        at = cursor.offset
        relative = cursor.u64()
        if relative % alignment:
            cursor.fail("the tensor's offset is misaligned", at, f"a multiple of {alignment}", relative)
        found[name] = (shape, kind, relative)
    start = -(-cursor.offset // alignment) * alignment
    tensors = {
        name: TensorInfo(name, shape, kind, cursor.path, start + relative)
        for name, (shape, kind, relative) in found.items()
    }
    _check_places(cursor, tensors)
    return tensors


def _shape_and_type(cursor: Cursor) -> tuple[tuple[int, ...], int]:
    at = cursor.offset
    dims = cursor.u32()
    if not 1 <= dims <= MAX_DIMS:
        cursor.fail("bad number of dimensions", at, f"1 to {MAX_DIMS}", dims)
    shape = tuple([cursor.u64() for _ in range(dims)])
    kind = cursor.u32()
    if kind in REMOVED:
        problem = (
            f"tensor type {REMOVED[kind]} was removed from the format; quantise the original model again, with "
            f"llama.cpp's tool: llama-quantize ORIGINAL.gguf OUT.gguf {'IQ4_NL' if kind > 35 else 'Q4_0'}"
        )
        cursor.fail(problem, cursor.offset - 4, kind=UnsupportedError)
    if kind not in TYPES:
        problem = (
            "unknown tensor type; the tool of the program that made the file can make one of a known type, as "
            "llama.cpp's does: llama-quantize --allow-requantize IN.gguf OUT.gguf Q8_0"
        )
        cursor.fail(problem, cursor.offset - 4, f"at most {max(TYPES)}", kind, kind=UnsupportedError)
    if 0 in shape:
        cursor.fail("a dimension is zero", at + 4, got=shape)
    if shape[0] % TYPES[kind].block:
        expected = f"a multiple of {TYPES[kind].block} for {TYPES[kind].name}"
        cursor.fail("the row length does not fit the type", at + 4, expected, shape[0])
    return shape, kind


def _check_places(cursor: Cursor, tensors: dict[str, TensorInfo]) -> None:
    end, before = 0, ""
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
        cursor.where = tensor.name
        if tensor.offset + tensor.nbytes > cursor.size:
            left = max(0, cursor.size - tensor.offset)
            problem = "the file ends before the tensor does (is the download complete?)"
            cursor.fail(problem, tensor.offset, f"{tensor.nbytes} bytes", f"{left}")
        if tensor.offset < end:
            cursor.fail(f"the tensor overlaps {shorten(before)!r}", tensor.offset, f"an offset from {end}")
        end, before = tensor.offset + tensor.nbytes, tensor.name
