"""The engine's float32 arithmetic in plain NumPy: which operations, in which order, each rounded to nearest even.

A token's logits are the same bits on every machine because every sum has one order and every function its own
polynomial. The C core does what stands here, lane by lane; `tests/test_reference.py` holds the two together. Arrays are
float32 unless said otherwise, and are broadcast as NumPy does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from ..formats import Integers

Operand: TypeAlias = "np.ndarray | np.float32"
LANES = 16
TINY = np.float32(2.0**-100)
LIMIT = np.float32(87)  # e^±87 is a normal float32
LOG2_E = np.float32(1.44269504)
LN2_HIGH, LN2_LOW = np.float32(float.fromhex("0x1.62e4p-1")), np.float32(float.fromhex("0x1.7f7d1cp-20"))
EXP = [np.float32(1) / np.float32(n) for n in (5040, 720, 120, 24, 6, 2, 1, 1)]
TWO_OVER_PI = float.fromhex("0x1.45f306dc9c883p-1")
HALF_PI = [float.fromhex(part) for part in ("0x1.921fb544p+0", "0x1.0b4611a6p-34", "0x1.3198a2e037073p-69")]
SINE = [1 / 355687428096000, -1 / 1307674368000, 1 / 6227020800, -1 / 39916800, 1 / 362880, -1 / 5040, 1 / 120, -1 / 6]
COSINE = [-1 / 6402373705728000, 1 / 20922789888000, -1 / 87178291200, 1 / 479001600, -1 / 3628800, 1 / 40320, -1 / 720,
          1 / 24, -0.5]  # fmt: skip


def fma32(a: Operand, b: Operand, c: Operand) -> np.ndarray:
    """a · b + c, rounded once. One of them has an axis."""
    # The product of two float32 is exact in float64, so the sum is rounded to float64 and then to float32. That differs
    # from rounding once only where the first rounding ends exactly halfway between two float32, which bit 28 alone of
    # the lower 29 shows (denormal results have their halves elsewhere): such sums are rounded to odd first.
    product = np.multiply(a, b, dtype=np.float64)
    total = product + c
    halfway = (total.view(np.int64) & 0x1FFFFFFF == 0x10000000) | (np.abs(total) < 2.0**-126)
    result: np.ndarray = total.astype(np.float32)
    if halfway.any():
        addend = np.broadcast_to(c, total.shape)[halfway].astype(np.float64)
        result[halfway] = sum_to_odd(np.broadcast_to(product, total.shape)[halfway], addend).astype(np.float32)
    return result


def sum_to_odd(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a + b in float64: where that is inexact, the neighbour whose last bit is 1.

    From there rounding to fewer bits ends where rounding the exact sum would (Boldo and Melquiond, "Emulation of a FMA
    and correctly rounded sums", IEEE Transactions on Computers 57(4), 2008). The error is Knuth's two-sum.
    """
    total = a + b
    back = total - a
    error = (a - (total - back)) + (b - back)
    even = total.view(np.int64) & 1 == 0
    odd: np.ndarray = np.where(even & (np.abs(error) > 0), np.nextafter(total, np.copysign(np.inf, error)), total)
    return odd


def lane_sum(lanes: np.ndarray) -> np.ndarray:
    """The sum over the last axis, of 16: (i, i + 8), (i, i + 4), (i, i + 2), (i, i + 1)."""
    for half in (8, 4, 2, 1):
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def chunks_of(x: np.ndarray) -> list[np.ndarray]:
    """The elements of each row, 16 at a time, the last filled with zeros: (rows, k) to parts of (rows, 16)."""
    rows, k = x.shape
    chunks = -(-k // LANES)
    padded = np.zeros((rows, chunks * LANES), np.float32)
    padded[:, :k] = x
    return np.split(padded, chunks, axis=1)


def row_mean(x: np.ndarray) -> np.ndarray:
    """(rows, k) to (rows, 1), summed as norm_scale does."""
    sums = np.zeros((len(x), LANES), np.float32)
    for chunk in chunks_of(x):
        sums = sums + chunk
    mean: np.ndarray = lane_sum(sums) / np.float32(x.shape[1])
    return mean[:, None]


def norm_scale(x: np.ndarray, eps: float) -> np.ndarray:
    """1 / sqrt(mean(x²) + eps) of each row: (rows, k) to (rows, 1). Lane i sums the squares i, i + 16, i + 32 …

    Not a number where the sum overflows, so that the row shows as broken and not as zeros.
    """
    rows, k = x.shape
    squares = np.zeros((rows, LANES), np.float32)
    for chunk in chunks_of(x):
        squares = fma32(chunk, chunk, squares)
    mean = lane_sum(squares) / np.float32(k) + np.float32(eps)
    scale: np.ndarray = np.where(mean < np.inf, np.float32(1) / np.sqrt(mean), np.float32(np.nan))
    return scale[:, None]


def exp32(x: np.ndarray) -> np.ndarray:
    """e^x for |x| ≤ 87: x = n ln 2 + r, then 2^n times the Taylor polynomial of e^r of degree 7."""
    whole = np.rint(x * LOG2_E)
    r = fma32(whole, -LN2_HIGH, x)
    r = fma32(whole, -LN2_LOW, r)
    p = np.full_like(r, EXP[0])
    for coefficient in EXP[1:]:
        p = fma32(p, r, coefficient)
    return (p.view(np.int32) + (whole.astype(np.int32) << 23)).view(np.float32)


def exp_down(x: np.ndarray) -> np.ndarray:
    """e^x for x ≤ 0; below −87 as at −87."""
    return exp32(np.maximum(x, -LIMIT))


def tanh32(x: np.ndarray) -> np.ndarray:
    """tanh x = y / (y + 2) with y = e^2x − 1 = 2^n (e^r − 1) + (2^n − 1), 2x kept within ±20."""
    x = np.clip(x + x, np.float32(-20), np.float32(20))
    whole = np.rint(x * LOG2_E)
    power = (np.float32(1).view(np.int32) + (whole.astype(np.int32) << 23)).view(np.float32)
    r = fma32(whole, -LN2_HIGH, x)
    r = fma32(whole, -LN2_LOW, r)
    p = np.full_like(r, EXP[0])
    for coefficient in EXP[1:-1]:
        p = fma32(p, r, coefficient)
    y = fma32(power, p * r, power - np.float32(1))
    result: np.ndarray = y / (y + np.float32(2))
    return result


def exp_minus(x: np.ndarray) -> np.ndarray:
    """e^−x, the exponent kept within ±87."""
    return exp32(np.clip(-x, -LIMIT, LIMIT))


def silu(x: np.ndarray) -> np.ndarray:
    """x / (1 + e^−x)."""
    y: np.ndarray = x / (np.float32(1) + exp_minus(x))
    return y


def gelu(x: np.ndarray) -> np.ndarray:
    """x / (1 + e^−2u), 2u = 2 √(2/π) (x + 0.044715 x³)."""
    u = x * fma32(x * x, np.float32(0.0713548162726), np.float32(1.59576912161))
    y: np.ndarray = x / (np.float32(1) + exp_minus(u))
    return y


def relu(x: np.ndarray) -> np.ndarray:
    """max(x, 0); what is no finite number stays so, that it shows."""
    return np.where(x < 0, np.float32(0), x) + x * np.float32(0)


def polynomial(z: np.ndarray, coefficients: Sequence[float]) -> np.ndarray:
    """In float64, by Horner's rule, from the highest power down."""
    value = np.full_like(z, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * z + coefficient
    return value


def sin_cos(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sine and cosine in float64 of |x| < 2³¹: x = n π/2 + r, π/2 in three parts, then the Taylor series."""
    scaled = x * TWO_OVER_PI
    n = np.trunc(scaled + np.copysign(0.5, scaled))
    r = ((x - n * HALF_PI[0]) - n * HALF_PI[1]) - n * HALF_PI[2]
    z = r * r
    s, c = r + r * z * polynomial(z, SINE), 1 + z * polynomial(z, COSINE)
    quarter = n.astype(np.int64)
    sine, cosine = np.where(quarter & 1, c, s), np.where(quarter & 1, s, c)
    return np.where(quarter & 2, -sine, sine), np.where((quarter + 1) & 2, -cosine, cosine)


def turns(positions: np.ndarray, frequency: Sequence[float], magnitude: float) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine, (rows, r), of the angles position × frequency, made in float64; times `magnitude`, a float32."""
    sine, cosine = sin_cos(positions[:, None].astype(np.float64) * np.array(frequency, np.float64))
    factor = np.float64(np.float32(magnitude))
    return (cosine * factor).astype(np.float32), (sine * factor).astype(np.float32)


def float_dots(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x (m, k) times the transpose of w (n, k): one fused multiply-add an element, in ascending k."""
    columns, weights = np.ascontiguousarray(x.T)[:, :, None], np.ascontiguousarray(w.T)
    y = np.zeros((len(x), len(w)), np.float32)
    for column, weight in zip(columns, weights, strict=True):
        y = fma32(column, weight, y)
    return y


def round_activations(x: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (m, k) rounded to int8 by blocks of `block`: codes −127 … 127 (m, k), scales (m, k / block), float32.

    A block whose largest magnitude is below 2⁻¹⁰⁰ becomes zeros with scale 0. A block with a value that is no finite
    number gets codes or a scale that are none.
    """
    blocks = x.reshape(len(x), x.shape[1] // block, block)
    amax = np.abs(blocks).max(axis=2)
    live = ~(amax < TINY)  # a nan is live
    scale = np.where(live, amax / np.float32(127), np.float32(0))
    inverse = np.divide(np.float32(127), amax, out=np.zeros_like(amax), where=live)
    return np.rint(blocks * inverse[:, :, None]).reshape(x.shape), scale


def block_dots(codes: np.ndarray, scale: np.ndarray, w: Integers) -> np.ndarray:
    """Rounded activations (m, k) times the transpose of w (n, k).

    Block by block in ascending k: the product of the integers, exact, rounded to float32, times the rounded product of
    both scales is added by a fused multiply-add; so is then the minimum times the rounded product of the activations'
    scale and the sum of their codes.
    """
    blocks = scale.shape[1]
    y = np.zeros((len(codes), len(w.scale)), np.float32)
    length = codes.shape[1] // blocks
    a = codes.reshape(len(codes), blocks, length).astype(np.float64)
    b = w.whole.reshape(len(w.whole), blocks, length).astype(np.float64)
    multiple = None if w.multiple is None else w.multiple.reshape(b.shape).astype(np.float64)
    for i in range(blocks):
        own = scale[:, i, None]
        dots = (a[:, i] @ b[:, i].T + 0.0).astype(np.float32)  # an integer's zero has no sign
        y = fma32(dots, w.scale[:, i] * own, y)
        if w.minimum is not None and multiple is not None:
            y = fma32((a[:, i] @ multiple[:, i].T + 0.0).astype(np.float32), w.minimum[:, i] * own, y)
        elif w.minimum is not None:
            y = fma32(w.minimum[:, i], own * a[:, i].sum(axis=1, keepdims=True).astype(np.float32), y)
    return y
