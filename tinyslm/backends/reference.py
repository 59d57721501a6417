"""The reference backend: each op in plain NumPy, one obvious function a kind. Slow, and the oracle of the others.

It is the executable specification of the arithmetic: every sum in the order that makes a token's logits the same bits
on every machine (`arithmetic.py` has the parts). Keys and values are rounded to float16 as they are stored, activations
to int8 per block as they meet quantised weights.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import CancelledError
from ..formats import Integers
from ..ops import Op, Program, Rows, Store, Weight
from .arithmetic import (
    LANES,
    block_dots,
    exp_down,
    float_dots,
    fma32,
    gelu,
    lane_sum,
    norm_scale,
    relu,
    round_activations,
    row_mean,
    silu,
    tanh32,
    turns,
)
from .base import ACTIVATION_BLOCK, PAGE, Batch, Weights, kv_bytes
from .reference_kv import CACHES, Cache, Held

Page = list[Held]
SLICE = 1 << 22  # weights that are decoded at once
CACHED = 1 << 15  # results that are summed at once, so that they stay in the cache
SEGMENT = 512  # positions over which one running softmax goes


class Reference:
    """Runs a program op by op. `int8=False` leaves activations as they are, to measure what rounding them costs."""

    name = "reference"
    maxima: np.ndarray | None = None
    burst = None

    def __init__(self, program: Program, weights: Weights, int8: bool = True, kv: str = "f16") -> None:
        self.program, self.int8, self.cache = program, int8, CACHES[kv]
        self.page_bytes = kv_bytes(program, kv)
        # All of the file that is needed, read now: it may be closed afterwards.
        self._blocks = {w: weights.blocks(w) for w in program.weights() if w.k}
        self._vectors = {w: weights.floats(w) for w in program.weights() if not w.k}
        self._formats = {w: weights.file.tensors[w.name].format for w in self._blocks}
        self._cancelled = threading.Event()

    def step(self, batch: Batch, logits: np.ndarray) -> np.ndarray:
        """See base.Backend."""
        values: dict[int, np.ndarray] = {}
        bad = np.zeros(len(batch.ids), bool)
        for op in self.program.ops:
            if self._cancelled.is_set():
                self._cancelled.clear()
                raise CancelledError("the step was cancelled")
            out, broken = self._run(op, [values[v.index] for v in op.reads], batch)
            if op.kind == "logits":
                logits[...] = out
            elif op.out is not None:
                values[op.out.index] = out
            rows = (op.out or op.reads[0]).rows
            bad[batch.outputs if rows == "output" else slice(None)] |= broken
        return bad

    def run(self, op: Op, inputs: Sequence[np.ndarray], batch: Batch) -> np.ndarray:
        """One op by itself: float32 (rows, width) of its result.

        `inputs` are the values that it reads, of one row a token or an output of `batch`. `store` writes into the
        pages and gives back the keys and values as they were stored, side by side; `logits` gives back its input.
        """
        return self._run(op, inputs, batch)[0]

    def _run(self, op: Op, inputs: Sequence[np.ndarray], batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """The op's result, float32 (rows, width), and which rows hold a value that is no finite number."""
        with np.errstate(all="ignore"):
            out = KINDS[op.kind](self, op, batch, *inputs).astype(np.float32)
        return out, ~np.isfinite(out).all(axis=1)

    def new_page(self) -> Page:
        return [self.cache.new(s) for s in self.program.stores]

    def free_page(self, page: Page) -> None:
        page.clear()

    def copy_page(self, target: Page, source: Page) -> None:
        for held, other in zip(target, source, strict=True):
            for array, copied in zip(held, other, strict=True):
                array[...] = copied

    def cancel(self) -> None:
        self._cancelled.set()

    def close(self) -> None:
        self._blocks.clear()
        self._vectors.clear()

    def vector(self, weight: Weight) -> np.ndarray:
        return self._vectors[weight]

    def blocks(self, weight: Weight, rows: np.ndarray | slice) -> np.ndarray:
        """Some rows of a matrix, uint8 (rows, bytes): it is kept as the file has it and decoded at each use."""
        return self._blocks[weight][rows]

    def floats(self, weight: Weight, rows: np.ndarray | slice) -> np.ndarray:
        """Some rows of a matrix, float32 (rows, k)."""
        decoded: np.ndarray = self._formats[weight].dequantise(self.blocks(weight, rows))
        return decoded

    def integers(self, weight: Weight, rows: slice) -> Integers:
        """Some rows of a quantised matrix, taken apart."""
        decode = self._formats[weight].integers
        assert decode, weight
        return decode(self.blocks(weight, rows))


def of_rows(tokens: np.ndarray, batch: Batch, rows: Rows) -> np.ndarray:
    """What belongs to each token, for the rows of a value."""
    return tokens.take(batch.outputs) if rows == "output" else tokens


def embed(self: Reference, op: Op, batch: Batch) -> np.ndarray:
    assert op.weight is not None
    return self.floats(op.weight, batch.ids)


def position(self: Reference, op: Op, batch: Batch) -> np.ndarray:
    assert op.weight is not None
    return self.floats(op.weight, batch.positions + op.offset)


def rmsnorm(self: Reference, op: Op, batch: Batch, x: np.ndarray) -> np.ndarray:
    assert op.weight is not None
    heads, w = x.reshape(-1, op.dim), self.vector(op.weight).reshape(-1, op.dim)
    y: np.ndarray = (heads * norm_scale(heads, op.eps)).reshape(len(x), op.heads, op.dim) * w
    return y.reshape(x.shape)


def layernorm(self: Reference, op: Op, batch: Batch, x: np.ndarray) -> np.ndarray:
    heads = x.reshape(-1, op.dim)
    y = rmsnorm(self, op, batch, (heads - row_mean(heads)).reshape(x.shape))
    if op.bias is not None:
        y = (y.reshape(len(x), op.heads, op.dim) + self.vector(op.bias).reshape(-1, op.dim)).reshape(x.shape)
    return y


def matmul(self: Reference, op: Op, batch: Batch, x: np.ndarray) -> np.ndarray:
    assert op.weight is not None
    y = product(self, op.weight, x)
    return y if op.bias is None else y + self.vector(op.bias)


def product(self: Reference, w: Weight, x: np.ndarray) -> np.ndarray:
    """x (rows, k) times the transpose of w, with x rounded as the type of w asks for."""
    block = ACTIVATION_BLOCK.get(self._formats[w].name) if self.int8 else None
    rounded = round_activations(x, block) if block else None
    y = np.empty((len(x), w.n), np.float32)
    part = max(1, min(SLICE // w.k, CACHED // max(1, len(x))))
    for start in range(0, w.n, part):
        some = slice(start, start + part)
        y[:, some] = block_dots(*rounded, self.integers(w, some)) if rounded else float_dots(x, self.floats(w, some))
    return y


def rope(self: Reference, op: Op, batch: Batch, x: np.ndarray) -> np.ndarray:
    table = self.program.tables[op.table]
    half = len(table.frequency)
    cos, sin = turns(of_rows(batch.positions, batch, op.reads[0].rows), table.frequency, table.magnitude)
    cos, sin = cos[:, None], sin[:, None]
    y = x.reshape(len(x), op.heads, op.dim).copy()
    first, second = y[..., :half].copy(), y[..., half : 2 * half].copy()
    y[..., :half] = first * cos - second * sin
    y[..., half : 2 * half] = first * sin + second * cos
    return y.reshape(x.shape)


def store(self: Reference, op: Op, batch: Batch, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    s = self.program.stores[op.store]
    out = np.empty((len(k), k.shape[1] + v.shape[1]), np.float32)
    for row, (sequence, position) in enumerate(zip(batch.sequence, batch.positions, strict=True)):
        held = batch.pages[sequence][position // PAGE][op.store]
        kept = self.cache.write(
            held, position % PAGE, k[row].reshape(s.kv_heads, s.dk), v[row].reshape(s.kv_heads, s.dv)
        )
        out[row] = np.concatenate([half.ravel() for half in kept])
    return out


def attend(self: Reference, op: Op, batch: Batch, q: np.ndarray) -> np.ndarray:
    s = self.program.stores[op.store]
    rows = op.reads[0].rows
    positions, sequences = of_rows(batch.positions, batch, rows), of_rows(batch.sequence, batch, rows)
    scaled = (q * np.float32(op.scale)).reshape(len(q), s.kv_heads, op.heads // s.kv_heads, s.dk)
    y = np.empty((*scaled.shape[:3], s.dv), np.float32)
    for sequence in np.unique(sequences):
        own = sequences == sequence
        pages = [page[op.store] for page in batch.pages[sequence]]
        y[own] = attend_sequence(self.cache, s, scaled[own], positions[own], pages, op.softcap)
    return y.reshape(len(q), op.heads * s.dv)


def attend_sequence(
    cache: Cache, s: Store, q: np.ndarray, positions: np.ndarray, pages: Page, softcap: float
) -> np.ndarray:
    """Softmax-weighted values: (rows, kv heads, group, dv), from scaled queries (rows, kv heads, group, dk) of one
    sequence at ascending positions, each of which sees the positions of its window up to its own.

    Segments of 512 positions are summed by themselves and added in order, what was summed and the new sums each scaled
    down to the greater of their maxima.
    """
    top, total, out = empty_sums(q, 1, s.dv)
    first = np.maximum(positions - s.window + 1, 0) if s.window else np.zeros_like(positions)
    for start in range(first[0] // SEGMENT * SEGMENT, positions[-1] + 1, SEGMENT):
        row = slice(np.searchsorted(positions, start), np.searchsorted(first, start + SEGMENT))  # those that see of it
        most, lanes, sums = attend_segment(cache, s, q[row], first[row], positions[row], pages, start, softcap)
        weight = lane_sum(lanes)[..., None]
        new = np.maximum(top[row], most)
        kept, added = exp_down(apart(top[row], new)), exp_down(apart(most, new))
        top[row] = new
        total[row] = total[row] * kept + weight * added
        out[row] = fma32(sums, added, out[row] * kept)
    y: np.ndarray = out / total
    return y


def apart(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """before − after, 0 where both are −∞: nothing was seen so far."""
    return np.where(before == after, np.float32(0), before - after)


def empty_sums(q: np.ndarray, lanes: int, dv: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each query: the greatest score (…, 1), the sums of weights (…, lanes), that of weighted values (…, dv)."""
    sums = np.zeros((*q.shape[:3], lanes + dv), np.float32)
    return np.full((*q.shape[:3], 1), -np.inf, np.float32), sums[..., :lanes], sums[..., lanes:]


def attend_segment(
    cache: Cache, s: Store, q: np.ndarray, first: np.ndarray, positions: np.ndarray, pages: Page, start: int,
    softcap: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """The sums over positions `start` … of a segment: a running softmax (Milakov and Gimelshein, arXiv:1805.02867) over
    pages of 64, where a new maximum scales down what was summed before it; weights by position modulo 16."""
    most, weight, out = empty_sums(q, LANES, s.dv)
    for page in range(max(start, first[0] // PAGE * PAGE), min(start + SEGMENT, positions[-1] + 1), PAGE):
        row = slice(np.searchsorted(positions, page), np.searchsorted(first, page + PAGE))
        at = page + np.arange(PAGE)
        seen = ((first[row, None] <= at) & (at <= positions[row, None]))[:, None, None]
        scores = cache.scores(pages[page // PAGE], q[row])
        if softcap:
            scores = tanh32(scores * (np.float32(1) / np.float32(softcap))) * np.float32(softcap)
        scores = np.where(seen, scores, np.float32(-np.inf))
        new = np.maximum(most[row], scores.max(axis=3, keepdims=True))
        share = np.where(seen, exp_down(scores - new), np.float32(0))
        kept = exp_down(apart(most[row], new))
        quarters = share.reshape(*share.shape[:3], 4, LANES)
        lanes = (quarters[..., 0, :] + quarters[..., 1, :]) + (quarters[..., 2, :] + quarters[..., 3, :])
        most[row] = new
        weight[row] = fma32(weight[row], kept, lanes)
        out[row] = add_values(out[row] * kept, share, seen, cache.values(pages[page // PAGE])[..., : s.dv])
    return most, weight, out


def add_values(out: np.ndarray, share: np.ndarray, seen: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`out` and, position by position, the values (kv heads, 64, dv) times their shares, where a row sees them."""
    for i in np.flatnonzero(seen.any(axis=(0, 1, 2))):
        out = np.where(seen[..., i, None], fma32(values[:, None, i], share[..., i, None], out), out)
    return out


def act(self: Reference, op: Op, batch: Batch, x: np.ndarray) -> np.ndarray:
    return ACTIVATE[op.act](x)


def scale(self: Reference, op: Op, batch: Batch, x: np.ndarray) -> np.ndarray:
    y: np.ndarray = x * np.float32(op.scale)
    return y


def softcap(self: Reference, op: Op, batch: Batch, x: np.ndarray) -> np.ndarray:
    cap = np.float32(op.softcap)
    y: np.ndarray = tanh32(x * (np.float32(1) / cap)) * cap + x * np.float32(0)
    return y


def route(self: Reference, op: Op, batch: Batch, x: np.ndarray) -> np.ndarray:
    """The sum of the softmax goes in the order of rank; of equal values the first ranks higher."""
    numbers = np.argsort(-x, axis=1, kind="stable")[:, : op.used]
    chosen = np.take_along_axis(x, numbers, axis=1)
    weights, total = exp_down(chosen - chosen[:, :1]), np.zeros((len(x), 1), np.float32)
    for i in range(op.used):
        total = total + weights[:, i : i + 1]
    broken = np.where(np.isfinite(x).all(axis=1, keepdims=True), np.float32(0), np.float32(np.nan))
    return np.concatenate([weights / total + broken, numbers.astype(np.float32)], axis=1)


def experts(self: Reference, op: Op, batch: Batch, x: np.ndarray, r: np.ndarray) -> np.ndarray:
    numbers, w = r[:, op.used :].astype(np.int64), op.experts[0]
    parts = x.reshape(len(x), -1, w.k)
    y = np.empty((len(x), op.used, w.n), np.float32)
    for number in np.unique(numbers):
        rows, which = np.nonzero(numbers == number)
        y[rows, which] = product(self, op.experts[number], parts[rows, which if parts.shape[1] > 1 else 0])
    return y.reshape(len(x), op.used * w.n)


def mix(self: Reference, op: Op, batch: Batch, x: np.ndarray, r: np.ndarray) -> np.ndarray:
    parts = x.reshape(len(x), op.used, -1)
    y = np.zeros(parts[:, 0].shape, np.float32)
    for i in range(op.used):
        y = fma32(parts[:, i], r[:, i : i + 1], y)
    return y


def glu(self: Reference, op: Op, batch: Batch, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    y: np.ndarray = ACTIVATE[op.act](a) * b
    return y


def add(self: Reference, op: Op, batch: Batch, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    y: np.ndarray = a + b
    return y


def select(self: Reference, op: Op, batch: Batch, x: np.ndarray) -> np.ndarray:
    return x.take(batch.outputs, axis=0)


def logits(self: Reference, op: Op, batch: Batch, x: np.ndarray) -> np.ndarray:
    return x


ACTIVATE: dict[str, Callable[[np.ndarray], np.ndarray]] = {"silu": silu, "gelu": gelu, "relu": relu}
KINDS: dict[str, Callable[..., Any]] = {
    "embed": embed, "position": position, "rmsnorm": rmsnorm, "layernorm": layernorm, "matmul": matmul, "rope": rope,
    "store": store, "attend": attend, "act": act, "glu": glu, "add": add, "scale": scale, "softcap": softcap,
    "route": route, "experts": experts, "mix": mix, "select": select, "logits": logits,
}  # fmt: skip
