"""The reference backend, op by op, against formulas in float64, and its arithmetic against exact numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from toys import Run, Shape, write_toy

from tinyslm.backends.arithmetic import (
    exp32,
    exp_down,
    float_dots,
    fma32,
    lane_sum,
    norm_scale,
    round_activations,
    silu,
    sin_cos,
    tanh32,
)
from tinyslm.backends.base import Batch, Weights
from tinyslm.backends.reference import Reference
from tinyslm.errors import CancelledError
from tinyslm.formats import BY_NAME
from tinyslm.gguf import GGUF
from tinyslm.ops import Op

U = 2.0**-24  # half a unit in the last place of a float32, relative


def nearest(x: Fraction) -> np.float32:
    """The float32 nearest to x, ties to even."""
    guess = np.float32(float(x))
    around = [guess, np.nextafter(guess, np.float32(np.inf)), np.nextafter(guess, np.float32(-np.inf))]
    return min(around, key=lambda f: (abs(Fraction(float(f)) - x), int(f.view(np.int32)) & 1))


def exact_fma(a: np.float32, b: np.float32, c: np.float32) -> np.float32:
    return nearest(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c)))


def test_fma_is_rounded_once() -> None:
    rng = np.random.default_rng(1)
    one, ulp = np.float32(1), np.float32(2.0**-23)
    hard = [
        (one + ulp, one + ulp, np.float32(2.0**-80)),  # float64 drops the last, and halves follow
        (np.float32(1.5), one + ulp, np.float32(2.0**-70)),
        (np.float32(1.5), one + ulp, np.float32(-(2.0**-70))),
        (np.float32(-1.5), one + ulp, np.float32(2.0**-70)),
        (np.float32((1 + 2.0**-23) * 2.0**-12), np.float32((1 - 2.0**-23) * 2.0**-12), one + ulp),  # just below a half
        (
            np.float32((1 + 2.0**-23) * 2.0**-75),
            np.float32((1 - 2.0**-23) * 2.0**-75),
            np.float32(2.0**-127 + 2.0**-149),
        ),
        (np.float32(3), np.float32(5), np.float32(-15)),
    ]
    # Few bits, far apart: the halfway cases that drawn floats never meet.
    bits = [np.ldexp(rng.integers(-8, 9, 400), rng.integers(-30, 31, 400)).astype(np.float32) for _ in range(3)]
    drawn = [rng.normal(size=400).astype(np.float32) for _ in range(3)]
    small = [np.ldexp(rng.normal(size=400), e).astype(np.float32) for e in (-70, -72, -140)]
    a, b, c = (np.concatenate(parts) for parts in zip(np.array(hard).T, bits, drawn, small, strict=True))
    want = np.array([exact_fma(*v) for v in zip(a, b, c, strict=True)])
    np.testing.assert_array_equal(fma32(a, b, c).view(np.int32), want.view(np.int32))


def test_fma_of_no_finite_numbers() -> None:
    big, inf = np.float32(3e38), np.float32(np.inf)
    with np.errstate(all="ignore"):
        got = fma32(np.array([big, inf, inf, 1]), np.array([big, 1, 0, np.nan]), np.array([-big, -1, 1, 1]))
    np.testing.assert_array_equal(got, [np.inf, np.inf, np.nan, np.nan])


def test_fma_keeps_the_sign_of_zero_and_overflows_at_the_half() -> None:
    zero, most = np.float32(0), np.finfo(np.float32).max
    half = np.float32(2.0**103)
    a, b = np.array([-zero, -zero, half, half]), np.array([1, 1, 1, 1 - 2.0**-24], np.float32)
    with np.errstate(over="ignore"):
        got = fma32(a, b, np.array([-zero, zero, most, most]))
    np.testing.assert_array_equal(np.signbit(got), [True, False, False, False])
    np.testing.assert_array_equal(got, [0, 0, np.inf, most])


def test_lanes_meet_in_one_tree() -> None:
    lanes = np.random.default_rng(2).normal(size=(50, 16)).astype(np.float32)
    want = lanes
    for half in (8, 4, 2, 1):
        want = np.stack([want[:, i] + want[:, i + half] for i in range(half)], axis=1)
    np.testing.assert_array_equal(lane_sum(lanes), want[:, 0])
    assert (lane_sum(lanes) != np.add.accumulate(lanes, axis=1)[:, -1]).any()


def test_norm_sums_squares_in_sixteen_lanes() -> None:
    x = np.random.default_rng(3).normal(size=(1, 37)).astype(np.float32)
    lanes = np.zeros(16, np.float32)
    for i, v in enumerate(x[0]):
        lanes[i % 16] = exact_fma(v, v, lanes[i % 16])
    want = np.float32(1) / np.sqrt(lane_sum(lanes) / np.float32(37) + np.float32(1e-5))
    assert norm_scale(x, 1e-5)[0, 0] == want


def test_float_dots_add_in_ascending_order() -> None:
    rng = np.random.default_rng(4)
    x, w = (rng.normal(size=(2, 11)).astype(np.float32) for _ in range(2))
    want = np.zeros((2, 2), np.float32)
    for m in range(2):
        for n in range(2):
            for i in range(11):
                want[m, n] = exact_fma(x[m, i], w[n, i], want[m, n])
    np.testing.assert_array_equal(float_dots(x, w), want)


def test_exp() -> None:
    x = np.linspace(-87, 87, 20001, dtype=np.float32)
    want = np.array([math.exp(v) for v in x.tolist()])
    assert np.abs(exp32(x) / want - 1).max() < 2.5 * U
    np.testing.assert_array_equal(exp32(np.array([0, -0.0], np.float32)), 1)
    np.testing.assert_array_equal(exp_down(np.array([-1e4, -np.inf], np.float32)), exp32(np.full(2, -87, np.float32)))


def test_tanh() -> None:
    x = np.concatenate([np.linspace(-11, 11, 20001), 10.0 ** np.arange(-30, 0), [0, 1e30, -1e30]]).astype(np.float32)
    want = np.array([math.tanh(v) for v in x.tolist()])
    np.testing.assert_allclose(tanh32(x), want, rtol=5 * U)


def test_silu() -> None:
    x = np.concatenate([np.linspace(-86, 100, 5001), [0, -0.0, 3e38]]).astype(np.float32)
    want = np.array([v / (1 + math.exp(-v)) for v in x.tolist()])
    np.testing.assert_allclose(silu(x), want, rtol=5 * U)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(silu(np.array([np.inf, -np.inf, np.nan], np.float32)), [np.inf, -np.inf, np.nan])


def test_sine_and_cosine() -> None:
    rng = np.random.default_rng(5)
    x = np.concatenate(
        [rng.uniform(0, 10, 2000), rng.uniform(0, 2.0**20, 2000), -rng.uniform(0, 1e4, 200), [0, 1e-300]]
    )
    sine, cosine = sin_cos(x)
    np.testing.assert_allclose(sine, [math.sin(v) for v in x], rtol=0, atol=4e-16)
    np.testing.assert_allclose(cosine, [math.cos(v) for v in x], rtol=0, atol=4e-16)


@pytest.mark.parametrize("block", [32, 256])
def test_rounding_of_activations(block: int) -> None:
    rng = np.random.default_rng(6)
    x = (rng.normal(size=(5, 2 * block)) * 10.0 ** rng.integers(-20, 20, (5, 1))).astype(np.float32)
    x[3, :block] = 0
    x[4] = 2.0**-101  # below what has an inverse: zeros
    codes, scale = round_activations(x, block)
    wide = np.repeat(scale.astype(np.float64), block, axis=1)
    assert codes.shape == x.shape
    assert scale.shape == (5, 2)
    np.testing.assert_array_equal(codes, np.rint(codes))
    assert (np.abs(codes).reshape(5, 2, block).max(axis=2)[:3] == 127).all()
    assert (np.abs(codes * wide - x)[:4] <= wide[:4] * (0.5 + 1e-4)).all()
    assert not codes[4].any()
    assert not scale[4].any()


# ---- op by op ----

SHAPES = {
    "floats": Shape(width=20, heads=6, kv_heads=3, dk=8, dv=10, half=3, types=("F32", "F16", "BF16"), bias=True,
                    magnitude=1.25),
    "legacy": Shape(width=64, heads=4, kv_heads=2, dk=16, dv=16, ff=96, half=8,
                    types=("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"), bias=True, permuted=True),
    "window": Shape(width=20, heads=4, kv_heads=2, dk=8, dv=24, types=("F32",), window=3, softcap=0.7),
    "k": Shape(width=256, heads=4, kv_heads=2, dk=64, dv=64, ff=512, half=32, types=("Q6_K", "Q4_K", "Q5_K", "Q5_K")),
}  # fmt: skip


Setup = tuple[Reference, Weights, Batch]


@pytest.fixture(params=SHAPES)
def setup(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Setup]:
    """A model, and a batch of two sequences, the first across two pages."""
    program = write_toy(tmp_path / "toy.gguf", SHAPES[request.param])
    with GGUF.open(tmp_path / "toy.gguf") as file:
        weights = Weights(file)
        reference = Reference(program, weights)
        yield reference, weights, Run(reference, program).batch([(0, 70, 3), (1, 5, 2)])


def inputs_of(op: Op, batch: Batch, rng: np.random.Generator) -> list[np.ndarray]:
    rows = {"token": len(batch.ids), "output": len(batch.outputs)}
    return [rng.normal(size=(rows[v.rows], v.width)).astype(np.float32) for v in op.reads]


def kinds(reference: Reference, *wanted: str) -> list[Op]:
    return [op for op in reference.program.ops if op.kind in wanted]


def test_embed(setup: Setup) -> None:
    reference, weights, batch = setup
    (op,) = kinds(reference, "embed")
    assert op.weight
    np.testing.assert_array_equal(reference.run(op, [], batch), weights.floats(op.weight)[batch.ids])


def test_rmsnorm(setup: Setup) -> None:
    reference, weights, batch = setup
    rng = np.random.default_rng(7)
    for op in kinds(reference, "rmsnorm"):
        assert op.weight
        (x,) = inputs_of(op, batch, rng)
        wide = x.astype(np.float64)
        want = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + op.eps) * weights.floats(op.weight)
        np.testing.assert_allclose(reference.run(op, [x], batch), want, rtol=(x.shape[1] / 16 + 12) * U)


def test_matmul(setup: Setup) -> None:
    reference, weights, batch = setup
    rng = np.random.default_rng(8)
    for op in kinds(reference, "matmul"):
        assert op.weight
        (x,) = inputs_of(op, batch, rng)
        w, steps = weights.floats(op.weight).astype(np.float64), op.weight.k
        magnitude = np.abs(w)
        integers = BY_NAME[weights.type_name(op.weight)].integers
        wide = x.astype(np.float64)
        if integers:
            parts = integers(weights.blocks(op.weight))
            length = op.weight.k // parts.scale.shape[1]
            codes, scale = round_activations(x, length)
            wide, steps = codes * np.repeat(scale.astype(np.float64), length, axis=1), 2 * parts.scale.shape[1] + 6
            if parts.minimum is not None:
                multiple = 1 if parts.multiple is None else parts.multiple
                magnitude += 2 * np.abs(np.repeat(parts.minimum, length, axis=1) * multiple)
        want, size = wide @ w.T, np.abs(wide) @ magnitude.T
        if op.bias:
            bias = weights.floats(op.bias)
            want, size = want + bias, size + np.abs(bias)
        assert (np.abs(reference.run(op, [x], batch) - want) <= (steps + 2) * U * size).all(), op.weight.name


def test_matmul_without_rounded_activations(setup: Setup) -> None:
    reference, weights, batch = setup
    plain = Reference(reference.program, weights, int8=False)
    op = kinds(plain, "matmul")[0]
    assert op.weight
    (x,) = inputs_of(op, batch, np.random.default_rng(9))
    w = weights.floats(op.weight).astype(np.float64)
    bias = weights.floats(op.bias) if op.bias else np.zeros(op.weight.n)
    size = np.abs(x.astype(np.float64)) @ np.abs(w).T + np.abs(bias)
    assert (np.abs(plain.run(op, [x], batch) - (x @ w.T + bias)) <= (op.weight.k + 2) * U * size).all()


def test_rope(setup: Setup) -> None:
    reference, _, batch = setup
    rng = np.random.default_rng(10)
    for op in kinds(reference, "rope"):
        table = reference.program.tables[op.table]
        half = len(table.frequency)
        (x,) = inputs_of(op, batch, rng)
        positions = batch.positions if op.reads[0].rows == "token" else batch.positions[batch.outputs]
        pairs = x.reshape(len(x), op.heads, op.dim).astype(np.complex128)
        turned = pairs[..., :half] + 1j * pairs[..., half : 2 * half]
        turned *= table.magnitude * np.exp(1j * np.outer(positions, table.frequency))[:, None]
        want = np.concatenate([turned.real, turned.imag, pairs[..., 2 * half :].real], axis=2).reshape(x.shape)
        np.testing.assert_allclose(reference.run(op, [x], batch), want, rtol=0, atol=6 * U * np.abs(turned).max())


def test_store_and_attend(setup: Setup) -> None:
    """Softmax in float64 over the float16 keys and values; slots beyond a row's position hold what they like."""
    reference, _, batch = setup
    rng = np.random.default_rng(11)
    for store, op in zip(kinds(reference, "store"), kinds(reference, "attend"), strict=True):
        s = reference.program.stores[op.store]
        for pages in batch.pages:
            for page in pages:
                for array in page[op.store]:
                    array[...] = np.nan
        k, v = inputs_of(store, batch, rng)
        reference.run(store, [k, v], batch)
        (q,) = inputs_of(op, batch, rng)
        got = reference.run(op, [q], batch).reshape(len(q), op.heads, s.dv)
        tokens = np.arange(len(batch.ids)) if op.reads[0].rows == "token" else batch.outputs
        keys = k.astype(np.float16).astype(np.float64).reshape(len(k), s.kv_heads, s.dk)
        values = v.astype(np.float16).astype(np.float64).reshape(len(v), s.kv_heads, s.dv)
        wide = q.astype(np.float64).reshape(len(q), op.heads, s.dk) * op.scale
        for row, token in enumerate(tokens):
            ago = batch.positions[token] - batch.positions
            seen = (batch.sequence == batch.sequence[token]) & (ago >= 0) & (ago < (s.window or len(ago)))
            for head in range(op.heads):
                kv = head // (op.heads // s.kv_heads)
                scores = keys[seen, kv] @ wide[row, head]
                if op.softcap:
                    scores = op.softcap * np.tanh(scores / op.softcap)
                slip = (s.dk + 3) * U * (np.abs(keys[seen, kv]) @ np.abs(wide[row, head])).max()
                share = np.exp(scores - scores.max())
                want = share @ values[seen, kv] / share.sum()
                atol = 2 * (2 * slip + (seen.sum() + 16) * U) * np.abs(values[seen, kv]).max()
                np.testing.assert_allclose(got[row, head], want, rtol=0, atol=atol)


def test_glu_add_select_logits(setup: Setup) -> None:
    reference, _, batch = setup
    rng = np.random.default_rng(12)
    for op in kinds(reference, "glu", "add", "select", "logits"):
        x = inputs_of(op, batch, rng)
        wide = x[0].astype(np.float64)
        if op.kind == "glu":
            want = wide / (1 + np.exp(-wide)) * x[1]
        elif op.kind == "add":
            want = x[0] + x[1]
        else:
            want = x[0][batch.outputs] if op.kind == "select" else x[0]
        np.testing.assert_allclose(reference.run(op, x, batch), want, rtol=6 * U if op.kind == "glu" else 0)


# ---- steps ----


def test_what_is_stored_is_rounded_to_float16(setup: Setup) -> None:
    """Ties to even, denormals kept, the sign of zero too; what float16 cannot hold marks its token."""
    reference, _, batch = setup
    op = kinds(reference, "store")[0]
    k, v = (np.zeros((len(batch.ids), read.width), np.float32) for read in op.reads)
    k[0, :8] = [-0.0, 2.0**-24, 2.0**-25, 1.5 * 2.0**-24, 65519, 1 + 2.0**-11, 2.0**-14 - 2.0**-25, -(2.0**-26)]
    k[1, 0], v[2, 1] = 65520, -np.inf
    out, bad = reference._run(op, [k, v], batch)
    want = [-0.0, 2.0**-24, 0, 2.0**-23, 65504, 1, 2.0**-14, -0.0]
    np.testing.assert_array_equal(out[0, :8], want)
    np.testing.assert_array_equal(np.signbit(out[0, :8]), np.signbit(want))
    np.testing.assert_array_equal(np.flatnonzero(bad), [1, 2])


def test_no_logits_wanted(setup: Setup) -> None:
    reference, _, _ = setup
    run = Run(reference, reference.program)
    logits, bad, _ = run.step([(0, 3, 0)])
    assert logits.shape == (0, reference.program.vocab)
    assert not bad.any()


def test_cancel_before_a_step_ends_that_step_alone(setup: Setup) -> None:
    reference, _, _ = setup
    run = Run(reference, reference.program)
    reference.cancel()
    with pytest.raises(CancelledError):
        run.step([(0, 3, 1)])
    assert np.isfinite(run.step([(0, 3, 1)])[0]).all()
