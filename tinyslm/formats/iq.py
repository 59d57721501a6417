"""The IQ formats: codes that index a table of 16 values (IQ4), or words of a codebook (IQ1 to IQ3, `grids.py`).

Layouts as in ggml (`ggml-quants.c`). All but IQ4_NL are blocks of 256 weights under an f16 scale. A scale of a small
group is an odd number, and where a weight has a fraction beside it the block's scale is cut in as many parts.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tinyslm.formats.base import F32, U8, Format, Integers, f16, integer_format, nibbles
from tinyslm.formats.grids import GRIDS

Codes: TypeAlias = npt.NDArray[np.integer[Any]]

_IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
_IQ2 = (8, 25, 43)
_IQ3_XXS = (4, 12, 20, 28, 36, 44, 52, 62)
_IQ3_S = (1, 3, 5, 7, 9, 11, 13, 15)


_VALUES = {"IQ1_S": (-1, 0, 1), "IQ2_XXS": _IQ2, "IQ2_XS": _IQ2, "IQ2_S": _IQ2, "IQ3_XXS": _IQ3_XXS, "IQ3_S": _IQ3_S}


@cache
def _grid(name: str) -> F32:
    """The codebook's words, their digits replaced by what they stand for."""
    values: F32 = np.array(_VALUES[name], np.float32)[np.array(GRIDS[name].words())]
    return values


def _words(name: str, codes: Codes) -> F32:
    """The weights that codes stand for, (n, 256)."""
    return _grid(name)[codes].reshape(len(codes), 256)


def _signs(bits: U8) -> F32:
    """-1 where a bit is 1, the lowest first, (n, 256)."""
    return np.float32(1) - 2 * np.unpackbits(bits.reshape(len(bits), 32), axis=1, bitorder="little").astype(np.float32)


def _seven_signs(packed: Codes) -> F32:
    """From 4 times 7 bits of each of (n, 8) words: 7 signs, and an eighth that makes the number of minuses even."""
    seven = (packed[:, :, None] >> np.array([0, 7, 14, 21], np.uint32) & 127).astype(np.uint8)
    parity = np.bitwise_xor.reduce(seven[..., None] >> np.arange(7, dtype=np.uint8) & 1, axis=-1)
    return _signs(seven | parity << 7)


def _odd(small: Codes, group: int) -> F32:
    """2 s + 1 for each weight of the groups, (n, 256)."""
    return np.repeat(2 * small.astype(np.float32) + 1, group, axis=1)


def _low_first(bytes_: U8, shifts: tuple[int, ...], mask: int) -> U8:
    """The fields of each byte in turn, (n, bytes * fields)."""
    return (bytes_[:, :, None] >> np.array(shifts, np.uint8) & np.uint8(mask)).reshape(len(bytes_), -1)


def _iq4_nl(blocks: U8) -> Integers:
    return Integers(_IQ4[nibbles(blocks[:, 2:])], f16(blocks, 0), None)


def _iq4_xs(blocks: U8) -> Integers:
    """d, 2 bytes of upper bit pairs and 4 of nibbles of the 8 groups' scales (less 32), nibbles of each 32 weights."""
    high = blocks[:, 2:4].copy().view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    scales = (_low_first(blocks[:, 4:8], (0, 4), 15) | high.astype(np.uint8) << 4).astype(np.float32) - np.float32(32)
    values = _IQ4[nibbles(blocks[:, 8:].reshape(-1, 16))].reshape(-1, 8, 32)
    return Integers((scales[:, :, None] * values).reshape(-1, 256), f16(blocks, 0), None)


def _iq2_xxs(blocks: U8) -> Integers:
    """d, then for each 32 weights 4 codes and a word: 4 times 7 signs, the scale above them."""
    words = blocks[:, 2:].reshape(-1, 8, 8)
    packed = words[:, :, 4:].copy().view("<u4")[:, :, 0]
    whole = _words("IQ2_XXS", words[:, :, :4]) * _seven_signs(packed) * _odd(packed >> 28, 32)
    return Integers(whole, f16(blocks, 0) / np.float32(8), None)


def _iq2_xs(blocks: U8) -> Integers:
    """d, 32 words of 9 bits of code and 7 signs, 16 nibbles of scales."""
    packed = blocks[:, 2:66].copy().view("<u2")
    signs = _seven_signs(_joined(packed >> 9))
    whole = _words("IQ2_XS", packed & 511) * signs * _odd(_low_first(blocks[:, 66:], (0, 4), 15), 16)
    return Integers(whole, f16(blocks, 0) / np.float32(8), None)


def _joined(seven: Codes) -> Codes:
    """4 times 7 bits to a word, as IQ2_XXS has them."""
    fours = seven.astype(np.uint32).reshape(len(seven), 8, 4) << np.array([0, 7, 14, 21], np.uint32)
    joined: Codes = np.bitwise_or.reduce(fours, axis=2)
    return joined


def _iq2_s(blocks: U8) -> Integers:
    """d, 32 low bytes of codes, 32 bytes of signs, 8 of upper bit pairs, 16 nibbles of scales."""
    codes = blocks[:, 2:34] | _low_first(blocks[:, 66:74], (0, 2, 4, 6), 3).astype(np.uint16) << 8
    whole = _words("IQ2_S", codes) * _signs(blocks[:, 34:66]) * _odd(_low_first(blocks[:, 74:], (0, 4), 15), 16)
    return Integers(whole, f16(blocks, 0) / np.float32(8), None)


def _iq3_xxs(blocks: U8) -> Integers:
    """d, 64 codes, then for each 32 weights a word of signs and scale as in IQ2_XXS."""
    packed = blocks[:, 66:].copy().view("<u4")
    whole = _words("IQ3_XXS", blocks[:, 2:66]) * _seven_signs(packed) * _odd(packed >> 28, 32)
    return Integers(whole, f16(blocks, 0) / np.float32(4), None)


def _iq3_s(blocks: U8) -> Integers:
    """d, 64 low bytes of codes, their ninth bits, 32 bytes of signs, 8 nibbles of scales."""
    ninth = np.unpackbits(blocks[:, 66:74], axis=1, bitorder="little").astype(np.uint16)
    signs, scales = _signs(blocks[:, 74:106]), _odd(_low_first(blocks[:, 106:], (0, 4), 15), 32)
    return Integers(_words("IQ3_S", blocks[:, 2:66] | ninth << 8) * signs * scales, f16(blocks, 0), None)


def _iq1_s(blocks: U8) -> Integers:
    """d, 32 low bytes of codes, a word for each 32 weights: 4 times 3 bits of code, the scale, and whether an eighth is
    taken from each of the 32 values or added to it."""
    words = blocks[:, 34:].copy().view("<u2")
    high = words[:, :, None] >> np.array([0, 3, 6, 9], np.uint16) & 7
    eighths = 8 * _words("IQ1_S", blocks[:, 2:34] | high.reshape(-1, 32) << 8)
    shift = np.repeat(np.where(words >> 15, np.float32(-1), np.float32(1)), 32, axis=1)
    return Integers((eighths + shift) * _odd(words >> 12 & 7, 32), f16(blocks, 0) / np.float32(8), None)


def _iq1_m(blocks: U8) -> Integers:
    """32 low bytes of codes, 32 nibbles: 3 bits of code and whether an eighth is taken from or added to its 8 values; 4
    words: 4 times 3 bits of scale, and 4 bits of d, the lowest first."""
    words = blocks[:, 48:].copy().view("<u2")
    d = np.bitwise_or.reduce(words >> 12 << np.arange(0, 16, 4, dtype=np.uint16), axis=1, keepdims=True)
    upper = _low_first(blocks[:, 32:48], (0, 4), 15)
    eighths = 8 * _words("IQ1_S", blocks[:, :32] | (upper & 7).astype(np.uint16) << 8)
    shift = np.repeat(np.where(upper >> 3, np.float32(-1), np.float32(1)), 8, axis=1)
    scales = (words[:, :, None] >> np.array([0, 3, 6, 9], np.uint16) & 7).reshape(-1, 16)
    whole = (eighths + shift) * _odd(scales, 16)
    return Integers(whole, d.view("<f2").astype(np.float32) / np.float32(8), None)


FORMATS: tuple[Format, ...] = (
    integer_format("IQ1_S", _iq1_s),
    integer_format("IQ1_M", _iq1_m),
    integer_format("IQ2_XXS", _iq2_xxs),
    integer_format("IQ2_XS", _iq2_xs),
    integer_format("IQ2_S", _iq2_s),
    integer_format("IQ3_XXS", _iq3_xxs),
    integer_format("IQ3_S", _iq3_s),
    integer_format("IQ4_NL", _iq4_nl),
    integer_format("IQ4_XS", _iq4_xs),
)
