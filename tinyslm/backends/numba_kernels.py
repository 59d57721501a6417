"""What the numba backend compiles: `walk` runs the ops of a step over memory that it is given.

A value's sums are made in one order whatever else is in the batch and however many threads there are. Loops over a page
take their length from a variable: a constant one would be unrolled before LLVM makes vectors of it.
"""

# mypy: ignore-errors
# numba types what it compiles, and calls an intrinsic with another signature than it is defined with.
from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .numba_formats import F16, F32, TOGETHER, one, together, weight
from .numba_memory import (
    add_one,
    cached,
    exp32,
    f32,
    f64,
    float_of,
    half,
    i16,
    i32,
    i64,
    inner,
    load,
    longs,
    put,
    summing,
    to_half,
    u8,
    u16,
    u32,
    yield_now,
)  # fmt: skip

# Columns of the op table.
KIND, OUT, WIDTH, IN, IN_WIDTH, IN2, OUTPUT_ROWS, WEIGHT, STRIDE, FORMAT, BIAS, BLOCK, HEADS, DIM = range(14)
TRIG, HALF, REAL, KV_HEADS, DV, KEYS, VALUES, WINDOW, ACT_OF, OFFSET, USED, PART, COLUMNS = range(14, 27)
KINDS = (
    "embed", "position", "rmsnorm", "layernorm", "matmul", "rope", "store", "attend", "act", "glu", "add", "scale",
    "softcap", "route", "experts", "mix", "select", "logits", "quantise", "angles", "round",
)  # fmt: skip
EMBED, POSITION, RMSNORM, LAYERNORM, MATMUL, ROPE, STORE, ATTEND, ACT, GLU = range(10)
ADD, SCALE, SOFTCAP, ROUTE, EXPERTS, MIX, SELECT, LOGITS, QUANTISE, ANGLES, ROUND = range(10, 21)
SILU, GELU = range(2)  # of ops.ACTIVATIONS; the last is relu
# Entries of the memory map: sizes, then addresses.
TOKENS, OUTPUTS, PAGE, TRIG_WIDTH, SCRATCH_BYTES = range(5)
WORK, WEIGHTS, REALS, TRIGS, CODES, SCALES, SUMS, SCRATCH = range(5, 13)
IDS, POSITIONS, SEQUENCE, WANTED, FIRST, PAGES, RESULT, BAD, CONTROL, MAP = range(13, 23)
# Bytes of the control words, each in a cache line of its own: the cancel flag, the job's next item, items done.
CANCEL, TICKET, DONE, CONTROL_WORDS = 0, 64, 128, 24
ITEM = (1 << 32) - 1  # the part of a ticket that is the item; the rest is the op
IDLE, OVER = 1 << 30, 1 << 62  # the ticket before the first op is handed out, and when the step is over
SPINS = 1000  # looks at the ticket, some nanoseconds each, before a thread that waits gives way
ROWS, CHUNK, TILE = 4, 32, 32  # rows in an item of a row-wise op; weight rows in one of a matmul; tokens between


@inner
def check(m, token, at, n):
    """Mark the token's row as bad if one of n floats is no finite number."""
    bits, worst = u32(at, n), np.uint32(0)
    for i in range(n):
        worst = max(worst, np.uint32(bits[i] & np.uint32(0x7FFFFFFF)))
    if worst >= np.uint32(0x7F800000):
        u8(m[BAD], token + 1)[token] = 1


@inner
def token_of(m, op, row):
    return np.int64(i32(m[WANTED] + 4 * row, 1)[0]) if op[OUTPUT_ROWS] else row


@inner
def value(m, offset, width, row):
    """The address of a row of a value."""
    return m[WORK] + 4 * (offset * m[TOKENS] + row * width)


@summing
def dot(form, at, x_at, k):
    """A row of float weights times a row of activations."""
    x, s = f32(x_at, k), np.float32(0)
    if form == F32:
        w = f32(at, k)
        for i in range(k):
            s += w[i] * x[i]
    elif form == F16:
        bits = u16(at, k)
        for i in range(k):
            s += half(bits[i]) * x[i]
    else:
        bits = u16(at, k)
        for i in range(k):
            s += float_of(np.uint32(np.uint32(bits[i]) << np.uint32(16))) * x[i]
    return s


@inner
def products(m, op, n, start, end):
    """Row n of the weights times the activations of rows start to end."""
    k, form, apart, y_at = op[IN_WIDTH], op[FORMAT], 4 * op[WIDTH], value(m, op[OUT], op[WIDTH], start) + 4 * n
    at, blocks = m[WEIGHTS] + op[WEIGHT] + n * op[STRIDE], k // op[BLOCK]
    if op[BLOCK] == 1:
        x_at = value(m, op[IN], k, start)
        for row in range(end - start):
            f32(y_at + apart * row, 1)[0] = dot(form, at, x_at + 4 * k * row, k)
        return
    x_at, scale_at, total_at = m[CODES] + 2 * start * k, m[SCALES] + 4 * start * blocks, m[SUMS] + 4 * start * blocks
    row, rows = 0, end - start
    while row < rows:
        many = row + TOGETHER <= rows
        x, scale, total, y = (
            x_at + 2 * row * k,
            scale_at + 4 * row * blocks,
            total_at + 4 * row * blocks,
            y_at + apart * row,
        )
        if many:
            together(form, at, x, scale, total, y, blocks, apart)
        else:
            one(form, at, x, scale, total, y, blocks)
        row += TOGETHER if many else 1


@inner
def matmul(m, op, item):
    first, width = item * CHUNK, op[WIDTH]
    last = min(first + CHUNK, width)
    rows = m[OUTPUTS] if op[OUTPUT_ROWS] else m[TOKENS]
    for start in range(0, rows, TILE):
        end = min(start + TILE, rows)
        for n in range(first, last):
            products(m, op, n, start, end)
        for row in range(start, end):
            y_at = value(m, op[OUT], width, row) + 4 * first
            if op[BIAS] >= 0:
                y, bias = f32(y_at, last - first), f32(m[WEIGHTS] + op[BIAS] + 4 * first, last - first)
                for n in range(last - first):
                    y[n] += bias[n]
            check(m, token_of(m, op, row), y_at, last - first)


@inner
def quantise(m, op, row):
    """A row of activations to int8 codes with one scale a block, and the sum of each block's codes."""
    k, block = op[IN_WIDTH], op[BLOCK]
    blocks = k // block
    scale, total = f32(m[SCALES] + 4 * row * blocks, blocks), i32(m[SUMS] + 4 * row * blocks, blocks)
    for b in range(blocks):
        at = value(m, op[IN], k, row) + 4 * b * block
        x, bits, codes = f32(at, block), u32(at, block), i16(m[CODES] + 2 * (row * k + b * block), block)
        size, s = np.uint32(0), np.int32(0)
        for i in range(block):
            size = max(size, np.uint32(bits[i] & np.uint32(0x7FFFFFFF)))
        amax, inverse = float_of(size), np.float32(0)
        scale[b] = np.float32(0)
        if amax >= np.float32(2.0**-100):
            scale[b] = amax / np.float32(127)
            inverse = np.float32(127) / amax
        if size >= np.uint32(0x7F800000):  # the row is marked already
            scale[b] = np.float32(np.nan)
        for i in range(block):
            codes[i] = np.int16(np.rint(x[i] * inverse))
        for i in range(block):
            s = np.int32(s + np.int32(codes[i]))
        total[b] = s


@inner
def rounded(m, op, row):
    """A row of activations as its int8 codes and their scales say it, in floats."""
    quantise(m, op, row)
    k, block = op[IN_WIDTH], op[BLOCK]
    codes, scale = i16(m[CODES] + 2 * row * k, k), f32(m[SCALES] + 4 * row * (k // block), k // block)
    y = f32(value(m, op[OUT], k, row), k)
    for i in range(k):
        y[i] = np.float32(codes[i]) * scale[i // block]


@summing
def square_sum(x, n):
    s = np.float64(0)
    for i in range(n):
        s += np.float64(x[i]) * np.float64(x[i])
    return s


@summing
def sum_of(x, n):
    s = np.float64(0)
    for i in range(n):
        s += np.float64(x[i])
    return s


@inner
def norm(m, op, kind, row):
    n, dim, eps = op[WIDTH], op[DIM], f64(m[REALS], op[REAL] + 1)[op[REAL]]
    for head in range(op[HEADS]):
        at, apart = 4 * head * dim, 4 * head * op[PART]
        x, y = f32(value(m, op[IN], n, row) + at, dim), f32(value(m, op[OUT], n, row) + at, dim)
        w = f32(m[WEIGHTS] + op[WEIGHT] + apart, dim)
        mean = np.float32(sum_of(x, dim) / dim) if kind == LAYERNORM else np.float32(0)
        for i in range(dim):
            y[i] = x[i] - mean
        factor = np.float32(1 / np.sqrt(square_sum(y, dim) / dim + eps))
        for i in range(dim):
            y[i] = y[i] * factor * w[i]
        if op[BIAS] >= 0:
            bias = f32(m[WEIGHTS] + op[BIAS] + apart, dim)
            for i in range(dim):
                y[i] += bias[i]


@inner
def angles(m, op, row):
    """Cos and sin of a token's position for each frequency of a table."""
    half_dim = op[HALF]
    frequency = f64(m[REALS] + 8 * op[REAL], half_dim + 1)
    out = f32(m[TRIGS] + 4 * (row * m[TRIG_WIDTH] + op[TRIG]), 2 * half_dim)
    position = np.float64(i32(m[POSITIONS] + 4 * row, 1)[0])
    for i in range(half_dim):
        out[i] = np.float32(np.cos(position * frequency[i + 1]) * frequency[0])
        out[half_dim + i] = np.float32(np.sin(position * frequency[i + 1]) * frequency[0])


@inner
def rope(m, op, row):
    n, dim, r = op[WIDTH], op[DIM], op[HALF]
    trig = m[TRIGS] + 4 * (token_of(m, op, row) * m[TRIG_WIDTH] + op[TRIG])
    cos, sin = f32(trig, r), f32(trig + 4 * r, r)
    for head in range(op[HEADS]):
        x, y = f32(value(m, op[IN], n, row) + 4 * head * dim, dim), f32(value(m, op[OUT], n, row) + 4 * head * dim, dim)
        for i in range(r):
            y[i] = x[i] * cos[i] - x[i + r] * sin[i]
        for i in range(r):
            y[i + r] = x[i] * sin[i] + x[i + r] * cos[i]
        for i in range(2 * r, dim):
            y[i] = x[i]


@inner
def page_of(m, token, position):
    """The address of the page that holds a position of the token's sequence."""
    sequence = np.int64(i32(m[SEQUENCE] + 4 * token, 1)[0])
    return i64(m[PAGES], i64(m[FIRST], sequence) + position // m[PAGE])


@inner
def store_half(m, token, to, x, n, heads):
    """Heads of n floats into columns of a page's arrays, (head, element, position)."""
    for i in range(heads * n):
        h = to_half(x[i])
        u16(to + 2 * i * m[PAGE], 1)[0] = h
        if (h & np.uint16(0x7C00)) == np.uint16(0x7C00):
            u8(m[BAD], token + 1)[token] = 1


@inner
def store(m, op, row):
    kv_heads, dk, dv = op[KV_HEADS], op[DIM], op[DV]
    position = np.int64(i32(m[POSITIONS] + 4 * row, 1)[0])
    to = page_of(m, row, position) + 2 * (position % m[PAGE])
    k, v = value(m, op[IN], kv_heads * dk, row), value(m, op[IN2], kv_heads * dv, row)
    store_half(m, row, to + 2 * op[KEYS], f32(k, kv_heads * dk), dk, kv_heads)
    store_half(m, row, to + 2 * op[VALUES], f32(v, kv_heads * dv), dv, kv_heads)


@inner
def scores(q, keys, s, dk, scale, page):
    """The products of one query with a page of keys (element, position)."""
    for j in range(page):
        s[j] = np.float32(0)
    for d in range(dk):
        x = q[d] * scale
        row = keys[d * page : (d + 1) * page]
        for j in range(page):
            s[j] += x * row[j]


@inner
def peak(bits, n):
    """The largest of n floats, through integers of the same order: float maxima would not become vectors."""
    top = np.int32(-0x7FFFFFFF)
    for j in range(n):
        b = np.int32(bits[j])
        top = max(top, np.int32(b ^ np.int32(np.int32(b >> np.int32(31)) & np.int32(0x7FFFFFFF))))
    return float_of(np.uint32(top ^ np.int32(np.int32(top >> np.int32(31)) & np.int32(0x7FFFFFFF))))


@summing
def total_of(s, n):
    t = np.float32(0)
    for j in range(n):
        t += s[j]
    return t


@summing
def product(a, b, n):
    t = np.float32(0)
    for j in range(n):
        t += a[j] * b[j]
    return t


@inner
def cap(s, page, most):
    """most · tanh(score / most)"""
    for j in range(page):
        s[j] = most - np.float32(2) * most / (exp32(np.float32(2) * s[j] / most) + np.float32(1))


@inner
def softmax_block(s, bits, low, seen, page, highest):
    """Scores to shares under the new maximum, which is given back; 0 where the row may not look."""
    new = max(highest, peak(bits[low:seen], seen - low))
    for j in range(page):
        s[j] = exp32(s[j] - new) if low <= j < seen else np.float32(0)
    return new


@inner
def attend(m, op, item, thread):
    """One query row and one kv head: softmax in one pass over the pages (Milakov and Gimelshein, arXiv:1805.02867)."""
    kv_heads, dk, dv, page = op[KV_HEADS], op[DIM], op[DV], m[PAGE]
    row, kv = item // kv_heads, item % kv_heads
    group, token = op[HEADS] // kv_heads, token_of(m, op, row)
    position = np.int64(i32(m[POSITIONS] + 4 * token, 1)[0])
    reals = f64(m[REALS], op[REAL] + 2)[op[REAL] :]
    scale, most = np.float32(reals[0]), np.float32(reals[1])
    first = max(0, position + 1 - op[WINDOW]) if op[WINDOW] else 0
    begin = first // page * page
    q_at = value(m, op[IN], op[HEADS] * dk, row) + 4 * kv * group * dk
    y_at = value(m, op[OUT], op[HEADS] * dv, row) + 4 * kv * group * dv
    at = m[SCRATCH] + thread * m[SCRATCH_BYTES]
    keys, values = f32(at, dk * page), f32(at + 4 * dk * page, dv * page)
    at += 4 * (dk + dv) * page
    s, bits, highest, weights = f32(at, page), u32(at, page), f32(at + 4 * page, group), f32(
        at + 4 * (page + group), group)  # fmt: skip
    for h in range(group):
        highest[h], weights[h] = np.float32(-np.inf), np.float32(0)
    for start in range(begin, position + 1, page):
        low, seen, base = max(0, first - start), min(page, position + 1 - start), page_of(m, token, start)
        expand(u16(base + 2 * (op[KEYS] + kv * dk * page), dk * page), keys, dk, page, low, seen)
        expand(u16(base + 2 * (op[VALUES] + kv * dv * page), dv * page), values, dv, page, low, seen)
        for h in range(group):
            scores(f32(q_at + 4 * h * dk, dk), keys, s, dk, scale, page)
            if most > 0:
                cap(s, page, most)
            new = softmax_block(s, bits, low, seen, page, highest[h])
            old = exp32(highest[h] - new)
            highest[h], weights[h] = new, weights[h] * old + total_of(s, page)
            y = f32(y_at + 4 * h * dv, dv)
            for d in range(dv):
                before = y[d] * old if start > begin else np.float32(0)
                y[d] = before + product(s, values[d * page : (d + 1) * page], page)
    for h in range(group):
        y = f32(y_at + 4 * h * dv, dv)
        for d in range(dv):
            y[d] /= weights[h]
    check(m, token, y_at, group * dv)


@inner
def expand(source, target, n, page, low, seen):
    """A page's f16 to floats; 0 where the row may not look, for what stands there may be anything."""
    for d in range(n):
        a, b = source[d * page : (d + 1) * page], target[d * page : (d + 1) * page]
        for j in range(page):
            x = half(a[j])
            b[j] = x if low <= j < seen else np.float32(0)


@inner
def activation(which, x):
    """See ops.ACTIVATIONS; what is no finite number stays so."""
    if which == SILU:
        return x / (np.float32(1) + exp32(-x))
    if which == GELU:
        u = x * (np.float32(1.59576912161) + np.float32(0.0713548162726) * x * x)
        return x / (np.float32(1) + exp32(-u))
    return max(np.float32(0), x) + x * np.float32(0)


@inner
def route(m, op, row):
    """Numbers of the greatest values, of equal ones the first, and their softmax."""
    k, used = op[IN_WIDTH], op[USED]
    x, y = f32(value(m, op[IN], k, row), k), f32(value(m, op[OUT], 2 * used, row), 2 * used)
    check(m, token_of(m, op, row), value(m, op[IN], k, row), k)
    total = np.float32(0)
    for j in range(used):
        best = -1
        for e in range(k):
            taken = False
            for i in range(j):
                taken |= np.int64(y[used + i]) == e
            if not taken and (best < 0 or x[e] > x[best]):
                best = e
        y[used + j] = np.float32(best)
    for j in range(used):
        y[j] = exp32(x[np.int64(y[used + j])] - x[np.int64(y[used])])
        total += y[j]
    for j in range(used):
        y[j] /= total


@inner
def experts(m, op, row):
    """The row's products with its experts' weights; the blocks of activations, if any, are rounded already."""
    n, used, k, form = op[WIDTH] // op[USED], op[USED], op[DIM], op[FORMAT]
    blocks, x_parts = k // op[BLOCK], op[IN_WIDTH] // k
    numbers = f32(value(m, op[IN2], 2 * used, row) + 4 * used, used)
    for j in range(used):
        x_row = row * x_parts + (j if x_parts > 1 else 0)
        at = m[WEIGHTS] + op[WEIGHT] + np.int64(numbers[j]) * op[PART]
        y_at = value(m, op[OUT], op[WIDTH], row) + 4 * j * n
        for i in range(n):
            if op[BLOCK] == 1:
                x_at = value(m, op[IN], op[IN_WIDTH], row) + (4 * j * k if x_parts > 1 else 0)
                f32(y_at + 4 * i, 1)[0] = dot(form, at + i * op[STRIDE], x_at, k)
            else:
                one(form, at + i * op[STRIDE], m[CODES] + 2 * x_row * k, m[SCALES] + 4 * x_row * blocks,
                    m[SUMS] + 4 * x_row * blocks, y_at + 4 * i, blocks)  # fmt: skip


@inner
def mix(m, op, row):
    n, used = op[WIDTH], op[USED]
    x, y = f32(value(m, op[IN], used * n, row), used * n), f32(value(m, op[OUT], n, row), n)
    weights = f32(value(m, op[IN2], 2 * used, row), used)
    for i in range(n):
        y[i] = np.float32(0)
    for j in range(used):
        for i in range(n):
            y[i] += x[j * n + i] * weights[j]


@inner
def row_op(m, op, kind, row):
    """The ops that work row by row and whose rows need no more than a loop."""
    n = op[WIDTH]
    token = np.int64(i32(m[WANTED] + 4 * row, 1)[0]) if kind == SELECT else row
    source = token if kind == SELECT else row
    x, z = f32(value(m, op[IN], n, source), n), f32(value(m, op[IN2], n, source), n)
    y = f32(m[RESULT] + 4 * row * n if kind == LOGITS else value(m, op[OUT], n, row), n)
    number = f64(m[REALS], op[REAL] + 1)[op[REAL]]
    real = np.float32(number)
    if kind in (EMBED, POSITION):
        which = i32(m[IDS if kind == EMBED else POSITIONS] + 4 * row, 1)[0]
        at = m[WEIGHTS] + op[WEIGHT] + (np.int64(which) + op[OFFSET]) * op[STRIDE]
        for i in range(n):
            y[i] = weight(op[FORMAT], at, i)
    elif kind == ADD:
        for i in range(n):
            y[i] = x[i] + z[i]
    elif kind == GLU:
        for i in range(n):
            y[i] = activation(op[ACT_OF], x[i]) * z[i]
    elif kind == ACT:
        for i in range(n):
            y[i] = activation(op[ACT_OF], x[i])
    elif kind == SCALE:
        for i in range(n):
            y[i] = x[i] * real
    elif kind == SOFTCAP:
        for i in range(n):
            e = exp32(np.float32(2) * x[i] / real)
            y[i] = (np.float32(1) - np.float32(2) / (np.float32(1) + e)) * real
    else:
        for i in range(n):
            y[i] = x[i]


@inner
def items(m, op):
    """Into how many parts, for any thread to take, an op falls."""
    rows = m[OUTPUTS] if op[OUTPUT_ROWS] else m[TOKENS]
    if op[KIND] == MATMUL:
        return (op[WIDTH] + CHUNK - 1) // CHUNK if rows else 0
    if op[KIND] == ATTEND:
        return rows * op[KV_HEADS]
    return (rows + ROWS - 1) // ROWS


@inner
def run(m, op, item, thread):
    kind = op[KIND]
    if kind == MATMUL:
        matmul(m, op, item)
        return
    if kind == ATTEND:
        attend(m, op, item, thread)
        return
    rows = m[OUTPUTS] if op[OUTPUT_ROWS] else m[TOKENS]
    for row in range(item * ROWS, min(item * ROWS + ROWS, rows)):
        if kind == QUANTISE:
            quantise(m, op, row)
            continue
        if kind == ROUND:
            rounded(m, op, row)
            continue
        if kind == ANGLES:
            angles(m, op, row)
            continue
        if kind == STORE:
            store(m, op, row)
            continue
        if kind in (RMSNORM, LAYERNORM):
            norm(m, op, kind, row)
        elif kind == ROPE:
            rope(m, op, row)
        elif kind == ROUTE:
            route(m, op, row)
        elif kind == EXPERTS:
            experts(m, op, row)
        elif kind == MIX:
            mix(m, op, row)
        else:
            row_op(m, op, kind, row)
        if kind != LOGITS:
            check(m, token_of(m, op, row), value(m, op[OUT], op[WIDTH], row), op[WIDTH])


@inner
def row_of(table, ticket):
    """The op that a ticket is for."""
    return longs(table + (ticket >> 32) * (8 * COLUMNS), COLUMNS)


def compile_walk(stamp: int) -> Callable[[int, int, int, int], bool]:
    """The function that runs a step.

    numba's cache looks at the time of this file alone; `stamp`, which stands for the files that it imports, becomes
    part of the cache's key by being a variable of the closure.
    """

    def walk(table, count, memory_map, thread):
        """Take items of the op handed out until the step is over; thread 0 hands out the next when all are done.

        `table` and `memory_map` are the addresses of int64 (count, COLUMNS) and (MAP,). True if the step was cancelled.
        """
        m = longs(memory_map, MAP)
        control, waited = m[CONTROL], 0
        if thread == 0:
            put(control + DONE, 0)
            put(control + TICKET, 0)
        while True:
            ticket = load(control + TICKET)
            if ticket >= OVER:
                return load(control + CANCEL) != 0 or stamp < 0
            if (ticket & ITEM) < items(m, row_of(table, ticket)):
                waited = 0
                ticket = add_one(control + TICKET)  # maybe of a later op than the one just seen
                if ticket < OVER and (ticket & ITEM) < items(m, row_of(table, ticket)):
                    if load(control + CANCEL) == 0:
                        run(m, row_of(table, ticket), ticket & ITEM, thread)
                    add_one(control + DONE)
            elif thread == 0 and load(control + DONE) >= items(m, row_of(table, ticket)):
                put(control + DONE, 0)
                following = (ticket >> 32) + 1
                over = following == count or load(control + CANCEL) != 0
                put(control + TICKET, OVER if over else following << 32)
            else:
                waited += 1
                if waited > SPINS:  # the thread that is waited for may be off the processor
                    yield_now()

    compiled: Callable[[int, int, int, int], bool] = cached(walk)
    return compiled
