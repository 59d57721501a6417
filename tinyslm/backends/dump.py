"""Dumps: a lowered program, its weights and the steps it ran, in one file that csrc/replay.c runs without Python.

Little-endian, every part padded to 8 bytes: `SLMDUMP1`; int64 numbers; the slm_op and slm_rope structs, the
frequencies and the arena as they stand in memory; then each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .._native import ffi
from .base import Batch
from .native import Native


def dump(native: Native, steps: Sequence[Batch], path: Path) -> None:
    """Run the steps, and write them with the logits that came of them.

    A step names its pages by number, 0 and up. Raises what `Native.step` raises, and OSError.
    """
    count = 1 + max((page for batch in steps for pages in batch.pages for page in pages), default=-1)
    pages = [native.new_page() for _ in range(count)]
    ops, ropes, frequencies, program = native._keep
    numbers = [
        ffi.sizeof("slm_op"), program.n_ops, program.n_ropes, program.n_frequencies, program.vocab, program.rows,
        program.workspace, program.scratch, program.page_bytes, native.lowered.arena, count, len(steps),
    ]  # fmt: skip
    try:
        with open(path, "wb") as file:
            _part(file, b"SLMDUMP1" + np.array(numbers, "<i8").tobytes())
            _part(file, ffi.buffer(ops))
            _part(file, ffi.buffer(ropes, program.n_ropes * ffi.sizeof("slm_rope")))
            _part(file, ffi.buffer(frequencies, program.n_frequencies * 8))
            _part(file, ffi.buffer(program.arena, native.lowered.arena))
            for batch in steps:
                _step(file, native, batch, pages)
    finally:
        for page in pages:
            native.free_page(page)


def _step(file: BinaryIO, native: Native, batch: Batch, pages: list[int]) -> None:
    logits = np.empty((len(batch.outputs), native.lowered.vocab), np.float32)
    held = [[pages[i] for i in listed] for listed in batch.pages]
    bad = native.step(Batch(batch.ids, batch.positions, batch.sequence, batch.outputs, held), logits)
    table = [page for listed in batch.pages for page in listed]
    first = np.cumsum([0, *(len(listed) for listed in batch.pages)])
    head = [len(batch.ids), len(batch.outputs), len(batch.pages), len(table)]
    for part in (head, batch.ids, batch.positions, batch.sequence, batch.outputs, first, table):
        _part(file, np.asarray(part, "<i4").tobytes())
    _part(file, bad.tobytes())
    _part(file, logits.tobytes())


def _part(file: BinaryIO, part: bytes | memoryview) -> None:
    file.write(part)
    file.write(bytes(-len(part) % 8))
