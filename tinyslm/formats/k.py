"""The K formats: super-blocks of 256 weights, whose small groups have integer scales under one f16 scale.

Layout as in ggml (`ggml-quants.c`). Quantising here is plain rounding to nearest under each group's own scale; ggml
searches for better scales.
"""

from __future__ import annotations

import numpy as np

from tinyslm.formats.base import F32, U8, Format, Integers, block_format, f16, integer_format


def _runs_of_pairs(packed: U8) -> U8:
    """Codes of 2 bits, (n, 256): byte i of each 32 holds weights i, i + 32, i + 64 and i + 96."""
    n = len(packed)
    runs = packed.reshape(n, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    return (runs & np.uint8(3)).reshape(n, 256)


def _q2_k(blocks: U8) -> Integers:
    """Weight = d * scale * code - dmin * minimum.

    Bytes: 16 of the groups' scales below and minima above, 64 of codes, d, dmin.
    """
    small = np.repeat(blocks[:, :16], 16, axis=1)
    scales, minima = (small & 15).astype(np.float32), (small >> 4).astype(np.float32)
    codes = _runs_of_pairs(blocks[:, 16:80]).astype(np.float32)
    return Integers(scales * codes, f16(blocks, 80), -f16(blocks, 82), minima)


def _q3_k(blocks: U8) -> Integers:
    """Weight = d * scale * (code - 4).

    Bytes: 32 of third bits (bit g of byte i is weight 32 g + i's), 64 of the lower two, 12 of the 16 groups' scales, d.
    The scales, 32 less: 4 bits each in 8 bytes, the low nibbles first, and the 2 bits above those in 4, whose byte i is
    of groups i, i + 4, i + 8 and i + 12.
    """
    n = len(blocks)
    third = blocks[:, None, :32] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    codes = (_runs_of_pairs(blocks[:, 32:96]) | third.reshape(n, 256) << 2).astype(np.float32) - np.float32(4)
    low = blocks[:, None, 96:104] >> np.array([[0], [4]], np.uint8) & 15
    high = blocks[:, None, 104:108] >> np.array([[0], [2], [4], [6]], np.uint8) & 3
    scales = (low.reshape(n, 16) | high.reshape(n, 16) << 4).astype(np.float32) - np.float32(32)
    return Integers(np.repeat(scales, 16, axis=1) * codes, f16(blocks, 108), None)


def _q6_k_parts(blocks: U8) -> tuple[F32, F32, F32]:
    """Codes less 32 (n, 16, 16), the scales of their groups (n, 16, 1), and d (n, 1).

    Bytes: 128 of low nibbles, 64 of upper bit pairs, 16 scales, d. Each half of 128 weights is four runs of 32: the
    nibble bytes hold runs 0, 1 low and 2, 3 high, the pairs of all four runs share a byte.
    """
    n = len(blocks)
    low = blocks[:, :128].reshape(n, 2, 1, 64) >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1)
    high = blocks[:, 128:192].reshape(n, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    codes = (low & 15).reshape(n, 2, 4, 32) | ((high & 3) << 4)
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32)[:, :, None]
    d = np.ascontiguousarray(blocks[:, 208:]).view("<f2").astype(np.float32)
    return (codes.view(np.int8) - np.int8(32)).astype(np.float32).reshape(n, 16, 16), scales, d


def _q6_k_from_blocks(blocks: U8) -> F32:
    """Weight = d * scale of its 16 * (code - 32)."""
    weights, scales, d = _q6_k_parts(blocks)
    return (d[:, :, None] * scales * weights).reshape(-1, 256)


def _q6_k_integers(blocks: U8) -> Integers:
    """The small scales are integers too, so that a code times its scale is a whole number."""
    weights, scales, d = _q6_k_parts(blocks)
    return Integers((scales * weights).reshape(-1, 256), d, None)


def _q6_k_to_blocks(blocks: F32) -> U8:
    """Each group's farthest weight aims at code 0 (-32), so that a group's scale bears that weight's sign, turned."""
    n = len(blocks)
    groups = blocks.reshape(n, 16, 16)
    highest, lowest = groups.max(axis=2), groups.min(axis=2)
    ideal = np.where(highest > -lowest, highest, lowest) / np.float32(-32)
    d = (np.abs(ideal).max(axis=1, keepdims=True) / np.float32(127)).astype("<f2")
    stored = d.astype(np.float32)
    scales = np.clip(np.rint(_ratio(ideal, stored)), -127, 127)
    codes = groups * _ratio(np.float32(1), stored * scales)[:, :, None]
    np.rint(codes, out=codes)
    codes += np.float32(32)
    np.clip(codes, 0, 63, out=codes)
    q = codes.astype(np.uint8).reshape(n, 2, 4, 32)
    low = (q[:, :, :2] & 15) | (q[:, :, 2:] << 4)
    pairs = q >> 4
    high = pairs[:, :, 0] | (pairs[:, :, 1] << 2) | (pairs[:, :, 2] << 4) | (pairs[:, :, 3] << 6)
    parts = [low.reshape(n, 128), high.reshape(n, 64), scales.astype(np.int8).view(np.uint8), d.view(np.uint8)]
    return np.concatenate(parts, axis=1)


def _six_bits(small: U8) -> tuple[F32, F32]:
    """Scales and minima of 8 groups, (n, 8), from 12 bytes.

    The first 4 of each stand in the low 6 bits of bytes 0 to 7; of the last 4, 4 bits each in bytes 8 to 11 and 2 bits
    at the top of bytes 0 to 7.
    """
    first, last = small[:, :8] & 63, small[:, 8:]
    scales = np.concatenate([first[:, :4], (last & 15) | (small[:, :4] >> 6 << 4)], axis=1)
    minima = np.concatenate([first[:, 4:], (last >> 4) | (small[:, 4:8] >> 6 << 4)], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _six_bits_packed(scales: U8, minima: U8) -> U8:
    """The inverse."""
    top = np.concatenate([scales[:, 4:], minima[:, 4:]], axis=1) >> 4 << 6
    first = np.concatenate([scales[:, :4], minima[:, :4]], axis=1) | top
    return np.concatenate([first, (scales[:, 4:] & 15) | (minima[:, 4:] << 4)], axis=1)


def _two_level_parts(blocks: U8) -> tuple[F32, F32, F32, F32, F32]:
    """Codes (n, 8, 32), scales and minima of the groups (n, 8, 1), d and dmin (n, 1), of Q4_K and Q5_K.

    Bytes: d, dmin, 12 of scales and minima, in Q5_K 32 of fifth bits (bit g of byte i is weight 32 g + i's), 128 of
    nibbles: 4 runs of 64 weights, the low nibbles first.
    """
    n, five = len(blocks), blocks.shape[1] == 176
    runs = blocks[:, -128:].reshape(n, 4, 1, 32) >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1)
    codes = (runs & 15).reshape(n, 8, 32)
    if five:
        codes |= (blocks[:, 16:48].reshape(n, 1, 32) >> np.arange(8, dtype=np.uint8).reshape(1, 8, 1) & 1) << 4
    scales, minima = _six_bits(blocks[:, 4:16])
    d, dmin = np.ascontiguousarray(blocks[:, :4]).view("<f2").astype(np.float32).T[:, :, None]
    return codes.astype(np.float32), scales[:, :, None], minima[:, :, None], d, dmin


def _two_level_from_blocks(blocks: U8) -> F32:
    """Weight = d * scale * code - dmin * minimum."""
    codes, scales, minima, d, dmin = _two_level_parts(blocks)
    return (d[:, :, None] * scales * codes - dmin[:, :, None] * minima).reshape(-1, 256)


def _two_level_integers(blocks: U8) -> Integers:
    codes, scales, minima, d, dmin = _two_level_parts(blocks)
    return Integers((scales * codes).reshape(-1, 256), d, -dmin, np.broadcast_to(minima, codes.shape).reshape(-1, 256))


def _two_level_to_blocks(blocks: F32, top: int) -> U8:
    """Each group's codes 0 … `top` span its weights (and zero).

    Its scale and minimum are rounded to 63rds of the block's largest.
    """
    n = len(blocks)
    groups = blocks.reshape(n, 8, 32)
    least = np.maximum(-groups.min(axis=2), 0)
    span = (np.maximum(groups.max(axis=2), -least) + least) / np.float32(top)
    pair = np.stack([span, least], axis=1)
    d = (pair.max(axis=2, keepdims=True) / np.float32(63)).astype("<f2")
    stored = d.astype(np.float32)
    small = np.clip(np.rint(pair * _ratio(np.float32(1), stored)), 0, 63)
    scale, minimum = np.moveaxis(small * stored, 1, 0)[..., None]
    codes = np.clip(np.rint((groups + minimum) * _ratio(np.float32(1), scale)), 0, top).astype(np.uint8)
    runs = codes.reshape(n, 4, 2, 32)
    parts = [d.reshape(n, 2).view(np.uint8), _six_bits_packed(*np.moveaxis(small.astype(np.uint8), 1, 0))]
    if top == 31:
        bits = (codes >> 4) << np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
        parts.append(np.bitwise_or.reduce(bits, axis=1))
    return np.concatenate([*parts, ((runs[:, :, 0] & 15) | (runs[:, :, 1] << 4)).reshape(n, 128)], axis=1)


def _ratio(above: F32 | np.float32, below: F32) -> F32:
    """above / below; 0 where that is no finite number (a scale that is 0 in f16)."""
    shape = np.broadcast_shapes(np.shape(above), below.shape)
    ratio = np.divide(above, below, out=np.zeros(shape, np.float32), where=below != 0)
    ratio[~np.isfinite(ratio)] = 0
    return ratio


FORMATS: tuple[Format, ...] = (
    integer_format("Q2_K", _q2_k),
    integer_format("Q3_K", _q3_k),
    block_format("Q4_K", _two_level_from_blocks, lambda blocks: _two_level_to_blocks(blocks, 15), _two_level_integers),
    block_format("Q5_K", _two_level_from_blocks, lambda blocks: _two_level_to_blocks(blocks, 31), _two_level_integers),
    block_format("Q6_K", _q6_k_from_blocks, _q6_k_to_blocks, _q6_k_integers),
)
