"""The ops that Llama does not need: each against a formula in float64, and the same bits from native as from the
reference, fused and not, on every instruction set here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from test_reference_native import SCRIPT, check_op, here, logits_of, native, same
from toys import Run, Shape, Zoo

from tinyslm import gguf
from tinyslm.backends import has_native
from tinyslm.backends.arithmetic import gelu, relu, tanh32
from tinyslm.backends.base import Batch, Weights
from tinyslm.backends.reference import Reference
from tinyslm.errors import TinySLMError
from tinyslm.formats import BY_NAME
from tinyslm.ops import Builder, Program, Value, Weight

needs_native = pytest.mark.skipif(not has_native(), reason="the C core was not built")
U = 2.0**-24


SHAPES = {
    "floats": Shape(width=44, heads=4, kv_heads=2, dk=12, dv=10, half=4, ff=37, types=("F32", "F16", "BF16")),
    "legacy": Shape(width=64, heads=4, kv_heads=2, dk=16, dv=16, half=8, ff=96, types=("Q8_0",), bias=True, tied=True),
    "k": Shape(width=256, heads=2, kv_heads=1, dk=128, dv=128, half=20, ff=256, types=("Q4_K",)),
}


@pytest.fixture(params=SHAPES)
def zoo(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Program, Weights]]:
    toy = Zoo(SHAPES[request.param], np.random.default_rng(3))
    program = toy.program()
    gguf.write(tmp_path / "zoo.gguf", {"general.architecture": "zoo"}, toy.tensors)
    with gguf.GGUF.open(tmp_path / "zoo.gguf") as file:
        yield program, Weights(file)


@needs_native
def test_logits_are_the_same_bits(zoo: tuple[Program, Weights]) -> None:
    want = logits_of(Reference(*zoo), zoo[0], SCRIPT)
    assert np.abs(want[0].view(np.float32)).max() > 0.5
    for isa in here():
        for fuse in (True, False):
            got = logits_of(native(*zoo, threads=2, rows=128, isa=isa, fuse=fuse), zoo[0], SCRIPT)
            assert same(got, want), (isa, fuse)


@needs_native
@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_bits_in_any_chunk(zoo: tuple[Program, Weights], threads: int) -> None:
    whole = logits_of(native(*zoo, threads=threads, rows=128), zoo[0], [[(0, 100, 100)]])[0]
    for chunk in (1, 7, 30):
        steps = [[(0, min(chunk, 100 - at), min(chunk, 100 - at))] for at in range(0, 100, chunk)]
        got = logits_of(native(*zoo, threads=threads, rows=32), zoo[0], steps)
        np.testing.assert_array_equal(np.concatenate(got), whole)


@needs_native
def test_every_op_gives_the_same_bits_from_the_same_inputs(zoo: tuple[Program, Weights]) -> None:
    program, weights = zoo
    backend, reference = native(program, weights, rows=128, fuse=False), Reference(program, weights)
    run, own = Run(backend, program), Run(reference, program)
    for step in SCRIPT:
        logits, _, batch = run.step(step)
        own_batch = own.batch(step)
        for op in program.ops:
            if op.kind != "logits":
                check_op(op, program, backend, reference, batch, own_batch, logits)
    run.close()


@needs_native
def test_a_position_past_the_table_is_refused(zoo: tuple[Program, Weights]) -> None:
    run = Run(native(*zoo, rows=200), zoo[0])
    run.step([(0, 128, 1)])
    with pytest.raises(TinySLMError, match="error -3"):
        run.step([(0, 1, 1)])
    run.close()


# ---- formulas ----


def test_activations() -> None:
    x = np.concatenate([np.linspace(-30, 30, 20001), np.geomspace(1e-30, 1, 999), -np.geomspace(1e-30, 1, 999)])
    x = x.astype(np.float32)
    wide = x.astype(np.float64)
    u = np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)
    np.testing.assert_allclose(gelu(x), 0.5 * wide * (1 + np.tanh(u)), rtol=2e-6, atol=1e-9)
    np.testing.assert_allclose(tanh32(x), np.tanh(wide), rtol=4 * U)
    np.testing.assert_array_equal(relu(x), np.maximum(x, 0))


@dataclass(frozen=True)
class Info:
    name: str
    row_bytes: int
    format = BY_NAME["F32"]


class Memory:
    """Float tensors that no file holds."""

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        self.rows = {n: np.atleast_2d(a.astype(np.float32)).view(np.uint8) for n, a in tensors.items()}
        self.tensors = {n: Info(n, self.rows[n].shape[1]) for n in tensors}

    def read(self, info: Info) -> np.ndarray:
        return self.rows[info.name]

    def read_into(self, info: Info, start: int, stop: int, buffer: np.ndarray) -> None:
        buffer[...] = self.rows[info.name][start:stop].ravel()


def run_one(write: Callable[[Builder, Value, Value], Value], tensors: dict[str, np.ndarray]) -> np.ndarray:
    """An op of the rows of x and z, by the reference."""
    n, k = tensors["x"].shape
    b = Builder(1, 64)
    x, z = b.embed(Weight("x", n, k)), b.embed(Weight("z", n, tensors["z"].shape[1]))
    y = write(b, x, z)
    program = b.build()
    reference = Reference(program, Weights(Memory(tensors)))  # type: ignore[arg-type]
    at = np.arange(n, dtype=np.int32)
    batch = Batch(at, at, np.zeros_like(at), at, [[]])
    values: dict[int, np.ndarray] = {}
    for op in program.ops:
        assert op.out
        values[op.out.index] = reference.run(op, [values[v.index] for v in op.reads], batch)
    return values[y.index]


@pytest.fixture
def drawn() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    shapes = {"x": (9, 30), "z": (9, 6), "norm": (30,), "bias": (30,), "cube": (6 * 20, 30), "parts": (6 * 7, 15)}
    return {name: rng.normal(0.3, 1, shape).astype(np.float32) for name, shape in shapes.items()}


def test_layernorm(drawn: dict[str, np.ndarray]) -> None:
    got = run_one(lambda b, x, z: b.layernorm(x, Weight("norm", 30), Weight("bias", 30), 0.1), drawn)
    x = drawn["x"].astype(np.float64)
    want = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 0.1) * drawn["norm"] + drawn["bias"]
    np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.mark.parametrize("own", [True, False])
def test_norms_of_heads(drawn: dict[str, np.ndarray], own: bool) -> None:
    n = 30 if own else 10
    x, w = drawn["x"].reshape(9, 3, 10).astype(np.float64), drawn["norm"][:n].reshape(-1, 10)
    got = run_one(lambda b, x, z: b.rmsnorm(x, Weight("norm", n), 0.1, 3), drawn)
    np.testing.assert_allclose(got, (x / np.sqrt((x**2).mean(2, keepdims=True) + 0.1) * w).reshape(9, 30), atol=2e-6)
    got = run_one(lambda b, x, z: b.layernorm(x, Weight("norm", n), None, 0.1, 3), drawn)
    want = (x - x.mean(2, keepdims=True)) / np.sqrt(x.var(2, keepdims=True) + 0.1) * w
    np.testing.assert_allclose(got, want.reshape(9, 30), atol=2e-6)


def test_positions_scale_and_softcap(drawn: dict[str, np.ndarray]) -> None:
    got = run_one(lambda b, x, z: b.position(Weight("cube", 120, 30), 4), drawn)
    np.testing.assert_array_equal(got, drawn["cube"][4:13])
    np.testing.assert_array_equal(run_one(lambda b, x, z: b.scale(x, 0.1), drawn), drawn["x"] * np.float32(0.1))
    got = run_one(lambda b, x, z: b.softcap(x, 1.5), drawn)
    np.testing.assert_allclose(got, 1.5 * np.tanh(drawn["x"].astype(np.float64) / 1.5), atol=5e-7)


def test_slices_of_a_tensor(drawn: dict[str, np.ndarray]) -> None:
    w = Weight("cube", 17, 30, first=23)
    got = run_one(lambda b, x, z: b.matmul(x, w, Weight("bias", 17, first=13)), drawn)
    np.testing.assert_allclose(got, drawn["x"] @ drawn["cube"][23:40].T + drawn["bias"][13:], atol=1e-5)


def test_routing_takes_the_greatest_and_of_equal_ones_the_first() -> None:
    z = np.array([[1, 3, 2, 3, 0, -1], [0, 0, 0, 0, 0, 0], [-5, -1, -2, 7, 6, 6.5]], np.float32)
    got = run_one(lambda b, x, z: b.route(z, 3), {"x": z, "z": z})
    np.testing.assert_array_equal(got[:, 3:], [[1, 3, 2], [0, 1, 2], [3, 5, 4]])
    best = np.sort(z.astype(np.float64), axis=1)[:, :2:-1]
    np.testing.assert_allclose(got[:, :3], np.exp(best) / np.exp(best).sum(1, keepdims=True), rtol=1e-6)


def test_experts(drawn: dict[str, np.ndarray]) -> None:
    """The same input for each, then a part of it for each, weighted and summed."""
    first = tuple(Weight("cube", 20, 30, first=20 * i) for i in range(6))
    second = tuple(Weight("parts", 7, 15, first=7 * i) for i in range(6))
    logits = drawn["z"].astype(np.float64)
    chosen = np.argsort(-logits, axis=1)[:, :2]
    weights = np.exp(np.take_along_axis(logits, chosen, 1))
    weights /= weights.sum(1, keepdims=True)
    cube, parts = drawn["cube"].reshape(6, 20, 30), drawn["parts"].reshape(6, 7, 15)
    got = run_one(lambda b, x, z: b.experts(x, b.route(z, 2), first), drawn)
    want = np.einsum("rjnk,rk->rjn", cube[chosen], drawn["x"]).reshape(9, 40)
    np.testing.assert_allclose(got, want, atol=2e-5)
    got = run_one(lambda b, x, z: b.mix(b.experts(x, b.route(z, 2), second), b.route(z, 2)), drawn)
    want = np.einsum("rj,rjnk,rjk->rn", weights, parts[chosen], drawn["x"].reshape(9, 2, 15))
    np.testing.assert_allclose(got, want, atol=2e-5)


SHOWN: dict[str, Callable[[Builder, Value, Value], Value]] = {
    "relu": lambda b, x, z: b.act(x, "relu"),
    "gelu": lambda b, x, z: b.act(x, "gelu"),
    "softcap": lambda b, x, z: b.softcap(x, 5.0),
    "route": lambda b, x, z: b.route(x, 2),
    "layernorm": lambda b, x, z: b.layernorm(x, Weight("z", 4), None, 1e-5),
}


@pytest.mark.parametrize("name", SHOWN)
def test_what_is_no_finite_number_shows(name: str) -> None:
    bad = np.array([[np.inf] * 4, [-np.inf] * 4, [np.nan] * 4, [1, 2, 3, 4]], np.float32)
    got = run_one(SHOWN[name], {"x": bad, "z": np.ones((4, 4), np.float32)})
    np.testing.assert_array_equal(np.isfinite(got).all(axis=1), [False, False, False, True])
