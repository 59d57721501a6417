"""Importance matrices: for each matrix of a model, how large its inputs were over some text, column by column.

The file is llama.cpp's: GGUF with tensors NAME.in_sum2 (sums of squares, (k, matrices)) and NAME.counts (how many
vectors were summed); or the older one, a list of names and mean squares.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import FileError
from ..formats.base import F32
from ..gguf import GGUF, TensorData, TensorInfo, write
from ..gguf_header import MAGIC

SUMS, COUNTS = ".in_sum2", ".counts"
LEAST = 1e-6  # of the mean: no column counts for nothing
LARGEST = 1 << 30  # bytes of an old file


@dataclass(frozen=True)
class Importance:
    """`squares`: for each tensor, the mean square of its inputs, float32 (matrices, k), over `chunks` of `datasets`."""

    path: Path
    squares: Mapping[str, F32]
    chunks: int
    datasets: tuple[str, ...]

    def of(self, tensor: TensorInfo) -> F32 | None:
        """(matrices, k) for a tensor; None where there is none. FileError where it is that of another model."""
        found = self.squares.get(tensor.name)
        if found is None:
            return None
        k, matrices = tensor.shape[0], int(np.prod(tensor.shape[2:], dtype=np.int64))
        if found.shape[1] != k or found.shape[0] not in (1, matrices):
            raise FileError(self.path, "the importance matrix is of another model", where=tensor.name,
                            expected=f"{matrices} × {k} values", got=" × ".join(map(str, found.shape)))  # fmt: skip
        return np.broadcast_to(found, (matrices, k))


def read_importance(path: str | os.PathLike[str]) -> Importance:
    """Reads either kind of file. Raises FileError."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            if file.read(4) != MAGIC:
                file.seek(0)
                return _old(path, file.read(LARGEST))
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror}") from error
    with GGUF.open(path) as gguf:
        return _new(path, gguf)


def _new(path: Path, file: GGUF) -> Importance:
    squares: dict[str, F32] = {}
    for name, tensor in file.tensors.items():
        if not name.endswith(SUMS):
            continue
        name = name.removesuffix(SUMS)
        counts = file.tensors.get(name + COUNTS)
        if counts is None:
            raise FileError(path, "the sums have no counts", where=name + COUNTS)
        sums, count = _floats(file, tensor), _floats(file, counts).reshape(-1, 1)
        if count.size not in (1, len(sums)):
            raise FileError(path, "not one count for each matrix", where=name, expected=len(sums), got=count.size)
        # of a matrix that saw nothing (an expert, say) all columns count alike
        mean = np.where(count > 0, sums / np.maximum(count, 1), np.float32(1))
        squares[name] = _checked(path, name, mean)
    if not squares:
        raise FileError(path, "this is no importance matrix: no tensor's name ends in .in_sum2")
    chunks, datasets = file.metadata.get("imatrix.chunk_count", 0), file.metadata.get("imatrix.datasets", ())
    named = tuple(map(str, datasets)) if isinstance(datasets, list) else ()
    return Importance(path, squares, chunks if isinstance(chunks, int) else 0, named)


def _floats(file: GGUF, tensor: TensorInfo) -> F32:
    if tensor.type_name != "F32":
        raise FileError(tensor.path, "must be F32", where=tensor.name, got=tensor.type_name)
    return tensor.format.dequantise(file.read(tensor))


def _old(path: Path, data: bytes) -> Importance:
    """Little-endian: the number of entries; for each the length of its name, the name, how many calls its sums are of,
    the number of values, the values; then, perhaps, the number of calls and the length and name of the text's file."""
    squares: dict[str, F32] = {}
    try:
        (entries,), at = struct.unpack_from("<i", data), 4
        for _ in range(entries):
            (length,) = struct.unpack_from("<i", data, at)
            name = struct.unpack_from(f"<{max(length, 0)}s", data, at + 4)[0].decode()
            calls, count = struct.unpack_from("<ii", data, at + 4 + length)
            at += 12 + length
            values = np.frombuffer(data, "<f4", max(count, 0), at)
            at += values.nbytes
            squares[name] = _checked(path, name, values.reshape(1, -1) / np.float32(max(calls, 1)))
        chunks = struct.unpack_from("<i", data, at)[0] if len(data) >= at + 4 else 0
    except (struct.error, ValueError) as error:
        raise FileError(path, "this is no importance matrix, or a broken one") from error
    if not squares:
        raise FileError(path, "this is no importance matrix: it has no entries")
    return Importance(path, squares, max(chunks, 0), ())


def _checked(path: Path, name: str, mean: np.ndarray) -> F32:
    if mean.size == 0 or not np.isfinite(mean).all() or (mean < 0).any():
        raise FileError(path, "an importance is no finite number, or negative", where=name)
    floor = mean.mean(axis=1, keepdims=True) * LEAST
    return np.where(floor > 0, np.maximum(mean, floor), 1).astype(np.float32)


def write_importance(
    path: Path, sums: Mapping[str, np.ndarray], counts: Mapping[str, np.ndarray], chunks: int, chunk: int, dataset: str
) -> None:
    """Writes sums of squares (matrices, k) and of how many vectors each is (matrices,), of `chunks` chunks of `chunk`
    tokens of a text."""
    metadata = {"general.type": "imatrix", "imatrix.datasets": [dataset], "imatrix.chunk_count": chunks,
                "imatrix.chunk_size": chunk}  # fmt: skip
    tensors: list[TensorData] = []
    for name in sorted(sums):
        matrices, k = sums[name].shape
        tensors.append(TensorData(name + SUMS, (k, matrices), 0, sums[name].astype("<f4")))
        tensors.append(TensorData(name + COUNTS, (1, matrices), 0, counts[name].astype("<f4")))
    write(path, metadata, tensors)
