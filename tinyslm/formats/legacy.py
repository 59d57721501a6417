"""The first quantised formats: blocks of 32 weights with one f16 scale, and in the `_1` kinds an f16 minimum.

Layout, and how weights are rounded, follow ggml's reference (`ggml-quants.c`), to the bit. Of 4-bit codes, byte j holds
weight j in its low and weight j + 16 in its high nibble; the fifth bits of the Q5 kinds are one little-endian word.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from tinyslm.formats.base import F32, U8, Format, Integers, block_format, f16, nibbles


def _f16_bytes(values: F32) -> U8:
    return values.astype("<f2").view(np.uint8)


def _unpack(blocks: U8, bits: int) -> F32:
    """The codes of a 4- or 5-bit block, (n, 32), as floats; they end the block, the fifth bits before them."""
    codes = nibbles(blocks[:, -16:])
    if bits == 5:
        codes |= np.unpackbits(blocks[:, -20:-16], axis=1, bitorder="little") << 4
    return codes.astype(np.float32)


def _pack(codes: U8, bits: int) -> list[U8]:
    """The parts that end a block: for 5 bits the word of fifth bits, then the nibbles."""
    packed = (codes[:, :16] & np.uint8(15)) | (codes[:, 16:] << np.uint8(4))
    return [np.packbits(codes >= 16, axis=1, bitorder="little"), packed] if bits == 5 else [packed]


def _inverse(scale: F32) -> F32:
    """1 / scale; 0 where that is no finite number, for such a scale is 0 in f16 anyway."""
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    inverse[np.isinf(inverse)] = 0
    return inverse


def _codes(values: F32, top: int) -> U8:
    return np.clip(np.trunc(values), 0, top).astype(np.uint8)


# Blocks to floats, floats to blocks, blocks to integers.
Functions = tuple[Callable[[U8], F32], Callable[[F32], U8], Callable[[U8], Integers]]


def _symmetric(bits: int) -> Functions:
    """Weight = scale * (code - half). The weight farthest from 0 gets code 0, so the scale bears its sign, turned."""
    half = np.float32(1 << (bits - 1))

    def from_blocks(blocks: U8) -> F32:
        return f16(blocks, 0) * (_unpack(blocks, bits) - half)

    def integers(blocks: U8) -> Integers:
        return Integers(_unpack(blocks, bits) - half, f16(blocks, 0), None)

    def to_blocks(blocks: F32) -> U8:
        farthest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)
        scale = farthest / -half
        codes = _codes(blocks * _inverse(scale) + (half + np.float32(0.5)), (1 << bits) - 1)
        return np.concatenate([_f16_bytes(scale), *_pack(codes, bits)], axis=1)

    return from_blocks, to_blocks, integers


def _with_minimum(bits: int) -> Functions:
    """Weight = scale * code + minimum."""
    top = (1 << bits) - 1

    def from_blocks(blocks: U8) -> F32:
        return f16(blocks, 0) * _unpack(blocks, bits) + f16(blocks, 2)

    def integers(blocks: U8) -> Integers:
        return Integers(_unpack(blocks, bits), f16(blocks, 0), f16(blocks, 2))

    def to_blocks(blocks: F32) -> U8:
        minimum = blocks.min(axis=1, keepdims=True)
        scale = (blocks.max(axis=1, keepdims=True) - minimum) / np.float32(top)
        codes = _codes((blocks - minimum) * _inverse(scale) + np.float32(0.5), top)
        return np.concatenate([_f16_bytes(scale), _f16_bytes(minimum), *_pack(codes, bits)], axis=1)

    return from_blocks, to_blocks, integers


def _round_away(values: F32) -> npt.NDArray[np.int8]:
    """To the nearest integer, halves away from 0, as C's roundf."""
    below_half = np.float32(0.49999997)  # one half itself would round 0.49999997 up
    return np.trunc(values + np.copysign(below_half, values)).astype(np.int8)


def _q8_0_from_blocks(blocks: U8) -> F32:
    return blocks[:, 2:].view(np.int8).astype(np.float32) * f16(blocks, 0)


def _q8_0_integers(blocks: U8) -> Integers:
    return Integers(blocks[:, 2:].view(np.int8).astype(np.float32), f16(blocks, 0), None)


def _q8_0_to_blocks(blocks: F32) -> U8:
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    return np.concatenate([_f16_bytes(scale), _round_away(blocks * _inverse(scale)).view(np.uint8)], axis=1)


FORMATS: tuple[Format, ...] = (
    block_format("Q4_0", *_symmetric(4)),
    block_format("Q4_1", *_with_minimum(4)),
    block_format("Q5_0", *_symmetric(5)),
    block_format("Q5_1", *_with_minimum(5)),
    block_format("Q8_0", _q8_0_from_blocks, _q8_0_to_blocks, _q8_0_integers),
)
