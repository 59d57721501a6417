"""The reference backend: each op in plain NumPy, one obvious function a kind. Slow, and the oracle of the others.

Sums are made in float64 and rounded to float32 between ops; keys and values are rounded to float16 as they are stored,
activations to int8 per block as they meet quantised weights.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import CancelledError
from ..ops import Op, Program, Rows, Weight
from .base import ACTIVATION_BLOCK, PAGE, Batch, Weights

Page = list[tuple[np.ndarray, np.ndarray]]
SLICE = 1 << 22  # weights that are decoded at once
TINY = np.float32(2.0**-100)


def round_activations(x: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (m, k) rounded to int8 by blocks of `block`: codes −127 … 127 (m, k), scales (m, k / block), float32.

    A block whose largest magnitude is below 2⁻¹⁰⁰ becomes zeros with scale 0. A block with a value that is no finite
    number gets codes or a scale that are none.
    """
    blocks = np.asarray(x, np.float32).reshape(len(x), -1, block)
    amax = np.abs(blocks).max(axis=2)
    live = ~(amax < TINY)  # a nan is live
    scale = np.where(live, amax / np.float32(127), np.float32(0))
    inverse = np.divide(np.float32(127), amax, out=np.zeros_like(amax), where=live)
    return np.rint(blocks * inverse[:, :, None]).reshape(x.shape), scale


class Reference:
    """Runs a program op by op. `int8=False` leaves activations as they are, to measure what rounding them costs."""

    name = "reference"

    def __init__(self, program: Program, weights: Weights, int8: bool = True) -> None:
        self.program, self.weights, self.int8 = program, weights, int8
        self.page_bytes = sum(s.kv_heads * PAGE * (s.dk + s.dv) * 2 for s in program.stores)
        self._blocks: dict[Weight, np.ndarray] = {}
        self._vectors: dict[Weight, np.ndarray] = {}
        self._cancelled = threading.Event()

    def step(self, batch: Batch, logits: np.ndarray) -> np.ndarray:
        """See base.Backend."""
        self._cancelled.clear()
        values: dict[int, np.ndarray] = {}
        bad = np.zeros(len(batch.ids), bool)
        for op in self.program.ops:
            if self._cancelled.is_set():
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
        def empty(*shape: int) -> np.ndarray:
            return np.zeros(shape, np.float16)

        return [(empty(s.kv_heads, PAGE, s.dk), empty(s.kv_heads, PAGE, s.dv)) for s in self.program.stores]

    def free_page(self, page: Page) -> None:
        page.clear()

    def copy_page(self, target: Page, source: Page) -> None:
        for (k, v), (k_source, v_source) in zip(target, source, strict=True):
            k[...], v[...] = k_source, v_source

    def cancel(self) -> None:
        self._cancelled.set()

    def close(self) -> None:
        self._blocks.clear()
        self._vectors.clear()

    def vector(self, weight: Weight) -> np.ndarray:
        if weight not in self._vectors:
            self._vectors[weight] = self.weights.floats(weight)
        return self._vectors[weight]

    def rows(self, weight: Weight, rows: np.ndarray | slice) -> np.ndarray:
        """Some rows of a matrix, float32 (rows, k). The matrix is kept as the file has it and decoded at each use."""
        if weight not in self._blocks:
            self._blocks[weight] = self.weights.blocks(weight)
        decoded: np.ndarray = self.weights.file.tensors[weight.name].format.dequantise(self._blocks[weight][rows])
        return decoded


def of_rows(tokens: np.ndarray, batch: Batch, rows: Rows) -> np.ndarray:
    """What belongs to each token, for the rows of a value."""
    return tokens.take(batch.outputs) if rows == "output" else tokens


def embed(self: Reference, op: Op, batch: Batch) -> np.ndarray:
    assert op.weight is not None
    return self.rows(op.weight, batch.ids)


def rmsnorm(self: Reference, op: Op, batch: Batch, x: np.ndarray) -> np.ndarray:
    assert op.weight is not None
    wide = x.astype(np.float64)
    length: np.ndarray = np.sqrt((wide * wide).mean(axis=1, keepdims=True) + op.eps)
    y: np.ndarray = wide / length * self.vector(op.weight)
    return y


def matmul(self: Reference, op: Op, batch: Batch, x: np.ndarray) -> np.ndarray:
    assert op.weight is not None
    w, wide = op.weight, x.astype(np.float64)
    block = ACTIVATION_BLOCK.get(self.weights.type_name(w)) if self.int8 else None
    if block:
        codes, scale = round_activations(x, block)
        wide = codes * np.repeat(scale.astype(np.float64), block, axis=1)
    y = np.empty((len(x), w.n))
    part = max(1, SLICE // w.k)
    for start in range(0, w.n, part):
        y[:, start : start + part] = wide @ self.rows(w, slice(start, start + part)).astype(np.float64).T
    return y if op.bias is None else y + self.vector(op.bias)


def rope(self: Reference, op: Op, batch: Batch, x: np.ndarray) -> np.ndarray:
    table = self.program.tables[op.table]
    half = len(table.frequency)
    positions = of_rows(batch.positions, batch, op.reads[0].rows)
    angle = positions[:, None, None].astype(np.float64) * np.array(table.frequency)
    cos = (np.cos(angle) * table.magnitude).astype(np.float32)
    sin = (np.sin(angle) * table.magnitude).astype(np.float32)
    y = x.reshape(len(x), op.heads, op.dim).astype(np.float64)
    first, second = y[..., :half].copy(), y[..., half : 2 * half].copy()
    y[..., :half] = first * cos - second * sin
    y[..., half : 2 * half] = first * sin + second * cos
    return y.reshape(x.shape)


def store(self: Reference, op: Op, batch: Batch, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    k, v = k.astype(np.float16), v.astype(np.float16)
    s = self.program.stores[op.store]
    for row, (sequence, position) in enumerate(zip(batch.sequence, batch.positions, strict=True)):
        keys, values = batch.pages[sequence][position // PAGE][op.store]
        keys[:, position % PAGE] = k[row].reshape(s.kv_heads, s.dk)
        values[:, position % PAGE] = v[row].reshape(s.kv_heads, s.dv)
    return np.concatenate([k, v], axis=1)


def attend(self: Reference, op: Op, batch: Batch, q: np.ndarray) -> np.ndarray:
    s = self.program.stores[op.store]
    group = op.heads // s.kv_heads
    rows = op.reads[0].rows
    positions, sequences = of_rows(batch.positions, batch, rows), of_rows(batch.sequence, batch, rows)
    scaled = (q * np.float32(op.scale)).astype(np.float64).reshape(len(q), s.kv_heads, group, s.dk)
    y = np.empty((len(q), s.kv_heads, group, s.dv))
    for sequence in np.unique(sequences):
        pages = batch.pages[sequence]
        keys = np.concatenate([page[op.store][0] for page in pages], axis=1).astype(np.float64)
        values = np.concatenate([page[op.store][1] for page in pages], axis=1).astype(np.float64)
        for row in np.flatnonzero(sequences == sequence):
            seen = positions[row] + 1
            scores = scaled[row] @ keys[:, :seen].transpose(0, 2, 1)
            share = np.exp(scores - scores.max(axis=2, keepdims=True))
            y[row] = share / share.sum(axis=2, keepdims=True) @ values[:, :seen]
    return y.reshape(len(q), -1)


def glu(self: Reference, op: Op, batch: Batch, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    y: np.ndarray = ACTIVATE[op.act](a.astype(np.float64)) * b
    return y


def add(self: Reference, op: Op, batch: Batch, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    y: np.ndarray = a + b
    return y


def select(self: Reference, op: Op, batch: Batch, x: np.ndarray) -> np.ndarray:
    return x.take(batch.outputs, axis=0)


def logits(self: Reference, op: Op, batch: Batch, x: np.ndarray) -> np.ndarray:
    return x


ACTIVATE: dict[str, Callable[[np.ndarray], np.ndarray]] = {"silu": lambda x: x / (1 + np.exp(-x))}
KINDS: dict[str, Callable[..., Any]] = {
    "embed": embed, "rmsnorm": rmsnorm, "matmul": matmul, "rope": rope, "store": store, "attend": attend,
    "glu": glu, "add": add, "select": select, "logits": logits,
}  # fmt: skip
