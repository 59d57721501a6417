"""The formats without blocks: F32, F16 and BF16 (the upper half of an F32); F64 and integers, which become F32."""

from __future__ import annotations

import numpy as np

from tinyslm.formats.base import F32, U8, Format, block_format


def _f16_to_f32(blocks: U8) -> F32:
    return blocks.view("<f2").astype(np.float32)


def _f32_to_f16(blocks: F32) -> U8:
    return blocks.astype("<f2").view(np.uint8)


def _bf16_to_f32(blocks: U8) -> F32:
    return (blocks.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)


def _f32_to_bf16(blocks: F32) -> U8:
    """To nearest, ties to even; a nan stays one, made quiet, for rounding could carry it into infinity."""
    bits = blocks.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.where(np.isnan(blocks), quiet, rounded).astype("<u2").view(np.uint8)


FORMATS: tuple[Format, ...] = (
    block_format("F32", lambda blocks: blocks.view("<f4"), lambda blocks: blocks.astype("<f4").view(np.uint8)),
    block_format("F16", _f16_to_f32, _f32_to_f16),
    block_format("BF16", _bf16_to_f32, _f32_to_bf16),
    block_format("F64", lambda blocks: blocks.view("<f8").astype(np.float32)),
    block_format("I8", lambda blocks: blocks.view("i1").astype(np.float32)),
    block_format("I16", lambda blocks: blocks.view("<i2").astype(np.float32)),
    block_format("I32", lambda blocks: blocks.view("<i4").astype(np.float32)),
    block_format("I64", lambda blocks: blocks.view("<i8").astype(np.float32)),
)
