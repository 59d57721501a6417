"""Contract 1: a token's logits are the same bits whatever the threads, the chunks, the instruction set and the company.

TINYSLM_FULL=1 runs the full product; otherwise a part of it in which every value of every axis appears.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from small import STORIES, TINY, tiny_file

import tinyslm
from tinyslm import shapes
from tinyslm.backends import has_native
from tinyslm.engine import Work
from tinyslm.gguf import GGUF
from tinyslm.kvcache import Sequence
from tinyslm.shapes import Shape

pytestmark = pytest.mark.skipif(not has_native(), reason="the C core was not built")
FULL = os.environ.get("TINYSLM_FULL") == "1"
TOKENS = 300
THREADS, CHUNKS = (1, 2, 3), (1, 7, 64, 512)
WIDE = Shape(layers=2, width=2048, heads=32, kv_heads=8, ff=8192, vocab=4096, context=512, tied=True)  # the 1B's widths
FLARED = Shape(layers=1, width=32, heads=1, kv_heads=1, ff=40960, vocab=300, context=512, tied=True)


def isas() -> list[str]:
    from tinyslm.backends.native import isa_names

    return [name for name, here in isa_names() if here]


def subset(cases: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """Of isa × threads × chunk: all pairs of an isa with a thread count and with a chunk, spread over the third."""
    if FULL:
        return cases
    place = {isa: i for i, isa in enumerate(dict.fromkeys(isa for isa, _, _ in cases))}
    return [
        (isa, threads, chunk) for isa, threads, chunk in cases if threads == 1 + (CHUNKS.index(chunk) + place[isa]) % 3
    ]


@contextmanager
def loaded(path: Path, isa: str, threads: int, chunk: int) -> Iterator[tinyslm.Model]:
    before = os.environ.get("TINYSLM_ISA")
    os.environ["TINYSLM_ISA"] = isa
    try:
        with tinyslm.load(path, backend="native", threads=threads, chunk=chunk) as model:
            assert (model.isa, model.threads) == (isa, threads)
            yield model
    finally:
        if before is None:
            del os.environ["TINYSLM_ISA"]
        else:
            os.environ["TINYSLM_ISA"] = before


def ids_of(model: tinyslm.Model, seed: int = 0, n: int = TOKENS) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, model.vocab_size, n).astype(np.int32)


def beside_others(model: tinyslm.Model, ids: np.ndarray, chunk: int) -> np.ndarray:
    """The logits of `ids`, stepped beside other sequences that come and go, before and after it in the batch."""
    engine, rng = model._scheduler.engine, np.random.default_rng(1)
    out = np.full((len(ids), model.vocab_size), np.nan, np.float32)
    main, done = Sequence(), 0
    others: list[tuple[Sequence, np.ndarray]] = []
    while done < len(ids):
        if len(others) < 3:
            others.append((Sequence(), ids_of(model, int(rng.integers(99)), int(rng.integers(1, 100)))))
        room = chunk - 1
        works = []
        for s, theirs in others:
            n = min(room, len(theirs) - s.length, int(rng.integers(0, 1 + max(1, chunk // 3))))
            if n:
                works.append(Work(s, theirs[s.length : s.length + n], int(rng.integers(0, n + 1))))
            room -= n
        mine = Work(main, ids[done : done + room + 1], min(room + 1, len(ids) - done))
        at = int(rng.integers(0, len(works) + 1))
        works.insert(at, mine)
        logits = np.full((sum(w.outputs for w in works), model.vocab_size), np.nan, np.float32)
        assert all(engine.step(works, logits))
        first = sum(w.outputs for w in works[:at])
        out[done : done + len(mine.ids)] = logits[first : first + len(mine.ids)]
        done += len(mine.ids)
        for ended in [o for o in others if o[0].length == len(o[1])]:
            engine.cache.free(ended[0])
            others.remove(ended)
    for s, _ in [*others, (main, ids)]:
        engine.cache.free(s)
    return out


def check(path: Path, cases: list[tuple[str, int, int]]) -> None:
    with loaded(path, isas()[0], 1, TOKENS) as model:
        ids = ids_of(model)
        expected = model.logits(ids).view(np.int32)
        assert np.isfinite(expected.view(np.float32)).all()
    for isa, threads, chunk in cases:
        with loaded(path, isa, threads, chunk) as model:
            assert (model.logits(ids).view(np.int32) == expected).all(), (isa, threads, chunk)
            if chunk > 1 and (FULL or chunk != 64):
                assert (beside_others(model, ids, chunk).view(np.int32) == expected).all(), (
                    isa,
                    threads,
                    chunk,
                    "beside",
                )


def product() -> list[tuple[str, int, int]]:
    return list(itertools.product(isas(), THREADS, CHUNKS))


def stories() -> list[Path]:
    return sorted(STORIES.glob("*.gguf"))


@pytest.mark.parametrize("path", stories(), ids=lambda path: path.stem)
def test_a_trained_model(path: Path) -> None:
    check(path, subset(product()))


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0"])
def test_a_random_model(tmp_path: Path, kind: str) -> None:
    if stories() and not FULL:
        pytest.skip("the trained models say more")
    shape = Shape(TINY.layers, TINY.width, TINY.heads, TINY.kv_heads, TINY.ff, TINY.vocab, 512, TINY.tied)
    check(tiny_file(tmp_path, shape, kind), subset(product()))


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_the_width_of_a_real_model(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "wide.gguf"
    shapes.make(path, WIDE, kind, "Q6_K")
    vectors = [case for case in product() if case[0] != "scalar"]
    check(path, [*subset(vectors), ("scalar", 1, 64)])


def test_a_feed_forward_wider_than_what_is_rounded_at_once(tmp_path: Path) -> None:
    path = tmp_path / "flared.gguf"
    shapes.make(path, FLARED, "Q4_0", "Q8_0")
    check(path, [(isa, 1, chunk) for isa in isas() if isa != "scalar" for chunk in (1, 512)])


def test_every_value_of_every_axis_appears() -> None:
    cases = subset(product())
    for axis in range(3):
        assert {case[axis] for case in cases} == {case[axis] for case in product()}
    for isa in isas():
        assert {c[1] for c in cases if c[0] == isa} == set(THREADS)
        assert {c[2] for c in cases if c[0] == isa} == set(CHUNKS)


def test_the_files_hold_what_they_are_to_test(tmp_path: Path) -> None:
    if not stories():
        pytest.skip("no shared data")
    kinds = set()
    for path in stories():
        with GGUF.open(path) as file:
            kinds |= {tensor.type_name for tensor in file.tensors.values()}
    assert kinds >= {"F32", "F16", "Q8_0", "Q4_0", "Q5_1"}
