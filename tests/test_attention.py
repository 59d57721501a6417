"""Attention over long contexts: the same bits in any chunks, on any threads, beside others, on all instruction sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import Run, Shape, Step, write_toy

pytest.importorskip("tinyslm._native", reason="the C core is not built")

from tinyslm.backends.base import Weights
from tinyslm.backends.native import Native, ffi, isa_names
from tinyslm.backends.reference import Reference
from tinyslm.gguf import GGUF
from tinyslm.ops import Program

TOKENS = 1100  # three segments
SHAPES = {
    "one kv head": Shape(width=16, heads=4, kv_heads=1, dk=16, dv=16, ff=16, layers=1, vocab=20),
    "three kv heads": Shape(width=16, heads=9, kv_heads=3, dk=8, dv=24, ff=16, layers=1, vocab=20),
    "more columns than a unit": Shape(width=16, heads=140, kv_heads=1, dk=8, dv=8, ff=16, layers=1, vocab=20),
    "window": Shape(width=16, heads=2, kv_heads=2, dk=8, dv=8, ff=16, layers=2, vocab=20, window=600, softcap=2.0),
    "short window": Shape(width=16, heads=3, kv_heads=1, dk=8, dv=8, ff=16, layers=2, vocab=20, window=70),
}
# Ends of chunks before, at and behind the ends of pages, segments and windows; narrow steps over all of them.
CHUNKS = [[513, 587], [512, 8, 3, 500, 1, 5, 64, 7], [9, 60, 442, 1, 1, 7, 8, 500, 72]]


@pytest.fixture(params=SHAPES)
def toy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Program, Weights]]:
    program = write_toy(tmp_path / "toy.gguf", SHAPES[request.param])
    with GGUF.open(tmp_path / "toy.gguf") as file:
        yield program, Weights(file)


def native(toy: tuple[Program, Weights], threads: int, isa: str | None = None) -> Native:
    """Its pages begin as NaN."""
    backend = Native(*toy, threads=threads, rows=600, isa=isa)
    new_page = backend.new_page

    def filled() -> int:
        page = new_page()
        ffi.memmove(ffi.cast("char *", page), b"\xff" * backend.page_bytes, backend.page_bytes)
        return page

    backend.new_page = filled  # type: ignore[method-assign]
    return backend


def bits(run: Run, name: int, steps: Sequence[Step]) -> np.ndarray:
    """The logits of one sequence's tokens, each of which is wanted."""
    out = []
    for step in steps:
        logits, bad, batch = run.step(step)
        assert not bad.any()
        at = [i for i, (other, _, _) in enumerate(step) if other == name]
        out.append(logits[np.isin(batch.sequence[batch.outputs], at)])
    run.close()
    return np.concatenate(out).view(np.int32)


def alone(chunks: Sequence[int]) -> list[Step]:
    return [[(0, n, n)] for n in chunks]


def test_the_same_bits_as_the_reference(toy: tuple[Program, Weights]) -> None:
    last = [[(0, 560, 0)], [(0, 500, 3)], [(0, 1, 1)], [(0, 8, 8)]]
    want = bits(Run(Reference(*toy), toy[0]), 0, last)
    for isa in (name for name, here in isa_names() if here):
        np.testing.assert_array_equal(bits(Run(native(toy, 2, isa), toy[0]), 0, last), want, err_msg=isa)


def test_the_same_bits_in_any_chunks_on_any_threads(toy: tuple[Program, Weights]) -> None:
    want = bits(Run(native(toy, 1), toy[0]), 0, alone([550, 550]))
    for threads in (1, 2, 3, 5):
        for chunks in CHUNKS:
            assert sum(chunks) == TOKENS
            np.testing.assert_array_equal(bits(Run(native(toy, threads), toy[0]), 0, alone(chunks)), want)


def test_the_same_bits_beside_others(toy: tuple[Program, Weights]) -> None:
    want = bits(Run(native(toy, 1), toy[0]), 0, alone([550, 8]))
    steps: list[Step] = [[(1, 40, 0), (0, 510, 510), (2, 3, 1)], [(1, 520, 0)], [(1, 2, 0), (0, 3, 3), (2, 1, 1)]]
    steps += [[(0, 2, 2), (1, 1, 1)], [(2, 1, 1), (0, 35, 35), (1, 3, 0)], [(0, 1, 1)], [(2, 1, 0), (0, 7, 7)]]
    for threads in (1, 2, 3):
        np.testing.assert_array_equal(bits(Run(native(toy, threads), toy[0]), 0, steps), want)


def oracle(q: np.ndarray, k: np.ndarray, v: np.ndarray, window: int, softcap: float) -> np.ndarray:
    """Softmax in float64 for one head: (rows, dv)."""
    scores = q.astype(np.float64) @ k.astype(np.float64).T
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    ago = np.arange(len(q))[:, None] - np.arange(len(k))
    share = np.exp(np.where((ago >= 0) & (ago < (window or len(k))), scores, -np.inf))
    return share / share.sum(axis=1, keepdims=True) @ v.astype(np.float64)


@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (600, 1.5), (64, 0.0), (1, 3.0)])
def test_the_reference_is_right_over_several_segments(window: int, softcap: float) -> None:
    from tinyslm.backends.reference import attend_sequence

    rng, dk, dv = np.random.default_rng(0), 8, 5
    q, k = rng.normal(size=(2, TOKENS, dk)).astype(np.float32)
    v = rng.normal(size=(TOKENS, dv)).astype(np.float16)
    k = k.astype(np.float16)
    pages: list[Any] = []
    for at in range(0, TOKENS, 64):
        page = np.full((1, 64, dk), np.nan, np.float16), np.full((1, 64, dv), np.nan, np.float16)
        page[0][0, : len(k[at : at + 64])], page[1][0, : len(v[at : at + 64])] = k[at : at + 64], v[at : at + 64]
        pages.append(page)
    with np.errstate(all="ignore"):
        got = attend_sequence(q[:, None, None], np.arange(TOKENS), pages, window, softcap)[:, 0, 0]
    np.testing.assert_allclose(got, oracle(q, k, v, window, softcap), rtol=0, atol=2e-5)
