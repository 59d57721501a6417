"""Attention over long contexts: the same bits in any chunks, on any threads, beside others, on all instruction sets."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import tiny_file
from toys import Run, Shape, Step, write_toy

pytest.importorskip("tinyslm._native", reason="the C core is not built")

import tinyslm
from tinyslm.backends.base import Batch, Weights
from tinyslm.backends.native import Native, ffi, isa_names
from tinyslm.backends.reference import Reference, attend_sequence
from tinyslm.backends.reference_kv import CACHES, round_sixteens, widened
from tinyslm.errors import BackendError, OptionError
from tinyslm.gguf import GGUF, TensorData, write
from tinyslm.ops import Builder, Program, Store, Weight

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


Toy = tuple[Program, Weights, str]


@pytest.fixture(
    params=[*((name, "f16") for name in SHAPES), ("three kv heads", "q8_0"), ("short window", "q8_0")], ids="-".join
)
def toy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Toy]:
    """A model, and the type of its keys and values."""
    name, kv = request.param
    program = write_toy(tmp_path / "toy.gguf", SHAPES[name])
    with GGUF.open(tmp_path / "toy.gguf") as file:
        yield program, Weights(file), kv


def native(toy: Toy, threads: int, isa: str | None = None) -> Native:
    """Its pages begin as NaN."""
    program, weights, kv = toy
    backend = Native(program, weights, threads=threads, rows=600, isa=isa, kv=kv)
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


def test_the_same_bits_as_the_reference(toy: Toy) -> None:
    last = [[(0, 560, 0)], [(0, 500, 3)], [(0, 1, 1)], [(0, 8, 8)]]
    want = bits(Run(Reference(toy[0], toy[1], kv=toy[2]), toy[0]), 0, last)
    for isa in (name for name, here in isa_names() if here):
        np.testing.assert_array_equal(bits(Run(native(toy, 2, isa), toy[0]), 0, last), want, err_msg=isa)


def test_the_same_bits_in_any_chunks_on_any_threads(toy: Toy) -> None:
    want = bits(Run(native(toy, 1), toy[0]), 0, alone([550, 550]))
    for threads in (1, 2, 3, 5):
        for chunks in CHUNKS:
            assert sum(chunks) == TOKENS
            np.testing.assert_array_equal(bits(Run(native(toy, threads), toy[0]), 0, alone(chunks)), want)


def test_the_same_bits_beside_others(toy: Toy) -> None:
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
        got = attend_sequence(
            CACHES["f16"], Store(1, dk, dv, window), q[:, None, None], np.arange(TOKENS), pages, softcap
        )
    np.testing.assert_allclose(got[:, 0, 0], oracle(q, k, v, window, softcap), rtol=0, atol=2e-5)


# ---- q8_0 ----


def test_sixteen_numbers_share_a_scale_that_none_exceeds() -> None:
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(400, 40)) * 10.0 ** rng.integers(-28, 36, (400, 1))).astype(np.float32)
    x[0], x[1, :16], x[2] = 0, 2.0**-101, np.finfo(np.float32).max
    codes, scale = round_sixteens(x)
    assert codes.shape == (400, 48)
    assert not (scale.view(np.uint32) & 0xFFFF).any()
    assert np.abs(codes).max() == 127
    assert not codes[0].any()
    assert not codes[1, :16].any()
    wide = np.repeat(scale.astype(np.float64), 16, axis=1)[:, :40]
    live = wide > 0
    error = np.abs(widened(codes, scale)[:, :40].astype(np.float64) - x)
    assert (error[live] <= 0.5001 * wide[live]).all()
    top = np.abs(np.pad(x, ((0, 0), (0, 8)))).reshape(400, 3, 16).max(axis=2)
    assert (scale[3:] <= top[3:] / 127 * 1.008).all()


@pytest.mark.parametrize("window", [0, 300])
def test_attention_of_q8_0_is_near_to_float64(window: int) -> None:
    rng, dk, dv = np.random.default_rng(2), 24, 40
    q, k = rng.normal(size=(2, TOKENS, dk)).astype(np.float32)
    v, cache = rng.normal(size=(TOKENS, dv)).astype(np.float32), CACHES["q8_0"]
    s = Store(1, dk, dv, window)
    pages = [[cache.new(s)] for _ in range(0, TOKENS, 64)]
    for i in range(TOKENS):
        cache.write(pages[i // 64][0], i % 64, k[i : i + 1], v[i : i + 1])
    got = attend_sequence(cache, s, q[:, None, None] / 5, np.arange(TOKENS), [page[0] for page in pages], 0.0)
    error = got[:, 0, 0] - oracle(q / 5, k, v, window, 0.0)
    assert np.sqrt((error**2).mean()) < 2e-3
    assert np.abs(error).max() < 3e-2


def test_what_q8_0_cannot_hold_marks_its_token_alone(tmp_path: Path) -> None:
    """Numbers beyond float16 are kept, infinities not."""
    rows = np.ones((4, 8), np.float32)
    rows[1] *= 1e30
    rows[2, 3], rows[3, 5] = np.inf, np.nan
    head = TensorData("head", (8, 4), 0, np.ones((4, 8), np.float32))
    write(tmp_path / "rows.gguf", {}, [TensorData("rows", (8, 4), 0, rows), head])
    b = Builder(4, 64)
    x = b.embed(Weight("rows", 4, 8))
    b.logits(b.matmul(b.select(b.attend(x, b.store(x, x, 2), 2, 1e-32)), Weight("head", 4, 8)))
    program, at = b.build(), np.arange(4, dtype=np.int32)
    with GGUF.open(tmp_path / "rows.gguf") as file:
        for make in (Native, Reference):
            backend = make(program, Weights(file), kv="q8_0")
            pages = [[backend.new_page()] for _ in range(4)]
            bad = backend.step(Batch(at, np.zeros_like(at), at, at, pages), np.empty((4, 4), np.float32))
            np.testing.assert_array_equal(bad, [False, False, True, True])
            backend.close()


def test_a_page_of_q8_0_takes_9_of_16_bits(tmp_path: Path) -> None:
    program = write_toy(tmp_path / "toy.gguf", Shape(dk=64, dv=64, half=32))
    with GGUF.open(tmp_path / "toy.gguf") as file:
        sizes = {(make, kv): make(program, Weights(file), kv=kv).page_bytes
                 for make in (Native, Reference) for kv in ("f16", "q8_0")}  # fmt: skip
    for make in (Native, Reference):
        assert 16 * sizes[make, "q8_0"] == 9 * sizes[make, "f16"]


def test_an_unknown_type_of_keys_is_one_line(tmp_path: Path) -> None:
    path = tiny_file(tmp_path)
    with pytest.raises(OptionError, match=r"^kv='q4_0': must be one of f16, q8_0$"):
        tinyslm.load(path, kv="q4_0")
    with pytest.raises(BackendError, match="the numba backend has f16 alone"):
        tinyslm.load(path, kv="q8_0", backend="numba")
    with tinyslm.load(path, kv="q8_0") as model, pickle.loads(pickle.dumps(model)) as other:
        assert other.page_bytes == model.page_bytes
        assert other.generate("a", max_tokens=5, seed=1) == model.generate("a", max_tokens=5, seed=1)
