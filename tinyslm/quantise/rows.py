"""Rows of float32 to rows of blocks, as well as the type can hold them.

The types with something to search for are done in C (`csrc/quantise.c`): scales (and minima) that leave the least sum
of squared differences, each weighted by the importance of its column where that is known. For the others, F32, F16,
BF16 and Q8_0, the plain rounding of `formats` is all there is.
"""

from __future__ import annotations

import numpy as np

from ..backends import REMEDY, has_native
from ..errors import BackendError, OptionError
from ..formats import BY_NAME, TYPE_IDS, TYPES
from ..formats.base import F32, U8

SEARCHED = (
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0",
    "MXFP4", "NVFP4", "Q1_0", "Q2_0",
)  # fmt: skip


def quantise_rows(kind: str, rows: F32, importance: F32 | None = None, isa: str | None = None) -> U8:
    """float32 (n, k) to uint8 (n, bytes of a row); `importance`: (k,), of each column, not negative.

    The bits are the same on every instruction set; `isa` names one, as TINYSLM_ISA does.

    Raises OptionError for arguments that do not fit and for weights that the type cannot hold (no finite number, or one
    beyond the range of an f16 scale), BackendError where the C core is wanted and was not built.
    """
    type_ = TYPES[TYPE_IDS[kind]]
    if rows.dtype != np.float32 or rows.ndim != 2 or rows.shape[1] % type_.block:
        wanted = f"float32 rows of a multiple of {type_.block} weights"
        raise OptionError(f"{kind} is made of {wanted}, not of {rows.dtype} {rows.shape}")
    if kind not in SEARCHED:
        return _rounded(kind, rows)
    if not has_native():
        raise BackendError(f"quantising to {kind} needs the C core, which was not built: {REMEDY}")
    from .._native import ffi, lib
    from ..backends.native import choose_isa

    n, k = rows.shape
    if importance is not None and (importance.dtype != np.float32 or importance.shape != (k,)):
        raise OptionError(f"importance is float32 ({k},), not {importance.dtype} {importance.shape}")
    source = ffi.from_buffer("float[]", np.ascontiguousarray(rows))
    counts = ffi.NULL if importance is None else ffi.from_buffer("float[]", np.ascontiguousarray(importance))
    out = np.empty((n, k // type_.block * type_.bytes), np.uint8)
    target = ffi.from_buffer("uint8_t[]", out)
    error = lib.slm_quantise(choose_isa(isa).encode(), TYPE_IDS[kind], n, k, source, counts, target)
    if error:
        raise OptionError(_unfit(kind))
    return out


def _rounded(kind: str, rows: F32) -> U8:
    blocks = BY_NAME[kind].quantise(rows)
    # infinite where a value or its block's scale is beyond the type; a float that is not finite gives such a block too
    held = blocks if kind != "Q8_0" else np.ascontiguousarray(blocks.reshape(-1, 34)[:, :2])
    exponent = {"F32": ("<u4", 0x7F800000), "BF16": ("<u2", 0x7F80)}.get(kind, ("<u2", 0x7C00))
    bits = held.reshape(-1).view(exponent[0])
    if ((bits & exponent[1]) == exponent[1]).any():
        raise OptionError(_unfit(kind))
    return blocks


def _unfit(kind: str) -> str:
    return f"a weight is no finite number, or too large for {kind}"
