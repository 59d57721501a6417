"""Formats of one or two bits: codes under one f16 scale. Layouts as in ggml (`ggml-quants.c`)."""

from __future__ import annotations

import numpy as np

from tinyslm.formats.base import F32, U8, Format, Integers, f16, integer_format


def _pairs(packed: U8) -> U8:
    """Codes of 2 bits, the lowest bits first, (n, bytes, 4)."""
    return packed[:, :, None] >> np.array([0, 2, 4, 6], np.uint8) & np.uint8(3)


def _less_one(codes: U8) -> F32:
    return codes.reshape(len(codes), -1).astype(np.float32) - np.float32(1)


def _tq2_0(blocks: U8) -> Integers:
    """Weight = d * (code - 1): 2 halves of 32 bytes, whose byte i holds weights i, i + 32, i + 64 and i + 96."""
    codes = _pairs(blocks[:, :64]).reshape(-1, 2, 32, 4).swapaxes(2, 3)
    return Integers(_less_one(codes), f16(blocks, 64), None)


def _trits(packed: U8, n: int) -> U8:
    """The first n of the base-3 digits that each byte holds, (blocks, n, bytes).

    A byte is a fraction of 256: times 3, its whole part is the next digit.
    """
    shifted = packed[:, None, :] * np.array([1, 3, 9, 27, 81][:n], np.uint8)[:, None]
    return (shifted.astype(np.uint16) * np.uint16(3) >> np.uint16(8)).astype(np.uint8)


def _tq1_0(blocks: U8) -> Integers:
    """Weight = d * (digit - 1): 32 bytes of 5 digits, 16 of 5, 4 of 4; the first digits of all bytes come first."""
    n = len(blocks)
    parts = (_trits(blocks[:, :32], 5), _trits(blocks[:, 32:48], 5), _trits(blocks[:, 48:52], 4))
    return Integers(_less_one(np.concatenate([p.reshape(n, -1) for p in parts], axis=1)), f16(blocks, 52), None)


def _q2_0(blocks: U8) -> Integers:
    """Weight = d * (code - 1), 4 in a row to a byte."""
    return Integers(_less_one(_pairs(blocks[:, 2:])), f16(blocks, 0), None)


def _q1_0(blocks: U8) -> Integers:
    """Weight = d where the bit is 1, else -d; 8 in a row to a byte."""
    bits = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little")
    return Integers(_less_one(2 * bits), f16(blocks, 0), None)


FORMATS: tuple[Format, ...] = (
    integer_format("TQ1_0", _tq1_0),
    integer_format("TQ2_0", _tq2_0),
    integer_format("Q1_0", _q1_0),
    integer_format("Q2_0", _q2_0),
)
