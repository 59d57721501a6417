"""The native backend: weights packed into panels once, then one call into C for each step."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import accumulate
from typing import Any

import numpy as np

from .._native import ffi, lib
from ..errors import BackendError, CancelledError, OptionError, TinySLMError, UnsupportedError
from ..formats import BY_NAME
from ..gguf import TensorInfo, unreadable
from ..lowered import Kernels, Lowered, LoweredOp, Placement
from ..ops import Program, Value
from ..program import lower, lower_to_fit
from .base import MOST_RUNNING, Batch, Draw, Drawn, Weights, matrix_types

PROGRESS = 0.05  # seconds between two calls of `progress`
KEPT_BYTES = 32 << 20  # of pages given back, for sequences to come: new ones cost 4% of a prompt at 135M
KERNELS = Kernels(lib.slm_panel_bytes, lib.slm_row_bytes, lib.slm_act_row_bytes, lib.slm_act_block, lib.slm_kv_bytes)
FIELDS = (
    "output", "gather", "barrier", "type", "type2", "n", "k", "ldx", "ldy", "ldout", "heads", "kv_heads", "dk", "dv",
    "rope", "kv_type", "window", "act_block", "center", "offset", "used", "experts", "part", "folded", "eps", "scale",
    "softcap", "x", "y", "out", "w", "bias", "bias2", "norm", "norm_bias", "kv", "act_narrow", "act_wide",
)  # fmt: skip
NO_BUFFER = ffi.cast("uint8_t *", 0)


def isa_names() -> list[tuple[str, bool]]:
    """The instruction sets of this build, best first, and whether this CPU has each."""
    out: list[tuple[str, bool]] = []
    while (name := lib.slm_isa_name(len(out))) != ffi.NULL:
        out.append((ffi.string(name).decode(), bool(lib.slm_isa_here(len(out)))))
    return out


def choose_isa(name: str | None = None) -> str:
    """`name`, or TINYSLM_ISA, or the best here. BackendError if this CPU or build has none of that name."""
    wanted = name or os.environ.get("TINYSLM_ISA")
    here = [n for n, has in isa_names() if has]
    if wanted and wanted not in here:
        known = [n for n, _ in isa_names()]
        why = "this CPU lacks it" if wanted in known else "no such instruction set in this build"
        raise BackendError(f"instruction set {wanted!r}: {why}; here are {', '.join(here)}")
    return wanted or here[0]


class Native:
    """See base.Backend. `rows`: the most tokens in a step; None: 512, or fewer where their values take much memory.
    `progress` is called with the share of weights packed."""

    name = "native"

    def __init__(
        self,
        program: Program,
        weights: Weights,
        threads: int = 1,
        rows: int | None = None,
        isa: str | None = None,
        fuse: bool = True,
        progress: Callable[[float], None] | None = None,
        kv: str = "f16",
    ) -> None:
        self.isa, self.threads = choose_isa(isa), threads
        types = {name: BY_NAME[kind].id for name, kind in matrix_types(program, weights).items()}
        for w in program.weights():
            if w.k and not lib.slm_panel_bytes(types[w.name], w.k):
                problem = (
                    "the native backend has no kernels for this tensor's type; llama.cpp's tool makes a file that it "
                    "has: llama-quantize ORIGINAL.gguf OUT.gguf Q8_0"
                )
                raise UnsupportedError(weights.file.path, problem, where=w.name, got=weights.type_name(w))
        options = (fuse, BY_NAME[kv.upper()].id)
        self.lowered = (
            lower(program, types, KERNELS, rows, *options) if rows else lower_to_fit(program, types, KERNELS, *options)
        )
        self.rows = self.lowered.rows
        self.page_bytes = max(self.lowered.page, 64)  # a program without attention has pages too
        self._cancel, self._batch = ffi.new("int32_t *"), ffi.new("slm_batch *")
        self._sixteens = np.empty((0, -(-program.vocab // 16)), np.float32)
        self.maxima: np.ndarray | None = None
        self._kept = list[int]()
        self._arena = Memory(self.lowered.arena)
        self._engine = ffi.NULL
        try:
            self._pack(weights, types, progress)
            self._keep, c_program = _c_program(self.lowered, self._arena.pointer)
            error = ffi.new("int32_t *")
            self._engine = lib.slm_engine_new(c_program, self.isa.encode(), threads, error)
            if self._engine == ffi.NULL:
                raise BackendError(f"the engine could not start with {threads} threads: error {error[0]}")
        except BaseException:
            self.close()
            raise

    # ---- weights ----

    def _pack(self, weights: Weights, types: dict[str, int], progress: Callable[[float], None] | None) -> None:
        """Fill the arena: all threads take slices of the file, read them and pack them."""
        keep, loading = _loading(self.lowered.placements, self._arena.pointer, weights, types)
        total = sum(source.n * lib.slm_row_bytes(source.type, source.k) for source in keep[0]) or 1
        with ThreadPoolExecutor(self.threads) as pool:
            futures = [pool.submit(lib.slm_load, loading) for _ in range(self.threads)]
            try:
                for place in self.lowered.placements:
                    if place.form == "floats":
                        values = np.ascontiguousarray(weights.floats(place.weight))
                        ffi.memmove(self._arena.pointer + place.offset, values, values.nbytes)
                while wait(futures, PROGRESS if progress else None).not_done:
                    if progress:
                        progress(loading.done / total)
            finally:
                loading.stop = 1
        if loading.failed >= 0:
            raise unreadable(keep[1][loading.failed], loading.offset, loading.error)
        if any(future.result() for future in futures):
            raise MemoryError("no memory to read the weights through")
        if progress:
            progress(1.0)

    # ---- steps ----

    def step(self, batch: Batch, logits: np.ndarray) -> np.ndarray:
        """See base.Backend."""
        keep = self._fill(batch, logits)
        self._check(lib.slm_step(self._engine, self._batch))
        return keep[0].view(np.bool_)

    def burst(self, batch: Batch, logits: np.ndarray, draws: Sequence[Draw], steps: int, halt: np.ndarray) -> Drawn:
        """See base.Backend."""
        keep, n, vocab = self._fill(batch, logits), len(draws), logits.shape[1]
        assert self.maxima is not None
        # no arrays of NumPy here: the steps have pushed its code out of the caches
        start = batch.positions.tolist()
        positions = ffi.new("int32_t[]", [at + step for step in range(steps) for at in start])
        self._batch.positions = positions
        recents = [ffi.new("int32_t[]", [*d.recent, *[0] * steps]) for d in draws]
        ends = [ffi.new("int32_t[]", d.ends) for d in draws]
        c = ffi.new("slm_draw[]", [
            {**d.native, "index": d.index, "recent": recent, "n_recent": len(d.recent), "ends": end, "n_ends": len(end),
             "logprob": bool(d.logprob)}
            for d, recent, end in zip(draws, recents, ends, strict=True)
        ])  # fmt: skip
        tokens, logprobs = ffi.new("int32_t[]", steps * n), ffi.new("float[]", steps * n)
        done = self._check(lib.slm_burst(self._engine, self._batch, vocab, c, steps, _ints(halt), tokens, logprobs))
        del keep  # what the C structures point to has lived until here
        at = range(0, done * n, n)
        return [[(tokens[i + j], logprobs[i + j] if d.logprob else None) for j in at] for i, d in enumerate(draws)]

    def _fill(self, batch: Batch, logits: np.ndarray) -> tuple[np.ndarray, ...]:
        """Tell C of the batch. Returns what must live as long; first, the flags of rows that are not finite."""
        if self._engine == ffi.NULL:
            raise BackendError("the backend is closed")
        bad = np.empty(len(batch.ids), np.uint8)
        first = np.array([0, *accumulate(map(len, batch.pages))], np.int32)
        pages = np.array([page for pages in batch.pages for page in pages], np.uintp)
        c = self._batch
        c.n_tokens, c.n_outputs, c.n_sequences = len(batch.ids), len(batch.outputs), len(batch.pages)
        c.ids, c.positions, c.sequence = _ints(batch.ids), _ints(batch.positions), _ints(batch.sequence)
        c.outputs, c.first_page = _ints(batch.outputs), _ints(first)
        c.pages = ffi.cast("uint8_t *const *", ffi.from_buffer(pages))
        c.logits, c.bad = ffi.from_buffer("float[]", logits), ffi.from_buffer("uint8_t[]", bad)
        self.maxima = self._room_for_maxima(len(batch.outputs))
        c.maxima = ffi.NULL if self.maxima is None else ffi.from_buffer("float[]", self.maxima)
        c.cancel = self._cancel
        return bad, first, pages

    def _check(self, found: int) -> int:
        if found == lib.SLM_E_CANCELLED:
            self._cancel[0] = 0
            raise CancelledError("the step was cancelled")
        if found < 0:
            raise TinySLMError(f"the step failed: error {found}")
        return found

    def _room_for_maxima(self, outputs: int) -> np.ndarray | None:
        if outputs > MOST_RUNNING:  # they are wanted themselves
            return None
        if len(self._sixteens) < outputs:
            self._sixteens = np.empty((outputs, self._sixteens.shape[1]), np.float32)
        return self._sixteens[:outputs]

    def value(self, value: Value, rows: int) -> np.ndarray:
        """What the last step left of a value, float32 (rows, width): all of them where the program was not fused."""
        op = next(op for op in self.lowered.ops if op.out_value == value)
        size = rows * op.ldout * 4
        held = ffi.buffer(lib.slm_engine_workspace(self._engine) + op.out, size)
        return np.frombuffer(held, np.float32).reshape(rows, op.ldout)[:, : value.width].copy()

    def cancel(self) -> None:
        self._cancel[0] = 1

    def new_page(self) -> int:
        if self._kept:
            return self._kept.pop()
        page = lib.slm_alloc(self.page_bytes)
        if page == ffi.NULL:
            raise MemoryError(f"no memory for a KV page of {self.page_bytes} bytes")
        return int(ffi.cast("uintptr_t", page))

    def free_page(self, page: int) -> None:
        if self._engine != ffi.NULL and (len(self._kept) + 1) * self.page_bytes <= KEPT_BYTES:
            self._kept.append(page)
        else:
            self._release(page)

    def _release(self, page: int) -> None:
        lib.slm_free(ffi.cast("void *", page), self.page_bytes)

    def copy_page(self, target: int, source: int) -> None:
        ctypes.memmove(target, source, self.page_bytes)

    def close(self) -> None:
        lib.slm_engine_free(self._engine)
        self._engine = ffi.NULL
        while self._kept:
            self._release(self._kept.pop())
        self._arena.free()


class Memory:
    """Bytes from the system, zeroed, freed once."""

    def __init__(self, size: int) -> None:
        self.size = max(size, 64)
        self.pointer = ffi.cast("uint8_t *", lib.slm_alloc(self.size))
        if self.pointer == NO_BUFFER:
            raise MemoryError(f"no memory for {size} bytes of weights")

    def free(self) -> None:
        lib.slm_free(self.pointer, self.size)
        self.pointer = NO_BUFFER


def _ints(a: np.ndarray) -> Any:
    if a.dtype != np.int32 or not a.flags.c_contiguous:
        raise OptionError(f"a batch is made of contiguous int32 arrays, not {a.dtype}")
    return ffi.from_buffer("int32_t[]", a)


def _loading(
    placements: Sequence[Placement], arena: Any, weights: Weights, types: dict[str, int]
) -> tuple[tuple[Any, list[TensorInfo], list[Any]], Any]:
    """The slm_loading of all matrices, and what must live as long: its sources, their tensors, the orders of rows."""
    places = [p for p in placements if p.form != "floats"]
    sources, tensors, orders = ffi.new("slm_source[]", len(places)), list[TensorInfo](), list[Any]()
    for source, place in zip(sources, places, strict=True):
        w, tensor = place.weight, weights.file.tensors[place.weight.name]
        tensors.append(tensor)
        source.file, source.offset = weights.file.fileno(tensor), tensor.offset + w.first * tensor.row_bytes
        source.type, source.k, source.n, source.panels = types[w.name], w.k, w.n, place.form == "panels"
        source.unit, source.target, source.step = 16, arena + place.offset, place.step
        order = w.row_order()
        if order is not None:
            orders.append(ffi.from_buffer("int32_t[]", order.astype(np.int32)))
            source.order, source.unit = orders[-1], math.lcm(16, w.n // w.rope_heads)
    loading = ffi.new("slm_loading *", {"sources": sources, "count": len(places), "failed": -1})
    return (sources, tensors, orders), loading


def _c_op(op: LoweredOp, c: Any) -> None:
    for name in FIELDS:
        setattr(c, name, getattr(op, name))
    for name in ("kind", "epilogue", "act"):
        setattr(c, name, getattr(lib, "SLM_" + getattr(op, name).upper()))


def _c_program(lowered: Lowered, arena: Any) -> tuple[list[Any], Any]:
    """The slm_program, and what must live as long as it does."""
    ops = ffi.new("slm_op[]", len(lowered.ops))
    for i, op in enumerate(lowered.ops):
        _c_op(op, ops[i])
    ropes, first = ffi.new("slm_rope[]", max(1, len(lowered.tables))), 0
    for i, table in enumerate(lowered.tables):
        ropes[i].half, ropes[i].first, ropes[i].magnitude = len(table.frequency), first, table.magnitude
        first += len(table.frequency)
    frequencies = ffi.new("double[]", [f for table in lowered.tables for f in table.frequency] or [0.0])
    program = ffi.new("slm_program *")
    program.ops, program.ropes, program.frequencies, program.arena = ops, ropes, frequencies, arena
    program.n_ops, program.n_ropes, program.n_frequencies = len(lowered.ops), len(lowered.tables), first
    program.vocab, program.rows = lowered.vocab, lowered.rows
    program.workspace, program.scratch, program.page_bytes = lowered.workspace, lowered.scratch, lowered.page
    return [ops, ropes, frequencies, program], program
