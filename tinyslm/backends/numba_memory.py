"""What compiled code stands on: memory named by addresses, atomic words, f16, and an exponential.

Memory is named by addresses, so that a step passes two small tables and no reference is counted inside.
"""

# mypy: ignore-errors
# numba types what it compiles, and calls an intrinsic with another signature than it is defined with.
from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numba as nb
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

# Division as in NumPy: the check that Python's would need keeps a loop from becoming vectors.
OPTIONS = {"nogil": True, "error_model": "numpy"}
INNER = OPTIONS | {
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}  # called by compiled code alone: compiles sooner
inner = nb.njit(**INNER)
summing = nb.njit(**INNER, fastmath={"reassoc", "contract"})  # sums may be made in lanes


def cached(function: Callable[..., Any]) -> Any:
    """Compile with numba's cache on disk; without where numba finds no folder to write to."""
    try:
        return nb.njit(**OPTIONS, cache=True)(function)
    except RuntimeError:
        return nb.njit(**OPTIONS)(function)


@intrinsic
def pointer(typing: Any, address: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), emit


@intrinsic
def float_of(typing: Any, bits: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), emit


@intrinsic
def bits_of(typing: Any, value: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), emit


def word(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, ir.PointerType(ir.IntType(64)))


@intrinsic
def load(typing: Any, address: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(word(builder, arguments[0]), "seq_cst", 8)

    return types.int64(types.int64), emit


@intrinsic
def put(typing: Any, address: Any, value: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store_atomic(arguments[1], word(builder, arguments[0]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@intrinsic
def add_one(typing: Any, address: Any) -> Any:
    """Atomically; gives the value before."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        one = ir.Constant(ir.IntType(64), 1)
        return builder.atomic_rmw("add", word(builder, arguments[0]), one, "seq_cst")

    return types.int64(types.int64), emit


# Lets another thread have the processor, through the C library of the process.
yield_now = types.ExternalFunction("sched_yield" if os.name == "posix" else "SwitchToThread", types.int32())


@inner
def f32(address, n):
    return nb.carray(pointer(address), n, np.float32)


@inner
def f64(address, n):
    return nb.carray(pointer(address), n, np.float64)


@inner
def i8(address, n):
    return nb.carray(pointer(address), n, np.int8)


@inner
def u8(address, n):
    return nb.carray(pointer(address), n, np.uint8)


@inner
def i16(address, n):
    return nb.carray(pointer(address), n, np.int16)


@inner
def u16(address, n):
    return nb.carray(pointer(address), n, np.uint16)


@inner
def i32(address, n):
    return nb.carray(pointer(address), n, np.int32)


@inner
def u32(address, n):
    return nb.carray(pointer(address), n, np.uint32)


@inner
def longs(address, n):
    return nb.carray(pointer(address), n, np.int64)


@inner
def i64(address, i):
    return longs(address + 8 * i, 1)[0]


@inner
def half(h):
    """The float of f16 bits."""
    bits = np.uint32(h & np.uint32(0x7FFF)) << np.uint32(13)
    finite = bits_of(float_of(np.uint32(bits)) * np.float32(2.0**112))
    broken = np.uint32(bits | np.uint32(0x7F800000))
    sign = np.uint32(np.uint32(h & np.uint32(0x8000)) << np.uint32(16))
    return float_of(np.uint32((broken if bits >= np.uint32(0x0F800000) else finite) | sign))


@inner
def to_half(x):
    """The f16 bits nearest to a float, ties to even."""
    bits = bits_of(x)
    sign, size = np.uint32(bits >> np.uint32(16)) & np.uint32(0x8000), np.uint32(bits & np.uint32(0x7FFFFFFF))
    if size > np.uint32(0x7F800000):
        return np.uint16(sign | np.uint32(0x7E00))
    if size >= np.uint32(0x47800000):
        return np.uint16(sign | np.uint32(0x7C00))
    if size < np.uint32(0x38800000):  # below 2**-14: adding one half rounds at the last place of a subnormal
        return np.uint16(sign | (bits_of(float_of(size) + np.float32(0.5)) - np.uint32(0x3F000000)))
    odd = np.uint32(size >> np.uint32(13)) & np.uint32(1)
    return np.uint16(
        sign | np.uint32(np.uint32(size - np.uint32(0x38000000) + np.uint32(0xFFF) + odd) >> np.uint32(13))
    )


@inner
def exp32(x):
    """e^x to about one part in 10^7 (Cephes' expf polynomial); 0 below -87, nan for nan."""
    low = x < np.float32(-87.0)
    x = np.float32(-87.0) if low else x
    x = np.float32(88.0) if x > np.float32(88.0) else x
    n = np.rint(x * np.float32(1.4426950408889634))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1)
    e = p * float_of(np.uint32((np.int32(n) + np.int32(127)) << np.int32(23)))
    return np.float32(0) if low else e
