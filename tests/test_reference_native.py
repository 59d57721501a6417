"""Native and reference give the same bits: op by op, model by model, fused or not, on every instruction set here."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import Run, Shape, Step, write_toy

from tinyslm import config, models
from tinyslm.backends.base import PAGE, Batch, Weights
from tinyslm.backends.reference import Reference
from tinyslm.errors import CancelledError
from tinyslm.gguf import GGUF, TensorData, write
from tinyslm.ops import Builder, Op, Program, Weight

pytestmark = pytest.mark.skipif(importlib.util.find_spec("tinyslm._native") is None, reason="the C core is not built")
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "stories260K"

SHAPES = {
    "odd widths": Shape(width=20, heads=3, kv_heads=3, dk=8, dv=8, half=3, ff=37, bias=True),
    "half floats": Shape(width=23, heads=6, kv_heads=3, dk=8, dv=8, half=4, ff=21, types=("F16", "BF16"), bias=True),
    "head of 80": Shape(width=50, heads=3, kv_heads=1, dk=80, dv=80, half=10, ff=33, types=("F32", "F16", "BF16")),
    "dv apart from dk": Shape(width=40, heads=4, kv_heads=2, dk=26, dv=18, half=7, layers=3, magnitude=1.1),
    "legacy": Shape(width=64, heads=4, kv_heads=2, dk=16, dv=16, half=8, ff=96, layers=3, bias=True, permuted=True,
                    types=("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "Q4_1")),
    "window": Shape(width=20, heads=6, kv_heads=2, dk=24, dv=40, half=4, ff=21, layers=3, window=13, softcap=1.5),
    "tied": Shape(width=32, heads=4, kv_heads=4, dk=8, dv=8, half=4, ff=32, types=("Q8_0", "Q5_1", "Q4_1"), tied=True),
    "k": Shape(width=256, heads=4, kv_heads=2, dk=64, dv=64, half=32, ff=256, tied=True,
              types=("Q4_K", "Q6_K", "Q5_K", "Q4_K", "Q5_K")),
    "mixed blocks": Shape(width=256, heads=2, kv_heads=1, dk=128, dv=128, half=16, ff=256,
                          types=("Q4_0", "Q6_K", "F16", "Q5_0", "Q4_K", "Q5_1", "Q6_K", "Q5_K", "Q8_0")),
}  # fmt: skip
# Prompts of several sequences, chunks that end within a page, single tokens together, one alone.
SCRIPT: Sequence[Step] = [
    [(0, 19, 2), (1, 70, 1), (2, 1, 1)],
    [(0, 50, 3), (2, 1, 1)],
    [(0, 1, 1), (1, 1, 0), (2, 1, 1)],
    [(2, 1, 1)],
]


@pytest.fixture(params=SHAPES)
def toy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Program, Weights]]:
    program = write_toy(tmp_path / "toy.gguf", SHAPES[request.param])
    with GGUF.open(tmp_path / "toy.gguf") as file:
        yield program, Weights(file)


def native(program: Program, weights: Weights, **options: Any) -> Any:
    from tinyslm.backends.native import Native

    return Native(program, weights, **options)


def here() -> list[str]:
    from tinyslm.backends.native import isa_names

    return [name for name, has in isa_names() if has]


def bits(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).view(np.int32)


def logits_of(backend: Any, program: Program, script: Sequence[Step], seed: int = 0) -> list[np.ndarray]:
    run = Run(backend, program, seed)
    out = []
    for step in script:
        logits, bad, _ = run.step(step)
        assert not bad.any()
        out.append(bits(logits))
    run.close()
    return out


def same(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_logits_are_the_same_bits(toy: tuple[Program, Weights]) -> None:
    want = logits_of(Reference(*toy), toy[0], SCRIPT)
    for isa in here():
        for fuse in (True, False):
            got = logits_of(native(*toy, threads=2, rows=128, isa=isa, fuse=fuse), toy[0], SCRIPT)
            assert same(got, want), (isa, fuse)


@pytest.mark.parametrize("script", [[[(0, 600, 2)], [(0, 1, 1)]], [[(0, 500, 1)], [(0, 11, 11)], [(0, 3, 3)]]])
def test_segments_of_attention_are_merged_alike(tmp_path: Path, script: Sequence[Step]) -> None:
    program = write_toy(tmp_path / "toy.gguf", Shape(width=24, heads=4, kv_heads=2, half=4, ff=16, layers=1))
    with GGUF.open(tmp_path / "toy.gguf") as file:
        weights = Weights(file)
        want = logits_of(Reference(program, weights), program, script)
        assert same(logits_of(native(program, weights, threads=2, rows=600), program, script), want)


def test_every_op_gives_the_same_bits_from_the_same_inputs(toy: tuple[Program, Weights]) -> None:
    program, weights = toy
    backend, reference = native(program, weights, rows=128, fuse=False), Reference(program, weights)
    run, own = Run(backend, program), Run(reference, program)
    for step in SCRIPT:
        logits, _, batch = run.step(step)
        own_batch = own.batch(step)
        for op in program.ops:
            if op.kind != "logits":
                check_op(op, program, backend, reference, batch, own_batch, logits)
    run.close()


def check_op(op: Op, program: Program, backend: Any, reference: Reference, batch: Batch, own: Batch,
             logits: np.ndarray) -> None:  # fmt: skip
    rows = {"token": len(batch.ids), "output": len(batch.outputs)}
    out = reference.run(op, [backend.value(v, rows[v.rows]) for v in op.reads], own)
    if op.kind == "store":
        keys, values = stored(program, op, backend, batch)
        np.testing.assert_array_equal(bits(np.concatenate([keys, values], axis=1)), bits(out))
        return
    assert op.out
    last = any(other.kind == "logits" and op.out in other.reads for other in program.ops)
    got = logits if last else backend.value(op.out, rows[op.out.rows])
    np.testing.assert_array_equal(bits(got), bits(out), err_msg=f"{op.kind} {op.weight}")


def stored(program: Program, op: Op, backend: Any, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values of the batch's tokens as native's pages hold them (csrc/attention.inc has the layout)."""
    from tinyslm._native import ffi

    s = program.stores[op.store]
    at = next(o.kv for o in backend.lowered.ops if o.kind == "STORE" and o.store == op.store)
    wide = -(-s.dv // 16) * 16
    keys, values = [], []
    for sequence, position in zip(batch.sequence, batch.positions, strict=True):
        page = ffi.buffer(ffi.cast("char *", batch.pages[sequence][position // PAGE]), backend.page_bytes)
        halves = np.frombuffer(page, np.float16)[at // 2 :]
        k = halves[: s.kv_heads * PAGE * s.dk].reshape(s.kv_heads, PAGE // 16, s.dk, 16)
        v = halves[k.size : k.size + s.kv_heads * PAGE * wide].reshape(s.kv_heads, PAGE, wide)
        slot = position % PAGE
        keys.append(k[:, slot // 16, :, slot % 16].ravel())
        values.append(v[:, slot, : s.dv].ravel())
    return np.array(keys).astype(np.float32), np.array(values).astype(np.float32)


# ---- the ends of what float16 holds ----

EDGES = np.array([
    [0, -0.0, 2.0**-24, -(2.0**-24), 2.0**-25, -(2.0**-25), 1.25 * 2.0**-25, 1.5 * 2.0**-24],
    [2.0**-14, 2.0**-14 - 2.0**-25, 2.0**-14 - 2.0**-26, 1 + 2.0**-11, 1 + 3 * 2.0**-11, -1 - 2.0**-11, 1e-40, -1e-45],
    [65504, -65504, 65519, -65519, 65519.996, 1, 3, 1 / 3],
    [65520, 0, 0, 0, 0, 0, 0, 0],
    [0, -65520, 0, 0, 0, 0, 0, 0],
    [1, 2, 3, 4, 5, 6, 7, np.inf],
    [np.nan, 2, 3, 4, 5, 6, 7, 8],
], np.float32)  # fmt: skip
SOUND = 3


@pytest.fixture
def edges(tmp_path: Path) -> Iterator[tuple[Program, Weights]]:
    """Ids name rows of EDGES, which are keys, values and queries at once."""
    head = np.random.default_rng(1).normal(size=(len(EDGES), 8)).astype(np.float32)
    write(tmp_path / "edges.gguf", {}, [TensorData("rows", (8, len(EDGES)), 0, EDGES),
                                        TensorData("head", (8, len(EDGES)), 0, head)])  # fmt: skip
    b = Builder(len(EDGES), 64)
    x = b.embed(Weight("rows", len(EDGES), 8))
    y = b.attend(x, b.store(x, x, 2), 2, 2.0**-20)
    b.logits(b.matmul(b.select(y), Weight("head", len(EDGES), 8)))
    with GGUF.open(tmp_path / "edges.gguf") as file:
        yield b.build(), Weights(file)


def batch_of(backend: Any, ids: Sequence[int]) -> Batch:
    """Each token a sequence of its own."""
    n = len(ids)
    id_array, at, owner, last = (np.array(a, np.int32) for a in (ids, [0] * n, range(n), range(n)))
    return Batch(id_array, at, owner, last, [[backend.new_page()] for _ in range(n)])


def test_float16_edges_are_stored_alike(edges: tuple[Program, Weights]) -> None:
    program, weights = edges
    (store,) = (op for op in program.ops if op.kind == "store")
    ids = range(len(EDGES))
    reference = Reference(program, weights)
    own = batch_of(reference, ids)
    want = np.empty((len(EDGES), len(EDGES)), np.float32)
    want_bad = reference.step(own, want)
    np.testing.assert_array_equal(np.flatnonzero(want_bad), range(SOUND, len(EDGES)))
    keys = np.array([own.pages[i][0][0][0][:, 0].ravel() for i in ids[:SOUND]]).astype(np.float32)
    for isa in here():
        backend = native(program, weights, rows=len(EDGES), isa=isa)
        batch = batch_of(backend, ids)
        got = np.empty_like(want)
        np.testing.assert_array_equal(backend.step(batch, got), want_bad)
        np.testing.assert_array_equal(bits(got[:SOUND]), bits(want[:SOUND]))
        for half in stored(program, store, backend, batch):
            np.testing.assert_array_equal(bits(half[:SOUND]), bits(keys))
        for (page,) in batch.pages:
            backend.free_page(page)
        backend.close()


@pytest.mark.parametrize("name", ["reference", "native"])
def test_a_value_beyond_float16_leaves_earlier_tokens_alone(edges: tuple[Program, Weights], name: str) -> None:
    program, weights = edges
    backend = native(program, weights) if name == "native" else Reference(program, weights)

    def step(ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        at, page = np.arange(len(ids), dtype=np.int32), backend.new_page()
        logits = np.empty((len(ids), program.vocab), np.float32)
        bad = backend.step(Batch(np.array(ids, np.int32), at, np.zeros_like(at), at, [[page]]), logits)
        backend.free_page(page)
        return logits, bad

    alone, _ = step([1, 2])
    logits, bad = step([1, 2, SOUND])
    backend.close()
    np.testing.assert_array_equal(bad, [False, False, True])
    np.testing.assert_array_equal(bits(logits[:2]), bits(alone))


@pytest.mark.parametrize("name", ["reference", "native"])
def test_a_row_whose_squares_overflow_is_broken(tmp_path: Path, name: str) -> None:
    rows = np.full((2, 8), [[1], [1e20]], np.float32)
    write(tmp_path / "huge.gguf", {}, [TensorData("rows", (8, 2), 0, rows), TensorData("norm", (8,), 0, rows[0])])
    b = Builder(2, 64)
    b.logits(
        b.matmul(b.rmsnorm(b.select(b.embed(Weight("rows", 2, 8))), Weight("norm", 8), 1e-5), Weight("rows", 2, 8))
    )
    with GGUF.open(tmp_path / "huge.gguf") as file:
        program, weights = b.build(), Weights(file)
        backend = native(program, weights) if name == "native" else Reference(program, weights)
    bad = backend.step(batch_of(backend, [0, 1]), np.empty((2, 2), np.float32))
    backend.close()
    np.testing.assert_array_equal(bad, [False, True])


def test_cancel_before_a_step_ends_that_step_alone(toy: tuple[Program, Weights]) -> None:
    backend = native(*toy, rows=16)
    run = Run(backend, toy[0])
    backend.cancel()
    with pytest.raises(CancelledError):
        run.step([(0, 3, 1)])
    run.lengths.clear()
    assert np.isfinite(run.step([(0, 3, 1)])[0]).all()
    run.close()


# ---- a trained model ----


def last_logits(backend: Any, program: Program, ids: Sequence[int]) -> np.ndarray:
    at, page = np.arange(len(ids), dtype=np.int32), backend.new_page()
    logits = np.empty((1, program.vocab), np.float32)
    backend.step(Batch(np.array(ids, np.int32), at, np.zeros_like(at), at[-1:], [[page]]), logits)
    backend.free_page(page)
    return logits


@pytest.mark.parametrize("kind", ["f32", "F16", "Q8_0", "Q4_0", "Q5_1"])
def test_logits_of_a_trained_model_are_the_same_bits(kind: str) -> None:
    path = SHARED / f"stories260K-{kind}.gguf"
    if not path.exists():
        pytest.skip("the shared data is not here")
    golden = json.loads((SHARED / f"stories260K-{kind}.golden.json").read_text())
    with GGUF.open(path) as file:
        weights = Weights(file)

        def floats(name: str) -> np.ndarray:
            return weights.floats(Weight(name, file.tensors[name].shape[0]))

        program = models.build(config.Keys(path, file.metadata), models.Tensors(path, file.tensors, floats))
        results = []
        for backend in (Reference(program, weights), native(program, weights, threads=2, rows=64)):
            prompted = bits(last_logits(backend, program, golden["prompt_ids"]))
            results.append([prompted, *logits_of(backend, program, [[(0, 60, 60), (1, 4, 4)], [(0, 40, 40)]])])
        assert same(*results)
        if kind in ("f32", "F16"):
            got = results[0][0].view(np.float32)[0]
            assert np.abs(got - np.array(golden["last_logits"])).max() < (1e-2 if kind == "f32" else 2e-2)
