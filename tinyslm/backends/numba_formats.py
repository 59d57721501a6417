"""The tensor formats as compiled code: the product of a row of weights with a row of activations, and one weight.

Quantised rows meet int8 codes (held as int16) with a scale for each block and the sum of the block's codes. `h` is half
a block, 16, always: it comes as a variable because a loop of constant length would be unrolled before LLVM makes
vectors of it.
"""

# mypy: ignore-errors
# numba types what it compiles, and calls an intrinsic with another signature than it is defined with.
from __future__ import annotations

import numpy as np

from ..formats import TYPE_IDS
from .numba_memory import f32, float_of, half, i8, i16, i32, inner, summing, u8, u16

F32, F16, BF16 = TYPE_IDS["F32"], TYPE_IDS["F16"], TYPE_IDS["BF16"]
Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 = (TYPE_IDS[name] for name in ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"))
Q6_K = TYPE_IDS["Q6_K"]
DIRECT = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q6_K")  # read as the file has them


@summing
def dot_f32(at, x_at, k):
    w, x, s = f32(at, k), f32(x_at, k), np.float32(0)
    for i in range(k):
        s += w[i] * x[i]
    return s


@summing
def dot_f16(at, x_at, k):
    w, x, s = u16(at, k), f32(x_at, k), np.float32(0)
    for i in range(k):
        s += half(w[i]) * x[i]
    return s


@summing
def dot_bf16(at, x_at, k):
    w, x, s = u16(at, k), f32(x_at, k), np.float32(0)
    for i in range(k):
        s += float_of(np.uint32(np.uint32(w[i]) << np.uint32(16))) * x[i]
    return s


@inner
def dot_q8_0(at, x_at, scale_at, blocks, h):
    scale, y = f32(scale_at, blocks), np.float32(0)
    for b in range(blocks):
        w, x, s = i8(at + 2, 2 * h), i16(x_at, 2 * h), np.int32(0)
        for i in range(2 * h):
            s = np.int32(s + np.int32(w[i]) * np.int32(x[i]))
        y += half(u16(at, 1)[0]) * scale[b] * np.float32(s)
        at += 34
        x_at += 64
    return y


@inner
def dot4(at, x_at, h):
    """Codes of 4 bits, 0 to 15, times one block of activations."""
    w, low, high, s = u8(at, h), i16(x_at, h), i16(x_at + 32, h), np.int32(0)
    for i in range(h):
        s = np.int32(s + np.int32(w[i] & 15) * np.int32(low[i]) + np.int32(w[i] >> 4) * np.int32(high[i]))
    return s


@inner
def dot5(at, bits_at, x_at, h):
    """Codes of 5 bits, 0 to 31, times one block of activations."""
    w, low, high, s = u8(at, h), i16(x_at, h), i16(x_at + 32, h), np.int32(0)
    bits = np.uint32(u16(bits_at, 2)[0]) | np.uint32(np.uint32(u16(bits_at, 2)[1]) << np.uint32(16))
    for i in range(h):
        fifth = np.uint32(bits >> np.uint32(i))
        a = np.int32(w[i] & 15) | np.int32(np.uint32(fifth & np.uint32(1)) << np.uint32(4))
        b = np.int32(w[i] >> 4) | np.int32(np.uint32(fifth >> np.uint32(12)) & np.uint32(16))
        s = np.int32(s + a * np.int32(low[i]) + b * np.int32(high[i]))
    return s


@inner
def dot_q4_0(at, x_at, scale_at, sum_at, blocks, h):
    scale, total, y = f32(scale_at, blocks), i32(sum_at, blocks), np.float32(0)
    for b in range(blocks):
        s = np.int32(dot4(at + 2, x_at, h) - 8 * total[b])
        y += half(u16(at, 1)[0]) * scale[b] * np.float32(s)
        at += 18
        x_at += 64
    return y


@inner
def dot_q5_0(at, x_at, scale_at, sum_at, blocks, h):
    scale, total, y = f32(scale_at, blocks), i32(sum_at, blocks), np.float32(0)
    for b in range(blocks):
        s = np.int32(dot5(at + 6, at + 2, x_at, h) - 16 * total[b])
        y += half(u16(at, 1)[0]) * scale[b] * np.float32(s)
        at += 22
        x_at += 64
    return y


@inner
def dot_q4_1(at, x_at, scale_at, sum_at, blocks, h):
    scale, total, y = f32(scale_at, blocks), i32(sum_at, blocks), np.float32(0)
    for b in range(blocks):
        y += half(u16(at, 1)[0]) * scale[b] * np.float32(dot4(at + 4, x_at, h))
        y += half(u16(at + 2, 1)[0]) * scale[b] * np.float32(total[b])
        at += 20
        x_at += 64
    return y


@inner
def dot_q5_1(at, x_at, scale_at, sum_at, blocks, h):
    scale, total, y = f32(scale_at, blocks), i32(sum_at, blocks), np.float32(0)
    for b in range(blocks):
        y += half(u16(at, 1)[0]) * scale[b] * np.float32(dot5(at + 8, at + 4, x_at, h))
        y += half(u16(at + 2, 1)[0]) * scale[b] * np.float32(total[b])
        at += 24
        x_at += 64
    return y


@inner
def dot_q6_k(at, x_at, scale_at, blocks, h):
    scale, y = f32(scale_at, blocks), np.float32(0)
    for b in range(blocks):
        d, group, s = half(u16(at + 208, 1)[0]), i8(at + 192, 16), np.int32(0)
        for part in range(4):  # of each half of 128, the first and the second 16 of its four runs of 32
            top, left = part >> 1, 16 * (part & 1)
            nibbles, nibbles2, pairs = u8(at + 64 * top + left, h), u8(at + 64 * top + 32 + left, h), u8(
                at + 128 + 32 * top + left, h)  # fmt: skip
            base, g = x_at + 2 * (128 * top + left), 8 * top + (part & 1)
            x0, x1, x2, x3 = i16(base, h), i16(base + 64, h), i16(base + 128, h), i16(base + 192, h)
            g0, g1, g2, g3 = np.int16(group[g]), np.int16(group[g + 2]), np.int16(group[g + 4]), np.int16(group[g + 6])
            for i in range(h):
                w0 = np.int16(g0 * np.int16(np.int16((nibbles[i] & 15) | ((pairs[i] & 3) << 4)) - 32))
                w1 = np.int16(g1 * np.int16(np.int16((nibbles2[i] & 15) | ((pairs[i] & 12) << 2)) - 32))
                w2 = np.int16(g2 * np.int16(np.int16((nibbles[i] >> 4) | (pairs[i] & 48)) - 32))
                w3 = np.int16(g3 * np.int16(np.int16((nibbles2[i] >> 4) | ((pairs[i] & 192) >> 2)) - 32))
                s = np.int32(s + np.int32(w0) * np.int32(x0[i]) + np.int32(w1) * np.int32(x1[i])
                             + np.int32(w2) * np.int32(x2[i]) + np.int32(w3) * np.int32(x3[i]))  # fmt: skip
        y += d * scale[b] * np.float32(s)
        at += 210
        x_at += 512
    return y


@inner
def weight(form, at, i):
    """One weight of the row at `at`."""
    if form == F32:
        return f32(at + 4 * i, 1)[0]
    if form == F16:
        return half(u16(at + 2 * i, 1)[0])
    if form == BF16:
        return float_of(np.uint32(np.uint32(u16(at + 2 * i, 1)[0]) << np.uint32(16)))
    if form == Q6_K:
        return weight_q6_k(at + i // 256 * 210, i % 256)
    b, i = i // 32, i % 32
    if form == Q8_0:
        return half(u16(at + 34 * b, 1)[0]) * np.float32(i8(at + 34 * b + 2 + i, 1)[0])
    has_minimum, five = form in (Q4_1, Q5_1), form in (Q5_0, Q5_1)
    at += b * (18 + 2 * has_minimum + 4 * five)
    start = at + 2 + 2 * has_minimum
    code = np.int32((u8(start + 4 * five + i % 16, 1)[0] >> (4 * (i // 16))) & 15)
    if five:
        code |= np.int32(((u8(start + i // 8, 1)[0] >> (i % 8)) & 1) << 4)
    if has_minimum:
        return half(u16(at, 1)[0]) * np.float32(code) + half(u16(at + 2, 1)[0])
    return half(u16(at, 1)[0]) * np.float32(code - (16 if five else 8))


@inner
def weight_q6_k(at, i):
    top, run, j = i // 128, i % 128 // 32, i % 32
    low = (u8(at + 64 * top + 32 * (run & 1) + j, 1)[0] >> (4 * (run >> 1))) & 15
    high = (u8(at + 128 + 32 * top + j, 1)[0] >> (2 * run)) & 3
    d = half(u16(at + 208, 1)[0]) * np.float32(i8(at + 192 + i // 16, 1)[0])
    return d * np.float32(np.int32(low | (high << 4)) - 32)


@inner
def dot(form, at, x_at, codes_at, scale_at, sum_at, k, h):
    if form == F32:
        return dot_f32(at, x_at, k)
    if form == Q4_0:
        return dot_q4_0(at, codes_at, scale_at, sum_at, k // 32, h)
    if form == Q8_0:
        return dot_q8_0(at, codes_at, scale_at, k // 32, h)
    if form == Q6_K:
        return dot_q6_k(at, codes_at, scale_at, k // 256, h)
    if form == F16:
        return dot_f16(at, x_at, k)
    if form == BF16:
        return dot_bf16(at, x_at, k)
    if form == Q5_0:
        return dot_q5_0(at, codes_at, scale_at, sum_at, k // 32, h)
    if form == Q4_1:
        return dot_q4_1(at, codes_at, scale_at, sum_at, k // 32, h)
    return dot_q5_1(at, codes_at, scale_at, sum_at, k // 32, h)
