"""What a format descriptor is, and how a function over blocks becomes one over rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from tinyslm.errors import OptionError
from tinyslm.formats.types import TYPE_IDS, TYPES

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
Scalar = TypeVar("Scalar", np.uint8, np.float32)

# Weights handled at once: the temporaries of one slice (a quarter megabyte each) stay in the L2 cache.
_SLICE = 65536


class Integers(NamedTuple):
    """Rows taken apart: weight = scale of its block · whole + minimum of its block (· multiple)."""

    whole: F32
    """(..., n * block): whole numbers."""
    scale: F32
    """(..., n); NVFP4 has 4 to a block, (..., 4 n)."""
    minimum: F32 | None
    """(..., n); None in a format without minima."""
    multiple: F32 | None = None
    """(..., n * block): whole numbers; None where all are 1."""


@dataclass(frozen=True)
class Format:
    """One GGUF tensor type that the engine computes with; `block` weights take `bytes` bytes."""

    name: str
    id: int
    block: int
    bytes: int
    dequantise: Callable[[U8], F32]
    """uint8 (..., n * bytes) to float32 (..., n * block). OptionError where dtype or length do not fit."""
    quantise: Callable[[F32], U8]
    """float32 (..., n * block) to uint8 (..., n * bytes). OptionError where dtype or length do not fit, and for a type
    that nothing here rounds to."""
    integers: Callable[[U8], Integers] | None = None
    """uint8 (..., n * bytes) to what products in integers are made of. OptionError as above. None: floats need none."""


def block_format(
    name: str,
    from_blocks: Callable[[U8], F32],
    to_blocks: Callable[[F32], U8] | None = None,
    block_integers: Callable[[U8], Integers] | None = None,
) -> Format:
    """A descriptor from functions over blocks: (n, bytes) to (n, block) float32, and back, and to integers.

    The minima of `block_integers` are (n, 1), its scales (n, scales of a block).
    """
    id_ = TYPE_IDS[name]
    block, size = TYPES[id_].block, TYPES[id_].bytes

    def dequantise(rows: U8) -> F32:
        blocks = _blocks(rows, np.uint8, size, name)
        out = np.empty((len(blocks), block), np.float32)
        for start in range(0, len(blocks), _SLICE // block):
            part = slice(start, start + _SLICE // block)
            with np.errstate(invalid="ignore", over="ignore"):  # a broken scale gives inf or nan, as it does in C
                out[part] = from_blocks(blocks[part])
        return out.reshape(*rows.shape[:-1], rows.shape[-1] // size * block)

    def quantise(rows: F32) -> U8:
        if to_blocks is None:
            raise OptionError(f"nothing here quantises to {name}")
        blocks = _blocks(rows, np.float32, block, name)
        out = np.empty((len(blocks), size), np.uint8)
        for start in range(0, len(blocks), _SLICE // block):
            part = slice(start, start + _SLICE // block)
            with np.errstate(invalid="ignore", over="ignore"):  # nan stays nan; a scale beyond f16 becomes inf
                out[part] = to_blocks(blocks[part])
        return out.reshape(*rows.shape[:-1], rows.shape[-1] // block * size)

    def integers(rows: U8) -> Integers:
        assert block_integers
        parts = block_integers(_blocks(rows, np.uint8, size, name))
        lead, blocks = rows.shape[:-1], rows.shape[-1] // size

        def joined(part: F32 | None, length: int) -> F32 | None:
            return None if part is None else part.reshape(*lead, blocks * length)

        return Integers(
            parts.whole.reshape(*lead, blocks * block), parts.scale.reshape(*lead, blocks * parts.scale.shape[1]),
            joined(parts.minimum, 1), joined(parts.multiple, block),
        )  # fmt: skip

    return Format(name, id_, block, size, dequantise, quantise, integers if block_integers else None)


def integer_format(name: str, block_integers: Callable[[U8], Integers]) -> Format:
    """A descriptor of a format that is told by its integers alone, whose products with the scale are exact."""

    def from_blocks(blocks: U8) -> F32:
        parts = block_integers(blocks)
        n, scales = parts.scale.shape
        weights: F32 = parts.scale[:, :, None] * parts.whole.reshape(n, scales, -1)
        if parts.minimum is not None and parts.multiple is not None:
            weights += (parts.minimum * parts.multiple).reshape(weights.shape)
        return weights.reshape(n, -1)

    return block_format(name, from_blocks, None, block_integers)


def f16(blocks: U8, at: int) -> F32:
    """The f16 at byte `at` of every block, (n, 1)."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def nibbles(packed: U8) -> U8:
    """The low nibbles of every row's bytes, then the high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _blocks(rows: npt.NDArray[Scalar], kind: type[Scalar], length: int, name: str) -> npt.NDArray[Scalar]:
    """The rows as (n, length), once their type and length are found to fit."""
    if rows.dtype != kind:
        raise OptionError(f"{name} needs an array of {kind.__name__}, got {rows.dtype}")
    if rows.ndim == 0 or rows.shape[-1] % length:
        raise OptionError(f"{name}: the last axis must be a multiple of {length}, the shape is {rows.shape}")
    return np.ascontiguousarray(rows).reshape(-1, length)
