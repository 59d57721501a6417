"""The numba backend: the plain program as integer tables, walked by one compiled function.

For machines without a C compiler. Weights stay as the file has them; importing this module imports numba, the first
step compiles (numba caches the result on disk).
"""

from __future__ import annotations

import os
import queue
import threading
import weakref
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import CancelledError, OptionError
from ..formats import TYPE_IDS
from ..ops import ACTIVATIONS, Op, Program, Value, Weight
from . import numba_formats, numba_kernels, numba_memory
from . import numba_kernels as t
from .base import ACTIVATION_BLOCK, PAGE, Batch, Weights

ALIGNMENT = 64
BLOCK = min(ACTIVATION_BLOCK.values())  # of activations that share a scale, at least
PARALLEL = 4_000_000  # multiply-adds in a step from which helpers are worth waking

STAMP = sum(Path(str(module.__file__)).stat().st_mtime_ns for module in (numba_formats, numba_memory))
WALK = numba_kernels.compile_walk(STAMP)


class Page(NamedTuple):
    """Keys (kv head, element, position) and values alike of PAGE positions for each store in turn, f16 bits."""

    memory: np.ndarray
    address: int


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def layout(program: Program) -> tuple[list[int], int]:
    """Where each value stands in a row of the workspace, and the row's length: values that are done give way."""
    last = {v.index: i for i, op in enumerate(program.ops) for v in op.reads}
    slots: list[int] = []
    free: set[int] = set()
    slot_of: dict[int, int] = {}
    for i, op in enumerate(program.ops):
        if op.out is not None:
            width = op.out.width
            slot = min(free, key=lambda s: abs(slots[s] - width), default=len(slots))
            if slot == len(slots):
                slots.append(0)
            free.discard(slot)
            slots[slot], slot_of[op.out.index] = max(slots[slot], width), slot
        free.update(slot_of[v.index] for v in op.reads if last[v.index] == i)
    starts = np.concatenate([[0], np.cumsum(slots)]).tolist()
    return [starts[slot_of.get(v.index, 0)] for v in program.values], starts[-1]


class Arena:
    """The weights of a program in one piece of memory: as the file has them where kernels read that, else as F32.

    `direct`: the types that kernels read.
    """

    def __init__(self, program: Program, weights: Weights, direct: Collection[str]) -> None:
        self.type = {w: weights.type_name(w) for w in program.weights()}
        self.form = {w: name if w.k and name in direct else "F32" for w, name in self.type.items()}
        self.stride = {w: self._row_bytes(weights, w) for w in self.form}
        ends = np.cumsum([-(-w.n * self.stride[w] // ALIGNMENT) * ALIGNMENT for w in self.form]).tolist()
        self.start = dict(zip(self.form, [0, *ends], strict=False))
        self.memory = np.empty(ends[-1] + ALIGNMENT, np.uint8)
        self.address = -(-address(self.memory) // ALIGNMENT) * ALIGNMENT
        inside = self.memory[self.address - address(self.memory) :]
        for w, name in self.form.items():
            rows = weights.blocks(w) if name == self.type[w] and w.k else weights.floats(w).view(np.uint8)
            inside[self.start[w] :][: w.n * self.stride[w]] = rows.ravel()

    def _row_bytes(self, weights: Weights, w: Weight) -> int:
        if self.form[w] == "F32":
            return 4 * (w.k or 1)
        form = weights.file.tensors[w.name].format
        return w.k // form.block * form.bytes


class Encoder:
    """Writes the op table of a program: one row of integers an op, and the floats that ops name.

    activations: see Numba.
    """

    def __init__(self, program: Program, arena: Arena, activations: int | None) -> None:
        self.program, self.arena, self.activations = program, arena, activations
        self.offsets, self.width = layout(program)
        self._copy = self.width  # where a row of the workspace has activations that are rounded and floats again
        self.rows: list[list[int]] = []
        self.reals: list[float] = []
        self.trig_width = 0
        self.widest = 1
        self._quantised: tuple[int, int] | None = None
        self._trigs: list[int] = []
        sizes = [PAGE * s.kv_heads * (s.dk + s.dv) for s in program.stores]
        self._page_starts = np.concatenate([[0], np.cumsum(sizes)]).astype(int).tolist()
        self.page_length = self._page_starts[-1]
        for table in program.tables:
            r = len(table.frequency)
            self._trigs.append(self.trig_width)
            self._row("angles", {t.TRIG: self.trig_width, t.HALF: r, t.REAL: len(self.reals)})
            self.reals += [table.magnitude, *table.frequency]
            self.trig_width += 2 * r
        for op in program.ops:
            self._op(op)
        if activations:
            self.width += self.widest

    def _row(self, kind: str, columns: dict[int, int]) -> None:
        row = [0] * t.COLUMNS
        row[t.KIND] = t.KINDS.index(kind)
        for column, value in columns.items():
            row[column] = value
        self.rows.append(row)

    def _op(self, op: Op) -> None:
        result = op.out or op.reads[0]
        columns = {t.OUT: self.offsets[result.index], t.WIDTH: result.width, t.BIAS: -1, t.BLOCK: 1, t.HEADS: op.heads,
                   t.DIM: op.dim, t.OUTPUT_ROWS: int(result.rows == "output"), t.REAL: len(self.reals),
                   t.OFFSET: op.offset, t.USED: op.used}  # fmt: skip
        if op.act:
            columns[t.ACT_OF] = ACTIVATIONS.index(op.act)
        first = {"rmsnorm": op.eps, "layernorm": op.eps, "softcap": op.softcap}.get(op.kind, op.scale)
        self.reals += [first, op.softcap]
        for column, value in zip((t.IN, t.IN2), op.reads, strict=False):
            columns[column] = self.offsets[value.index]
        if op.reads:
            columns[t.IN_WIDTH] = op.reads[0].width
        if op.weight is not None or op.experts:
            w = op.weight or op.experts[0]
            form = self.arena.form[w]
            columns |= {t.WEIGHT: self.arena.start[w], t.STRIDE: self.arena.stride[w], t.FORMAT: TYPE_IDS[form]}
            if op.kind in ("rmsnorm", "layernorm"):
                columns[t.PART] = op.dim if w.n > op.dim else 0
            if op.kind in ("matmul", "experts"):
                if self.activations is None:
                    columns[t.BLOCK] = self._quantise("quantise", op.reads[0], ACTIVATION_BLOCK.get(form, 1))
                elif self.activations and self.arena.type[w] in ACTIVATION_BLOCK:
                    self._quantise("round", op.reads[0], self.activations)
                    columns[t.IN] = self._copy
        if op.experts:
            starts = [self.arena.start[w] for w in op.experts]
            columns |= {t.DIM: w.k, t.PART: starts[1] - starts[0] if starts[1:] else 0}
            assert starts == [starts[0] + i * columns[t.PART] for i in range(len(starts))], op
        if op.bias is not None:
            columns[t.BIAS] = self.arena.start[op.bias]
        if op.kind == "rope":
            half = len(self.program.tables[op.table].frequency)
            columns |= {t.TRIG: self._trigs[op.table], t.HALF: half}
        if op.store >= 0:
            s, start = self.program.stores[op.store], self._page_starts[op.store]
            columns |= {t.KV_HEADS: s.kv_heads, t.DIM: s.dk, t.DV: s.dv, t.WINDOW: s.window, t.KEYS: start,
                        t.VALUES: start + PAGE * s.kv_heads * s.dk}  # fmt: skip
        self._row(op.kind, columns)

    def _quantise(self, kind: str, x: Value, block: int) -> int:
        """Have x rounded to int8 in blocks of `block`, unless the op before has left it so."""
        if block > 1 and self._quantised != (x.index, block):
            if x.width % block:
                raise OptionError(f"activations={block}: the model has rows of {x.width}, no multiple of it")
            self._row(kind, {t.IN: self.offsets[x.index], t.IN_WIDTH: x.width, t.BLOCK: block, t.OUT: self._copy,
                             t.OUTPUT_ROWS: int(x.rows == "output")})  # fmt: skip
            self._quantised = (x.index, block)
            self.widest = max(self.widest, x.width)
        return block


class Helpers:
    """Threads that help the one that leads a step. After a fork, when they are gone, they start anew."""

    def __init__(self, run: Callable[[int], object], count: int) -> None:
        self._run, self._count, self._pid = run, count, 0
        self._queues: list[queue.SimpleQueue[bool]] = []

    def wake(self) -> None:
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._queues = [queue.SimpleQueue() for _ in range(self._count)]
            for i, calls in enumerate(self._queues):
                threading.Thread(
                    target=_serve, args=(self._run, calls, i + 1), name="tinyslm-numba", daemon=True
                ).start()
        for calls in self._queues:
            calls.put(True)

    def stop(self) -> None:
        for calls in self._queues:
            calls.put(False)
        self._queues, self._pid = [], 0


def _serve(run: Callable[[int], object], calls: queue.SimpleQueue[bool], thread: int) -> None:
    while calls.get():
        run(thread)


class Numba:
    """Runs a program on `threads` threads; small steps on the caller's alone.

    activations: None, rounded to int8 as the types of the weights have it. To measure what that costs, 0: not rounded;
    else rounded in blocks of so many where they meet a quantised weight. Weights are then held as F32. OptionError
    where that is no multiple of 32, or the rows of the model no multiple of it.
    """

    name = "numba"
    maxima: np.ndarray | None = None
    burst = None

    def __init__(self, program: Program, weights: Weights, threads: int = 1, activations: int | None = None) -> None:
        if activations is not None and (activations < 0 or activations % BLOCK):
            raise OptionError(f"activations={activations}: must be a multiple of {BLOCK}, or 0 for float32")
        self.program, self.threads = program, max(1, threads)
        self._arena = Arena(program, weights, numba_formats.DIRECT if activations is None else ("F32",))
        encoder = Encoder(program, self._arena, activations)
        self._ops = np.array(encoder.rows, np.int64)
        self._reals = np.array(encoder.reals, np.float64)
        self._width, self._trig_width, self._widest = encoder.width, encoder.trig_width, encoder.widest
        self._page_length, self.page_bytes = encoder.page_length, 2 * encoder.page_length
        self._work = {"token": 0, "output": 0}
        for op in program.ops:
            if op.kind == "matmul" and op.weight is not None:
                self._work[op.reads[0].rows] += op.weight.n * op.weight.k
        self._map, self._control = np.zeros(t.MAP, np.int64), np.zeros(t.CONTROL_WORDS, np.int64)
        self._scratch = np.empty((self.threads, self._scratch_floats()), np.float32)
        self._map[[t.PAGE, t.TRIG_WIDTH]] = PAGE, encoder.trig_width
        self._map[[t.SCRATCH_BYTES, t.SCRATCH]] = 4 * self._scratch.shape[1], address(self._scratch)
        self._map[[t.WEIGHTS, t.REALS]] = self._arena.address, address(self._reals)
        self._map[t.CONTROL] = address(self._control)
        self._room = 0
        self._grow(1)
        # What a helper that wakes late may still look at is held by its function, not by the backend alone.
        ops, m, control = self._ops, self._map, self._control
        self._run = run = address(ops), len(ops), address(m)
        self._helpers = Helpers(lambda thread: (WALK(*run, thread), ops, m, control), self.threads - 1)
        self._end = weakref.finalize(self, self._helpers.stop)

    def _scratch_floats(self) -> int:
        """One thread's: a page of keys and of values, its scores, and a maximum and a sum for each head of a group."""
        heads = max((op.heads for op in self.program.ops), default=0)
        return max((PAGE * (s.dk + s.dv + 1) + 2 * heads for s in self.program.stores), default=0) + 16

    def _grow(self, rows: int) -> None:
        """Make room for a step of so many tokens."""
        if rows <= self._room:
            return
        self._room = rows
        blocks = -(-self._widest // BLOCK)
        self._memory: dict[int, np.ndarray] = {
            t.WORK: np.empty(rows * self._width, np.float32),
            t.TRIGS: np.empty(rows * self._trig_width, np.float32),
            t.CODES: np.empty(rows * self._widest, np.int16),
            t.SCALES: np.empty(rows * blocks, np.float32),
            t.SUMS: np.empty(rows * blocks, np.int32),
            t.IDS: np.empty(rows, np.int32),
            t.POSITIONS: np.empty(rows, np.int32),
            t.SEQUENCE: np.empty(rows, np.int32),
            t.WANTED: np.empty(rows, np.int32),
        }
        for entry, array in self._memory.items():
            self._map[entry] = address(array)

    def step(self, batch: Batch, logits: np.ndarray) -> np.ndarray:
        """See base.Backend. `logits` must be contiguous."""
        tokens, outputs = len(batch.ids), len(batch.outputs)
        assert logits.dtype == np.float32, logits.dtype
        assert logits.flags.c_contiguous
        assert logits.shape == (outputs, self.program.vocab), logits.shape
        self._grow(max(tokens, outputs))
        for entry, values in ((t.IDS, batch.ids), (t.POSITIONS, batch.positions), (t.SEQUENCE, batch.sequence),
                              (t.WANTED, batch.outputs)):  # fmt: skip
            self._memory[entry][: len(values)] = values
        pages = np.array([page.address for of in batch.pages for page in of], np.int64)
        first = np.zeros(len(batch.pages), np.int64)
        np.cumsum([len(of) for of in batch.pages[:-1]], out=first[1:])
        bad = np.zeros(tokens, bool)
        m, control = self._map, self._control
        m[t.TOKENS], m[t.OUTPUTS], m[t.BAD], m[t.RESULT] = tokens, outputs, address(bad), address(logits)
        m[t.PAGES], m[t.FIRST] = address(pages), address(first)
        control[t.TICKET // 8] = t.IDLE
        work = tokens * self._work["token"] + outputs * self._work["output"]
        if work >= PARALLEL:
            self._helpers.wake()
        if WALK(*self._run, 0):
            control[t.CANCEL // 8] = 0
            raise CancelledError("the step was cancelled")
        return bad

    def new_page(self) -> Page:
        memory = np.zeros(self._page_length, np.uint16)
        return Page(memory, address(memory))

    def free_page(self, page: Page) -> None:
        """Its memory goes with the last reference to it."""

    def copy_page(self, target: Page, source: Page) -> None:
        target.memory[...] = source.memory

    def cancel(self) -> None:
        self._control[t.CANCEL // 8] = 1

    def close(self) -> None:
        self._end()
