"""Formats whose codes are 4-bit floats (e2m1) under a scale that is a short float itself.

MXFP4: OCP Microscaling Formats (MX) Specification 1.0; NVFP4: the same codes, a finer scale. Layouts as in ggml, which
holds twice the code's value, to have integers, and half the scale's.
"""

from __future__ import annotations

import numpy as np

from tinyslm.formats.base import F32, U8, Format, Integers, integer_format, nibbles

_TWICE = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


def _e8m0(bytes_: U8) -> F32:
    """Half of 2^(byte - 127); 255, which is no number in the specification, is 2^127 here as in ggml."""
    return np.ldexp(np.float32(1), bytes_.astype(np.int32) - 128)


def _ue4m3(bytes_: U8) -> F32:
    """Half of a float of 4 bits of exponent and 3 of fraction; 0x7f, which is no number, counts as 0."""
    exponent, fraction = (bytes_ >> 3 & 15).astype(np.int32), (bytes_ & 7).astype(np.float32)
    whole = np.where(exponent == 0, fraction, fraction + np.float32(8))
    value = np.ldexp(whole, np.maximum(exponent, 1) - 11)
    return np.where(bytes_ == 0x7F, np.float32(0), value).astype(np.float32)


def _mxfp4(blocks: U8) -> Integers:
    """32 weights: the scale, then nibbles: byte j holds weights j and j + 16."""
    return Integers(_TWICE[nibbles(blocks[:, 1:])], _e8m0(blocks[:, :1]), None)


def _nvfp4(blocks: U8) -> Integers:
    """64 weights: the scales of each 16, then each 16's nibbles: byte j holds weights j and j + 8."""
    codes = nibbles(blocks[:, 4:].reshape(-1, 8)).reshape(-1, 64)
    return Integers(_TWICE[codes], _ue4m3(blocks[:, :4]), None)


FORMATS: tuple[Format, ...] = (integer_format("MXFP4", _mxfp4), integer_format("NVFP4", _nvfp4))
