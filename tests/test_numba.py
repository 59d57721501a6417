"""The numba backend against the reference, the golden files and itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numba as nb
import numpy as np
import pytest
from toys import Run, Shape, write_toy

from tinyslm import config, gguf, models
from tinyslm.backends import base, numba, numba_memory
from tinyslm.backends.arithmetic import round_activations
from tinyslm.backends.numba import Numba
from tinyslm.backends.reference import Reference
from tinyslm.errors import CancelledError, OptionError
from tinyslm.formats import BY_NAME
from tinyslm.ops import ACTIVATIONS, Builder, Program, Value, Weight

STORIES = Path(__file__).resolve().parents[2] / "shared" / "data" / "stories260K"
needs_stories = pytest.mark.skipif(not STORIES.exists(), reason="the real files are not here")
TYPES = sorted(numba.numba_formats.DIRECT)
SHAPES = {
    "odd": Shape(),
    "grouped": Shape(width=40, heads=6, kv_heads=3, half=3, ff=67, bias=True, tied=True, permuted=True, magnitude=1.3),
    "wide values": Shape(heads=4, kv_heads=1, dk=10, dv=6, half=5, types=("F16", "BF16")),
    "window": Shape(heads=4, kv_heads=2, dk=12, dv=8, layers=3, window=9, softcap=1.5),
    "32": Shape(width=96, heads=3, kv_heads=3, dk=32, dv=32, half=16, ff=64, types=("Q8_0", "Q4_0", "Q5_1"), bias=True),
    "32, the others": Shape(width=32, heads=4, kv_heads=2, ff=160, types=("Q5_0", "Q4_1", "F16"), permuted=True),
    "256": Shape(width=256, heads=8, kv_heads=4, dk=32, dv=32, half=16, ff=512, types=("Q6_K", "Q4_0"), tied=True),
}
STEPS = [[(0, 70, 70), (1, 5, 1)], [(1, 1, 1), (0, 1, 1), (2, 3, 0)], [(2, 130, 2)]]


FILES: list[gguf.GGUF] = []


@pytest.fixture(autouse=True)
def close_files() -> Iterator[None]:
    yield
    while FILES:
        FILES.pop().close()


def weights_of(path: Path) -> base.Weights:
    FILES.append(gguf.GGUF.open(path))
    return base.Weights(FILES[-1])


def pair(path: Path, shape: Shape, threads: int = 1) -> tuple[Program, base.Weights, Numba]:
    program = write_toy(path / "toy.gguf", shape)
    weights = weights_of(path / "toy.gguf")
    return program, weights, Numba(program, weights, threads)


def logits_of(backend: Any, program: Program, steps: Any = STEPS) -> list[np.ndarray]:
    run = Run(backend, program)
    found = []
    for step in steps:
        logits, bad, _ = run.step(step)
        assert not bad.any()
        found.append(logits)
    return found


def stories(name: str) -> tuple[Program, base.Weights, dict[str, Any]]:
    weights = weights_of(STORIES / f"stories260K-{name}.gguf")
    file = weights.file
    tensors = models.Tensors(file.path, file.tensors, lambda w: weights.floats(Weight(w, 0)))
    golden = json.loads((STORIES / f"stories260K-{name}.golden.json").read_text())
    return models.build(config.Keys(file.path, file.metadata), tensors), weights, golden


def batch(ids: list[int], start: int, pages: list[Any], wanted: int = 1) -> base.Batch:
    n = len(ids)
    arrays = (np.array(a, np.int32) for a in (ids, range(start, start + n), [0] * n, range(n - wanted, n)))
    return base.Batch(*arrays, [pages])


@needs_stories
@pytest.mark.parametrize("name", ["f32", "F16", "Q8_0", "Q4_0", "Q5_1"])
def test_golden_logits(name: str) -> None:
    program, weights, golden = stories(name)
    found = {}
    for backend in (Numba(program, weights), Reference(program, weights)):
        logits = np.zeros((1, program.vocab), np.float32)
        bad = backend.step(batch(golden["prompt_ids"], 0, [backend.new_page()]), logits)
        assert not bad.any()
        found[backend.name] = logits[0]
    error = found["numba"] - np.array(golden["last_logits"])
    assert np.abs(error).max() < {"f32": 1e-2, "F16": 2e-2}.get(name, 0.5)
    assert np.sqrt((error**2).mean()) < 0.15
    assert np.abs(found["numba"] - found["reference"]).max() < 1e-3  # a key that rounds to the other f16 moves 7e-4


@needs_stories
def test_greedy_tokens_of_the_real_file() -> None:
    program, weights, golden = stories("f32")
    backend, logits, ids = Numba(program, weights), np.zeros((1, program.vocab), np.float32), golden["prompt_ids"]
    pages = [backend.new_page() for _ in range(4)]
    backend.step(batch(ids, 0, pages), logits)
    found: list[int] = []
    while len(found) < 200:
        found.append(int(logits.argmax()))
        backend.step(batch(found[-1:], len(ids) + len(found) - 1, pages), logits)
    assert found == golden["greedy_ids"]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_like_the_reference(tmp_path: Path, shape: Shape) -> None:
    program, weights, backend = pair(tmp_path, shape)
    expected = np.concatenate(logits_of(Reference(program, weights), program))
    error = np.abs(np.concatenate(logits_of(backend, program)) - expected).max(axis=1)
    # A code or a key that rounds the other way, for a difference in the last bits before it, moves all tokens after it.
    assert np.quantile(error, 0.2) < 2e-5
    assert error.max() < 0.2


@pytest.mark.parametrize("shape", ["32", "256"])
def test_activations_left_as_they_are(tmp_path: Path, shape: str) -> None:
    program, weights, _ = pair(tmp_path, SHAPES[shape])
    found = np.concatenate(logits_of(Numba(program, weights, 2, activations=0), program))
    expected = np.concatenate(logits_of(Reference(program, weights, int8=False), program))
    assert np.abs(found - expected).max() < 2e-3  # a key that rounds to the other f16
    assert np.quantile(np.abs(found - expected), 0.1) < 2e-5


def test_activations_rounded_in_the_types_own_blocks(tmp_path: Path) -> None:
    """They give what the kernels of those types do; F16 weights meet them as they are."""
    shape = Shape(width=128, heads=4, kv_heads=4, dk=32, dv=32, half=16, ff=192, types=("Q8_0", "F16", "Q4_1"))
    program, weights, backend = pair(tmp_path, shape)
    expected, found, plain = (
        logits_of(b, program, [[(name, 2, 2) for name in range(20)]])[0]
        for b in (backend, Numba(program, weights, 2, activations=32), Numba(program, weights, activations=0))
    )
    assert np.median(np.abs(found - expected).max(axis=1)) < 2e-5  # some code may round the other way
    assert np.median(np.abs(found - plain).max(axis=1)) > 1e-3


@pytest.mark.parametrize("block", [64, 96])
def test_activations_rounded_in_other_blocks(tmp_path: Path, block: int) -> None:
    kind, plain, rng = BY_NAME["Q5_0"], BY_NAME["F32"], np.random.default_rng(0)
    x, w = (rng.standard_normal((n, 192), np.float32) for n in (9, 7))
    tensors = [("x", (192, 9), plain.id, x), ("w", (192, 7), kind.id, kind.quantise(w))]
    gguf.write(tmp_path / "one.gguf", {"general.architecture": "toy"}, tensors)
    b = Builder(7, 64)
    b.logits(b.matmul(b.select(b.embed(Weight("x", 9, 192))), Weight("w", 7, 192)))
    program, weights = b.build(), weights_of(tmp_path / "one.gguf")
    found = np.empty((9, 7), np.float32)
    rounding = Numba(program, weights, activations=block)
    assert not rounding.step(batch(list(range(9)), 0, [rounding.new_page()], 9), found).any()
    codes, scale = round_activations(x, block)
    expected = (codes * scale.repeat(block, axis=1)).astype(np.float64) @ weights.floats(Weight("w", 7, 192)).T
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    assert np.abs(found - x @ weights.floats(Weight("w", 7, 192)).T).max() > 1e-2


@pytest.mark.parametrize(
    ("activations", "said"),
    [(-32, r"multiple of \d+, or 0"), (40, "a multiple"), (64, "rows of 96, no multiple of it")],
)
def test_activations_that_cannot_be(tmp_path: Path, activations: int, said: str) -> None:
    program = write_toy(tmp_path / "toy.gguf", SHAPES["32"])
    with pytest.raises(OptionError, match=said):
        Numba(program, weights_of(tmp_path / "toy.gguf"), activations=activations)


@pytest.mark.parametrize("shape", ["grouped", "32", "256"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_bits_in_any_batch_chunk_and_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str, threads: int
) -> None:
    monkeypatch.setattr(numba, "PARALLEL", 0)
    program, weights, backend = pair(tmp_path, SHAPES[shape], threads)
    whole = logits_of(backend, program, [[(5, 150, 150)]])[0]
    for chunk in (1, 7, 64):
        steps = [[(5, min(chunk, 150 - at), min(chunk, 150 - at))] for at in range(0, 150, chunk)]
        np.testing.assert_array_equal(np.concatenate(logits_of(backend, program, steps)), whole)
    beside = logits_of(backend, program, [[(1, 33, 1)], [(2, 5, 5), (5, 150, 150), (1, 1, 0)]])[1]
    np.testing.assert_array_equal(beside[5:], whole)
    backend.close()
    alone = logits_of(Numba(program, weights), program, [[(5, 150, 150)]])
    np.testing.assert_array_equal(alone[0], whole)


class Memory:
    """Tensors that no file holds."""

    def __init__(self, **rows: tuple[str, np.ndarray]) -> None:
        self.rows = {name: np.atleast_2d(data) for name, (_, data) in rows.items()}
        self.tensors = {
            name: SimpleNamespace(name=name, format=BY_NAME[kind], row_bytes=self.rows[name].shape[1])
            for name, (kind, _) in rows.items()
        }

    def read(self, tensor: Any) -> np.ndarray:
        return self.rows[tensor.name].copy()

    def read_into(self, tensor: Any, start: int, stop: int, buffer: np.ndarray) -> None:
        buffer[...] = self.rows[tensor.name][start:stop].ravel()


def floats(values: np.ndarray) -> tuple[str, np.ndarray]:
    return "F32", np.asarray(values, np.float32).view(np.uint8)


@pytest.mark.parametrize("name", TYPES)
def test_each_format_row_by_row(name: str) -> None:
    """Embedding gives the oracle's floats to the bit; a product differs from it by the rounding of sums alone."""
    rng = np.random.default_rng(1)
    kind, n, k = BY_NAME[name], 45, 768
    spread = np.exp(rng.normal(size=(n, 1)))
    weights = kind.quantise((rng.normal(size=(n, k)) * spread).astype(np.float32))
    if kind.block > 1:  # all codes and group scales; the f16 scale and minimum stay
        codes = weights.reshape(-1, kind.bytes)[:, slice(0, 208) if name == "Q6_K" else slice(4, None)]
        codes[...] = rng.integers(0, 256, codes.shape)

    b = Builder(k, 64)
    b.logits(b.select(b.embed(Weight("w", n, k))))
    embed = b.build()
    got = np.zeros((n, k), np.float32)
    step = base.Batch(*(np.arange(n, dtype=np.int32) for _ in range(2)), np.zeros(n, np.int32), np.arange(n), [[]])
    Numba(embed, base.Weights(Memory(w=(name, weights)))).step(step, got)  # type: ignore[arg-type]
    np.testing.assert_array_equal(got, kind.dequantise(weights))

    b = Builder(n, 64)
    b.logits(b.matmul(b.select(b.embed(Weight("x", 9, k))), Weight("w", n, k)))
    product, results = b.build(), []
    memory = base.Weights(Memory(w=(name, weights), x=floats(rng.normal(size=(9, k)))))  # type: ignore[arg-type]
    few = base.Batch(*(np.arange(9, dtype=np.int32) for _ in range(2)), np.zeros(9, np.int32), np.arange(9), [[]])
    for backend in (Numba(product, memory), Reference(product, memory)):
        results.append(np.zeros((9, n), np.float32))
        backend.step(few, results[-1])
    scale = np.abs(kind.dequantise(weights)).sum(axis=1)
    assert (np.abs(results[0] - results[1]) < 1e-6 * scale).all()


EXPERTS = tuple(Weight("z", 44, 44, first=3 * i) for i in range(44))
PARTS = tuple(Weight("part", 22, 22, first=i) for i in range(44))
OPS: dict[str, Callable[[Builder, Value, Value], Value]] = {
    "rmsnorm": lambda b, x, z: b.rmsnorm(x, Weight("norm", 44), 0.1),
    "rmsnorm of heads": lambda b, x, z: b.rmsnorm(x, Weight("norm", 11), 0.1, 4),
    "rmsnorm of heads, each its own": lambda b, x, z: b.rmsnorm(x, Weight("norm", 44), 0.1, 4),
    "layernorm": lambda b, x, z: b.layernorm(x, Weight("norm", 44), Weight("bias", 44), 0.1),
    "layernorm of heads": lambda b, x, z: b.layernorm(x, Weight("norm", 44), None, 0.1, 4),
    "position": lambda b, x, z: b.add(x, b.position(Weight("z", 200, 44), 7)),
    "scale": lambda b, x, z: b.scale(x, 0.37),
    "softcap": lambda b, x, z: b.softcap(x, 1.5),
    **{name: lambda b, x, z, name=name: b.act(x, name) for name in ACTIVATIONS},  # type: ignore[misc]
    **{f"glu of {name}": lambda b, x, z, name=name: b.glu(x, z, name) for name in ACTIVATIONS},  # type: ignore[misc]
    "route": lambda b, x, z: b.add(b.route(x, 22), z),
    "experts": lambda b, x, z: b.mix(b.experts(x, b.route(z, 3), EXPERTS), b.route(z, 3)),
    "experts on parts": lambda b, x, z: b.experts(x, b.route(z, 2), PARTS),
    "rope": lambda b, x, z: b.rope(x, 4, b.table([1.0, 0.3, 0.001], 1.25)),
    "rope, whole heads": lambda b, x, z: b.rope(x, 2, b.table(0.7 ** np.arange(11))),
    "attend": lambda b, x, z: b.attend(x, b.store(x, z, 4), 4, 0.3),
    "attend in groups": lambda b, x, z: b.attend(x, b.store(*[b.embed(Weight("half", 200, 22))] * 2, 2), 4, 0.3),
    "glu": lambda b, x, z: b.glu(x, z, "silu"),
    "add": lambda b, x, z: b.add(x, z),
}


@pytest.mark.parametrize("name", OPS)
def test_each_op_on_the_same_input(name: str) -> None:
    rng = np.random.default_rng(2)
    n = 200
    b = Builder(44, 512)
    b.logits(b.select(OPS[name](b, b.embed(Weight("x", n, 44)), b.embed(Weight("z", n, 44)))))
    x, z = rng.normal(0, 3, (n, 44)), rng.normal(size=(n, 44))
    memory = Memory(
        x=floats(x),
        z=floats(z),
        half=floats(x[:, 22:]),
        norm=floats(z[0]),
        bias=floats(z[1]),
        part=floats(x[:66, :22] / 4),
    )
    program, weights, results = b.build(), base.Weights(memory), []  # type: ignore[arg-type]
    for backend in (Numba(program, weights), Reference(program, weights)):
        pages = [[backend.new_page() for _ in range(3)], [backend.new_page()]]
        lengths = ([*range(170), *range(30)], [0] * 170 + [1] * 30)
        arrays = (np.array(a, np.int32) for a in (range(n), *lengths, range(0, n, 3)))
        results.append(np.zeros((67, 44), np.float32))
        assert not backend.step(base.Batch(*arrays, pages), results[-1]).any()
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5, atol=1e-5)


def test_a_type_without_kernels_becomes_floats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, weights, backend = pair(tmp_path, SHAPES["wide values"])
    expected = logits_of(backend, program)
    monkeypatch.setattr(numba.numba_formats, "DIRECT", ("F32",))
    for got, once in zip(logits_of(Numba(program, weights), program), expected, strict=True):
        np.testing.assert_allclose(got, once, atol=1e-3)


def spoilt(row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two sequences of three through one layer, where the second token embeds as `row` and its logits are not wanted.

    Logits, and which tokens are bad.
    """
    rng = np.random.default_rng(0)
    table = rng.normal(size=(8, 32)).astype(np.float32)
    table[3] = row
    b = Builder(8, 64)
    x = b.embed(Weight("x", 8, 32))
    store = b.store(x, x, 2)
    wanted = b.select(x)
    y = b.add(b.attend(wanted, store, 2, 0.1), b.rmsnorm(wanted, Weight("norm", 32), 1e-5))
    b.logits(b.matmul(y, Weight("out", 8, 32)))
    out = BY_NAME["Q8_0"].quantise(rng.normal(size=(8, 32)).astype(np.float32))
    memory = Memory(x=floats(table), norm=floats(np.ones(32)), out=("Q8_0", out))
    backend = Numba(b.build(), base.Weights(memory))  # type: ignore[arg-type]
    ids, positions, sequence = ([1, 3, 2, 4, 5, 6], [0, 1, 2, 0, 1, 2], [0, 0, 0, 1, 1, 1])
    arrays = (np.array(a, np.int32) for a in (ids, positions, sequence, [0, 2, 3, 4, 5]))
    logits = np.zeros((5, 8), np.float32)
    bad = backend.step(base.Batch(*arrays, [[backend.new_page()], [backend.new_page()]]), logits)
    return logits, bad


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 7e4])
def test_numbers_that_are_not_finite_are_told_and_stay_in_their_sequence(value: float) -> None:
    """7e4 is finite as a float32 and infinite as a float16."""
    clean, none = spoilt(np.ones(32))
    assert not none.any()
    row = np.ones(32)
    row[17] = value
    logits, bad = spoilt(row)
    assert bad.tolist() == [False, True, True, False, False, False]  # token 2 looks at token 1
    np.testing.assert_array_equal(logits[[0, 2, 3, 4]], clean[[0, 2, 3, 4]])


def test_pages_are_copied_and_what_stands_behind_a_row_does_not_matter(tmp_path: Path) -> None:
    program, _, backend = pair(tmp_path, SHAPES["grouped"])
    run = Run(backend, program)
    run.step([(0, 80, 1)])
    copies = [backend.new_page() for _ in run.pages[0]]
    for copy, page in zip(copies, run.pages[0], strict=True):
        backend.copy_page(copy, page)
    run.pages[0][1].memory[...] = 0x7E00  # nan
    expected = logits_of(backend, program, [[(0, 80, 1)], [(0, 1, 1)]])[1]
    copies[1].memory.reshape(-1, base.PAGE)[:, 17:] = 0x7C00  # inf behind position 80
    run.pages[0] = copies
    logits, bad, _ = run.step([(0, 1, 1)])
    assert not bad.any()
    np.testing.assert_array_equal(logits, expected)
    assert backend.page_bytes == copies[0].memory.nbytes


def forever(step: Callable[[], object]) -> None:
    while True:
        step()


def test_cancel_ends_the_step_and_the_next_one_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba, "PARALLEL", 0)
    program, _, backend = pair(tmp_path, SHAPES["256"], threads=2)
    expected = logits_of(backend, program)
    backend.cancel()
    with pytest.raises(CancelledError):
        Run(backend, program).step([(0, 1, 1)])
    run, timer = Run(backend, program), threading.Timer(0.05, backend.cancel)
    timer.start()
    with pytest.raises(CancelledError):
        forever(lambda: (run.lengths.clear(), run.step([(0, 300, 300)])))
    timer.join()
    for got, once in zip(logits_of(backend, program), expected, strict=True):
        np.testing.assert_array_equal(got, once)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_helpers_start_anew_after_a_fork(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba, "PARALLEL", 0)
    program, _, backend = pair(tmp_path, SHAPES["32"], threads=2)
    expected = logits_of(backend, program)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads at a fork
        child = os.fork()
    if not child:
        before = backend._helpers._queues
        same = all(map(np.array_equal, logits_of(backend, program), expected))
        os._exit(0 if same and backend._helpers._queues is not before else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_floats_of_16_bits_and_the_exponential() -> None:
    @nb.njit
    def each(bits: Any, x: Any, y: Any) -> Any:
        wide = np.empty(len(bits), np.float32)
        for i in range(len(bits)):
            wide[i] = numba_memory.half(bits[i])
        narrow, power = np.empty(len(x), np.uint16), np.empty(len(y), np.float32)
        for i in range(len(x)):
            narrow[i] = numba_memory.to_half(x[i])
        for i in range(len(y)):
            power[i] = numba_memory.exp32(y[i])
        return wide, narrow, power

    bits = np.arange(1 << 16, dtype=np.uint16)
    rng = np.random.default_rng(0)
    halves = bits.view(np.float16).astype(np.float32)
    finite = np.unique(halves[np.isfinite(halves)])
    between = (finite[:-1] + finite[1:]) / 2
    x = np.concatenate([halves, between, rng.integers(0, 1 << 32, 100_000, np.uint32).view(np.float32)])
    x = np.concatenate([x[~np.isnan(x)], np.array([65519.996, 65520, 65536, 1e-30], np.float32)])
    y = np.linspace(-86.9, 88, 100_001, dtype=np.float32)
    edges = np.array([-np.inf, -1e4, 0, np.nan], np.float32)
    wide, narrow, power = each(bits, x, np.concatenate([y, edges]))
    np.testing.assert_array_equal(wide, halves)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(narrow, x.astype(np.float16).view(np.uint16))
    np.testing.assert_allclose(power[:-4], np.exp(y.astype(np.float64)), rtol=2e-7)
    np.testing.assert_array_equal(power[-4:], np.array([0, 0, 1, np.nan], np.float32))


def test_without_a_folder_for_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_ = nb.njit

    def refusing(*args: Any, cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available for file")
        return compile_(*args, **options)

    monkeypatch.setattr(nb, "njit", refusing)
    assert numba_memory.cached(lambda x: x + 1)(1) == 2


def test_numba_is_imported_by_this_backend_alone() -> None:
    code = "import sys, tinyslm, tinyslm.backends.reference; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
