"""The quantised formats as compiled code: rows of weights times rows of activations, and one weight by itself.

The products are written as LLVM vectors of 16 lanes, which any processor's code generator knows how to cut: numba's
loops over blocks of 32 become vectors only with a check and a horizontal sum in each. Activations are int8 codes (held
as int16) with a scale for each block and the sum of the block's codes. The integer products of a block are exact; the
floats of its lanes are added to 16 sums in ascending order of blocks, for one token as for several at once.
"""

# mypy: ignore-errors
# numba types what it compiles, and calls an intrinsic with another signature than it is defined with.
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..formats import TYPE_IDS
from .numba_memory import f32, float_of, half, i8, inner, u8, u16

F32, F16, BF16 = TYPE_IDS["F32"], TYPE_IDS["F16"], TYPE_IDS["BF16"]
Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 = (TYPE_IDS[name] for name in ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"))
Q6_K = TYPE_IDS["Q6_K"]
DIRECT = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q6_K")  # read as the file has them
LANES = 16
BYTE, SHORT, INT, LONG, FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
CONTRACT = ("contract",)


def lanes(of: Any) -> Any:
    return ir.VectorType(of, LANES)


def every(of: Any, value: int) -> Any:
    """A constant in every lane."""
    return ir.Constant(lanes(of), [value] * LANES)


def splat(b: Any, value: Any) -> Any:
    one = b.insert_element(ir.Constant(lanes(value.type), ir.Undefined), value, INT(0))
    return b.shuffle_vector(one, one, ir.Constant(lanes(INT), [0] * LANES))


def fetch(b: Any, address: Any, offset: int, of: Any) -> Any:
    place = b.inttoptr(b.add(address, LONG(offset)), ir.PointerType(of))
    return b.load(place, align=1)


def f16_at(b: Any, address: Any, offset: int) -> Any:
    """The f16 there as a float; as `half` of numba_memory."""
    h = b.zext(fetch(b, address, offset, SHORT), INT)
    bits = b.shl(b.and_(h, INT(0x7FFF)), INT(13))
    finite = b.bitcast(b.fmul(b.bitcast(bits, FLOAT), FLOAT(2.0**112)), INT)
    size = b.select(b.icmp_unsigned(">=", bits, INT(0x0F800000)), b.or_(bits, INT(0x7F800000)), finite)
    return b.bitcast(b.or_(size, b.shl(b.and_(h, INT(0x8000)), INT(16))), FLOAT)


def nibbles(b: Any, at: Any, offset: int) -> list[Any]:
    packed = fetch(b, at, offset, lanes(BYTE))
    return [b.zext(b.and_(packed, every(BYTE, 15)), lanes(SHORT)), b.zext(b.lshr(packed, every(BYTE, 4)), lanes(SHORT))]


def with_fifth(b: Any, at: Any, offset: int) -> list[Any]:
    """Five-bit codes: the word of fifth bits, then the nibbles."""
    bits = b.bitcast(fetch(b, at, offset, INT), ir.VectorType(ir.IntType(1), 32))
    codes = []
    for part, low in enumerate(nibbles(b, at, offset + 4)):
        which = ir.Constant(lanes(INT), list(range(part * LANES, part * LANES + LANES)))
        fifth = b.zext(b.shuffle_vector(bits, bits, which), lanes(SHORT))
        codes.append(b.or_(low, b.shl(fifth, every(SHORT, 4))))
    return codes


def less(b: Any, codes: list[Any], zero: int) -> list[Any]:
    return [b.sub(part, every(SHORT, zero)) for part in codes]


def bytes_at(b: Any, at: Any, offset: int) -> list[Any]:
    return [b.sext(fetch(b, at, offset + part, lanes(BYTE)), lanes(SHORT)) for part in (0, LANES)]


class Legacy(NamedTuple):
    """A format of 32 weights a block: an f16 scale, an f16 minimum if there is one, then codes, as two vectors."""

    bytes: int
    minimum: bool
    codes: Callable[[Any, Any], list[Any]]


LEGACY = {
    "Q8_0": Legacy(34, False, lambda b, at: bytes_at(b, at, 2)),
    "Q4_0": Legacy(18, False, lambda b, at: less(b, nibbles(b, at, 2), 8)),
    "Q4_1": Legacy(20, True, lambda b, at: nibbles(b, at, 4)),
    "Q5_0": Legacy(22, False, lambda b, at: less(b, with_fifth(b, at, 2), 16)),
    "Q5_1": Legacy(24, True, lambda b, at: with_fifth(b, at, 4)),
}


class Activations(NamedTuple):
    """Addresses of one token's row: codes of the block at hand, its scale, its sum; and the row's sums so far."""

    codes: Any
    scale: Any
    total: Any
    sums: Any
    rest: Any


def add_to(b: Any, place: Any, scale: Any, values: Any) -> None:
    """place += scale · values, fused where the processor can."""
    product = b.fmul(scale, values, flags=CONTRACT)
    b.store(b.fadd(b.load(place), product, flags=CONTRACT), place)


def legacy_block(b: Any, form: Legacy, at: Any, tokens: list[Activations]) -> None:
    d, codes = f16_at(b, at, 0), form.codes(b, at)
    for x in tokens:
        # 2 · 128 · 127 is below 2^15, so that the sum of two products fits 16 bits.
        first, second = (b.mul(w, fetch(b, x.codes, 2 * LANES * i, lanes(SHORT))) for i, w in enumerate(codes))
        sums = b.sitofp(b.sext(b.add(first, second), lanes(INT)), lanes(FLOAT))
        scale = fetch(b, x.scale, 0, FLOAT)
        add_to(b, x.sums, splat(b, b.fmul(d, scale)), sums)
        if form.minimum:
            total = b.sitofp(fetch(b, x.total, 0, INT), FLOAT)
            add_to(b, x.rest, b.fmul(f16_at(b, at, 2), scale), total)


def q6_k_block(b: Any, at: Any, tokens: list[Activations]) -> None:
    """256 weights: 128 bytes of low nibbles, 64 of upper bit pairs, 16 int8 scales of 16 weights each, an f16 scale."""
    totals = [every(INT, 0)] * len(tokens)
    for group in range(16):
        half_block, run, part = group // 8, group // 2 % 4, group % 2
        low = fetch(b, at, 64 * half_block + 32 * (run & 1) + 16 * part, lanes(BYTE))
        high = fetch(b, at, 128 + 32 * half_block + 16 * part, lanes(BYTE))
        low = b.and_(b.lshr(low, every(BYTE, 4 * (run >> 1))), every(BYTE, 15))
        high = b.shl(b.and_(b.lshr(high, every(BYTE, 2 * run)), every(BYTE, 3)), every(BYTE, 4))
        codes = b.sub(b.zext(b.or_(low, high), lanes(SHORT)), every(SHORT, 32))
        scale = splat(b, b.sext(fetch(b, at, 192 + group, BYTE), INT))
        for i, x in enumerate(tokens):
            product = b.mul(codes, fetch(b, x.codes, 2 * LANES * group, lanes(SHORT)))
            totals[i] = b.add(totals[i], b.mul(b.sext(product, lanes(INT)), scale))
    d = f16_at(b, at, 208)
    for total, x in zip(totals, tokens, strict=True):
        scale = splat(b, b.fmul(d, fetch(b, x.scale, 0, FLOAT)))
        add_to(b, x.sums, scale, b.sitofp(total, lanes(FLOAT)))


def tree(b: Any, sums: Any) -> Any:
    """The sum of 16 lanes: halves are added to halves."""
    width = LANES
    while width > 1:
        width //= 2
        low, high = (ir.Constant(ir.VectorType(INT, width), list(range(s, s + width))) for s in (0, width))
        sums = b.fadd(b.shuffle_vector(sums, sums, low), b.shuffle_vector(sums, sums, high))
    return b.extract_element(sums, INT(0))


def product(name: str, tokens: int) -> Any:
    """Compiled code for one row of weights times `tokens` rows of activations.

    Arguments: addresses of the weights, of the first token's codes, scales and sums, and of its result; the number of
    blocks in a row; the distance in bytes from one token's result to the next.
    """
    block, size = (256, 210) if name == "Q6_K" else (32, LEGACY[name].bytes)

    @intrinsic
    def row(typing: Any, at: Any, x_at: Any, scale_at: Any, total_at: Any, y_at: Any, blocks: Any, apart: Any) -> Any:
        def emit(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            at, x_at, scale_at, total_at, y_at, blocks, apart = arguments
            sums = [cgutils.alloca_once_value(b, every(FLOAT, 0)) for _ in range(tokens)]
            rest = [cgutils.alloca_once_value(b, FLOAT(0)) for _ in range(tokens)]
            with cgutils.for_range(b, blocks, intp=LONG) as loop:
                xs = []
                for t in range(tokens):
                    i = b.add(loop.index, b.mul(blocks, LONG(t)))
                    places = (b.add(a, b.mul(i, LONG(n))) for a, n in ((x_at, 2 * block), (scale_at, 4), (total_at, 4)))
                    xs.append(Activations(*places, sums[t], rest[t]))
                block_at = b.add(at, b.mul(loop.index, LONG(size)))
                if name == "Q6_K":
                    q6_k_block(b, block_at, xs)
                else:
                    legacy_block(b, LEGACY[name], block_at, xs)
            for t in range(tokens):
                y = b.fadd(tree(b, b.load(sums[t])), b.load(rest[t]))
                b.store(y, b.inttoptr(b.add(y_at, b.mul(apart, LONG(t))), ir.PointerType(FLOAT)))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), emit

    return row


TOGETHER = 4  # tokens that share the decoding of a row
q8_0, q8_0s = product("Q8_0", 1), product("Q8_0", TOGETHER)
q4_0, q4_0s = product("Q4_0", 1), product("Q4_0", TOGETHER)
q4_1, q4_1s = product("Q4_1", 1), product("Q4_1", TOGETHER)
q5_0, q5_0s = product("Q5_0", 1), product("Q5_0", TOGETHER)
q5_1, q5_1s = product("Q5_1", 1), product("Q5_1", TOGETHER)
q6_k, q6_ks = product("Q6_K", 1), product("Q6_K", TOGETHER)


@inner
def one(form, at, x_at, scale_at, total_at, y_at, blocks):
    if form == Q4_0:
        q4_0(at, x_at, scale_at, total_at, y_at, blocks, 0)
    elif form == Q8_0:
        q8_0(at, x_at, scale_at, total_at, y_at, blocks, 0)
    elif form == Q6_K:
        q6_k(at, x_at, scale_at, total_at, y_at, blocks, 0)
    elif form == Q5_0:
        q5_0(at, x_at, scale_at, total_at, y_at, blocks, 0)
    elif form == Q5_1:
        q5_1(at, x_at, scale_at, total_at, y_at, blocks, 0)
    elif form == Q4_1:
        q4_1(at, x_at, scale_at, total_at, y_at, blocks, 0)


@inner
def together(form, at, x_at, scale_at, total_at, y_at, blocks, apart):
    if form == Q4_0:
        q4_0s(at, x_at, scale_at, total_at, y_at, blocks, apart)
    elif form == Q8_0:
        q8_0s(at, x_at, scale_at, total_at, y_at, blocks, apart)
    elif form == Q6_K:
        q6_ks(at, x_at, scale_at, total_at, y_at, blocks, apart)
    elif form == Q5_0:
        q5_0s(at, x_at, scale_at, total_at, y_at, blocks, apart)
    elif form == Q5_1:
        q5_1s(at, x_at, scale_at, total_at, y_at, blocks, apart)
    elif form == Q4_1:
        q4_1s(at, x_at, scale_at, total_at, y_at, blocks, apart)


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
