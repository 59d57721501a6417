"""The C kernels, one at a time through the built extension: panels to the bit against the file and the NumPy formats,
products against float64, angles and exponentials against extended precision, all on every instruction set here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from blocks import any_rows, sound_rows

from tinyslm.backends import arithmetic
from tinyslm.backends.base import ACTIVATION_BLOCK, Batch, Weights
from tinyslm.errors import BackendError, UnsupportedError
from tinyslm.formats import BY_NAME, FORMATS, Format
from tinyslm.gguf import GGUF, write
from tinyslm.ops import Builder, Program, Weight

native = pytest.importorskip("tinyslm.backends.native", reason="the C core is not built")
lib, ffi = native.lib, native.ffi

ISAS = [name for name, here in native.isa_names() if here]
PANELS = [f for f in FORMATS.values() if lib.slm_panel_bytes(f.id, f.block)]
ALL = pytest.mark.parametrize("kind", PANELS, ids=lambda f: f.name)
U = 2.0**-24  # a rounding to float32 is off by at most this share
FORCED = pytest.mark.parametrize("isa", ISAS)


def bytes_at(a: np.ndarray) -> object:
    return ffi.from_buffer("uint8_t[]", a, require_writable=False)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal to the bit, but that one nan is as good as another."""
    return bool((np.isnan(a) == np.isnan(b)).all() and (a.view(np.int32) == b.view(np.int32))[~np.isnan(a)].all())


# ---- panels ----


@ALL
@pytest.mark.parametrize("blocks", [1, 3, 7])
def test_a_packed_row_has_the_values_of_the_row_in_the_file(kind: Format, blocks: int) -> None:
    rng = np.random.default_rng(blocks)
    k = kind.block * blocks * (5 if kind.block == 1 else 1)
    source = any_rows(kind, 37, k, rng)
    order = np.concatenate([rng.permutation(37), [-1, 3, 3, -1, -1, 0, 36, -1, -1, -1, -1]]).astype(np.int32)
    panel = lib.slm_panel_bytes(kind.id, k)
    packed = np.full(3 * panel + 64, 0xA5, np.uint8)
    assert lib.slm_pack(kind.id, k, bytes_at(source), ffi.from_buffer("int32_t[]", order), 3, bytes_at(packed)) == 0
    assert (packed[-64:] == 0xA5).all(), "it wrote past its panels"
    values, zeros = kind.dequantise(source), kind.dequantise(np.zeros_like(source[0]))
    for i, row in enumerate(order):
        back = np.full(k + 2, 7, np.float32)
        assert lib.slm_unpack(kind.id, k, bytes_at(packed), i, ffi.from_buffer("float[]", back)) == 0
        assert same(back[:-2], values[row] if row >= 0 else zeros), f"{i}: row {row}"
        assert (back[-2:] == 7).all()


@ALL
@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 9, 32])
def test_panels_take_the_bytes_of_the_file(kind: Format, blocks: int) -> None:
    """But for what rounds them up to 64 bytes; codebooks are unpacked, to less than twice that; F64 becomes F32."""
    k = 64 * blocks * kind.block
    panel, rows = lib.slm_panel_bytes(kind.id, k), 16 * lib.slm_row_bytes(kind.id, k)
    wide = 2 if kind.name.startswith(("IQ1", "IQ2", "IQ3", "TQ1")) else 1
    assert panel <= rows * max(wide, 1.016)
    assert panel >= rows * (0.5 if kind.name == "F64" else 1)
    few = blocks * kind.block
    assert lib.slm_panel_bytes(kind.id, few) <= 16 * lib.slm_row_bytes(kind.id, few) * wide + 64 * blocks


@ALL
def test_a_row_of_the_file_has_the_values_that_the_formats_give(kind: Format) -> None:
    k = kind.block * (7 if kind.block > 1 else 100)
    source = any_rows(kind, 400, k, np.random.default_rng(0))
    for row, expected in zip(source, kind.dequantise(source), strict=True):
        values = np.zeros(k, np.float32)
        assert lib.slm_dequantise(kind.id, k, bytes_at(row), ffi.from_buffer("float[]", values)) == 0
        assert same(values, expected)


def test_what_has_no_panels_is_refused() -> None:
    assert lib.slm_panel_bytes(24, 32) == lib.slm_panel_bytes(999, 32) == lib.slm_panel_bytes(-1, 32) == 0
    assert lib.slm_panel_bytes(lib.SLM_Q4_0, 33) == lib.slm_panel_bytes(lib.SLM_Q4_0, 0) == 0
    assert lib.slm_unpack(24, 32, ffi.NULL, 0, ffi.NULL) == lib.SLM_E_TYPE
    assert lib.slm_dequantise(lib.SLM_Q6_K, 32, ffi.NULL, ffi.NULL) == lib.SLM_E_TYPE


def test_a_matrix_of_plain_integers_is_refused_by_name(tmp_path: Path) -> None:
    b = Builder(8, 64)
    b.logits(b.matmul(b.select(b.embed(Weight("x", 8, 8))), Weight("counts", 8, 8)))
    tensors = {"x": table(np.zeros((8, 8))), "counts": (BY_NAME["I8"], np.zeros((8, 8), np.uint8))}
    with pytest.raises(UnsupportedError, match=r"no kernels.*llama-quantize.*'counts'.*I8"):  # noqa: SIM117
        with running(tmp_path / "model.gguf", b.build(), tensors, "scalar"):
            pass


# ---- programs of one op ----


@contextmanager
def running(
    path: Path, program: Program, tensors: dict[str, tuple[Format, np.ndarray]], isa: str, fuse: bool = True
) -> Iterator[native.Native]:
    shapes = {w.name: (w.k or 1, w.n) for w in program.weights()}
    write(path, {}, [(name, shapes[name], kind.id, rows) for name, (kind, rows) in tensors.items()])
    with GGUF.open(path) as file:
        backend = native.Native(program, Weights(file), isa=isa, fuse=fuse, rows=512)
        try:
            yield backend
        finally:
            backend.close()


F32 = FORMATS[0]


def table(values: np.ndarray) -> tuple[Format, np.ndarray]:
    return F32, np.ascontiguousarray(values, np.float32).view(np.uint8)


def ints(values: Sequence[int]) -> np.ndarray:
    return np.array(values, np.int32)


def apart(ids: Sequence[int], positions: Sequence[int]) -> Batch:
    """Tokens each of a sequence of its own, for programs that store nothing: their pages are not there."""
    n = len(ids)
    return Batch(ints(ids), ints(positions), ints(range(n)), ints(range(n)), [[0] * (p // 64 + 1) for p in positions])


def activations(k: int, rng: np.random.Generator) -> np.ndarray:
    """21 rows: plain, denormal, vast, zero, broken (the fifth), of one magnitude and sign, of blocks near the least."""
    x = rng.standard_normal((21, k)).astype(np.float32)
    x[1] *= np.float32(1e-40)
    x[2] *= np.float32(1e25)
    x[3] = 0
    x[4, k // 2] = np.nan
    x[5], x[6], x[7] = 3, -0.25, np.where(np.arange(k) % 2, 1, -1)
    x[8] *= np.where(np.arange(k) // 32 % 2, 2.0**-101, 2.0**-98)
    x[9] *= np.exp(rng.uniform(-60, 60, k))
    return x


def product(kind: Format, rows: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """W x in float64 over the weights as they are decoded and the activations as they are rounded, and how far the
    engine may be from it: half a unit for each rounding that it makes, at the size of the sum there (Higham, Accuracy
    and Stability of Numerical Algorithms, section 3.3), and as much for each weight and scale that is rounded."""
    w, block = kind.dequantise(rows).astype(np.float64), ACTIVATION_BLOCK.get(kind.name)
    a = x.astype(np.float64)
    if block:
        codes, scale = arithmetic.round_activations(x, block)
        a = codes * np.repeat(scale.astype(np.float64), block, axis=1)
    least = np.zeros_like(w)
    parts = kind.integers(rows) if kind.integers else None
    if parts and parts.minimum is not None:
        least = np.repeat(np.abs(parts.minimum), kind.block, axis=1) * (1 if parts.multiple is None else parts.multiple)
    out, bound = np.empty((len(x), len(w))), np.empty((len(x), len(w)))
    for i, row in enumerate(a):
        sums = (w * row).reshape(len(w), -1, block or 1).sum(axis=2).cumsum(axis=1)
        out[i] = sums[:, -1]
        bound[i] = U * (2 * np.abs(sums).sum(axis=1) + 6 * ((np.abs(w) + 2 * least) @ np.abs(row)))
    return out, bound + w.shape[1] * 2.0**-126


def reference_product(kind: Format, rows: np.ndarray, x: np.ndarray) -> np.ndarray:
    if not kind.integers:
        return arithmetic.float_dots(x, kind.dequantise(rows))
    return arithmetic.block_dots(*arithmetic.round_activations(x, ACTIVATION_BLOCK[kind.name]), kind.integers(rows))


@ALL
@pytest.mark.parametrize("blocks", [1, 5, -1])
def test_products_have_the_bits_of_the_reference_and_are_as_near_as_rounding_allows(
    kind: Format, blocks: int, tmp_path: Path
) -> None:
    k = 8192 + kind.block if blocks < 0 else blocks * kind.block
    rng = np.random.default_rng([kind.id, k])
    rows, x = sound_rows(kind, 37, k, rng), activations(k, rng)
    b = Builder(37, 64)
    b.logits(b.matmul(b.select(b.embed(Weight("x", 21, k))), Weight("w", 37, k)))
    program, tensors = b.build(), {"x": table(x), "w": (kind, rows)}
    with np.errstate(invalid="ignore"):
        expected, bound = product(kind, rows, x)
        reference = reference_product(kind, rows, x)
    first: dict[int, np.ndarray] = {}
    for isa in ISAS:
        with running(tmp_path / "model.gguf", program, tensors, isa) as backend:
            for count in range(1, 21) if blocks > 0 else (1, 2, 3, 7, 8, 9, 20):
                ids = [(5 * count + i) % 21 for i in range(count)]
                got = np.full((count, 37), 7, np.float32)
                bad = backend.step(apart(ids, [0] * count), got)
                for row, (i, broken) in enumerate(zip(ids, bad, strict=True)):
                    assert broken == (i == 4), f"{isa}: {count} rows, activations {i}: flagged {broken}"
                    if not broken:
                        kept = first.setdefault(i, got[row])
                        assert same(got[row], kept), f"{isa}: {count} rows, activations {i}: other bits"
                        assert backend.maxima is not None
                        most = np.maximum.reduceat(got[row], [0, 16, 32])
                        np.testing.assert_array_equal(
                            backend.maxima[row], most, f"{isa}: {count} rows, activations {i}"
                        )
    assert len(first) == 20
    for i, got in first.items():
        assert same(got, reference[i]), f"activations {i}: other bits than the reference's"
        assert (np.abs(got - expected[i]) <= bound[i]).all(), f"activations {i}: {np.abs(got - expected[i]) / bound[i]}"


def ulps(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Distance in units of the last place of the exact value as a float32."""
    unit = np.spacing(np.abs(exact).astype(np.float32)).astype(np.longdouble)
    distance: np.ndarray = np.abs(got.astype(np.longdouble) - exact) / unit
    return distance


@FORCED
def test_sines_and_cosines_to_one_unit(isa: str, tmp_path: Path) -> None:
    frequency = np.concatenate([500000.0 ** -(np.arange(29) / 29), [1.0, 0.9999999, 3.0, 1e-9, 0.1]])
    half = len(frequency)
    b = Builder(8, 1 << 18)
    turned = b.rope(b.embed(Weight("x", 1, 2 * half)), 1, b.table(frequency))
    b.logits(b.matmul(b.select(turned), Weight("w", 8, 2 * half)))
    tensors = {"x": table(np.repeat([1.0, 0.0], half)[None]), "w": table(np.zeros((8, 2 * half)))}
    rng = np.random.default_rng(1)
    edges = [0, 1, 2, 3, 22, 355, 710, 103993, 104348, 131070, 131071, 131072]
    positions = [*edges, *rng.integers(0, 131073, 500).tolist()]
    with running(tmp_path / "model.gguf", b.build(), tensors, isa, fuse=False) as backend:
        got = []
        for at in range(0, len(positions), 64):
            part = positions[at : at + 64]
            assert not backend.step(apart([0] * len(part), part), np.empty((len(part), 8), np.float32)).any()
            got.append(backend.value(turned, len(part)))
    values = np.concatenate(got)
    angle = (np.array(positions, np.float64)[:, None] * frequency).astype(np.longdouble)
    assert ulps(values[:, :half], np.cos(angle)).max() <= 1
    assert ulps(values[:, half:], np.sin(angle)).max() <= 1


@FORCED
def test_silu_to_two_units(isa: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    x = np.concatenate([rng.uniform(-87, 87, 4000), rng.uniform(-2, 2, 4000), rng.uniform(-1e-3, 1e-3, 400)])
    far = np.array([-88, -100, -1e4, -3e38, 88, 100, 3e38, 0], np.float32)
    x = np.concatenate([x.astype(np.float32), far])
    n = len(x) // 8
    x = x.reshape(n, 8)
    b = Builder(n, 64)
    gated = b.glu(b.embed(Weight("x", n, 8)), b.embed(Weight("one", n, 8)), "silu")
    b.logits(b.matmul(b.select(gated), Weight("w", n, 8)))
    tensors = {"x": table(x), "one": table(np.ones((n, 8))), "w": table(np.zeros((n, 8)))}
    with running(tmp_path / "model.gguf", b.build(), tensors, isa, fuse=False) as backend:
        got = []
        for at in range(0, n, 512):
            ids = range(at, min(at + 512, n))
            backend.step(apart(ids, [0] * len(ids)), np.empty((len(ids), n), np.float32))
            got.append(backend.value(gated, len(ids)))
    values, wide = np.concatenate(got), x.astype(np.longdouble)
    assert ulps(values[:-1], wide[:-1] / (1 + np.exp(-wide[:-1]))).max() <= 2
    assert (np.abs(values[-1, :3]) <= 1e-30).all(), values[-1]
    assert list(values[-1, 4:]) == list(far[4:])


@FORCED
def test_softmax_to_two_units(isa: str, tmp_path: Path) -> None:
    """Two positions with scores 0 and x and values 0 and 1: the result is e^x / (1 + e^x), below -17 e^x alone."""
    x = np.concatenate([np.linspace(-86.9, 0, 120), -np.logspace(-6, 1, 80)]).astype(np.float32)
    n = len(x)
    q, k, v = np.zeros((n + 1, 8), np.float32), np.zeros((n + 1, 8), np.float32), np.zeros((n + 1, 8), np.float32)
    q[:n, 0], k[:n, 0], v[:n] = x, 1, 1  # the last row of each is the first position's
    b = Builder(n + 1, 64)
    store = b.store(b.embed(Weight("k", n + 1, 8)), b.embed(Weight("v", n + 1, 8)), 1)
    out = b.attend(b.embed(Weight("q", n + 1, 8)), store, 1, 1.0)
    b.logits(b.matmul(b.select(out), Weight("w", n + 1, 8)))
    tensors = {"q": table(q), "k": table(k), "v": table(v), "w": table(np.zeros((n + 1, 8)))}
    with running(tmp_path / "model.gguf", b.build(), tensors, isa, fuse=False) as backend:
        pages = [[backend.new_page()] for _ in range(n)]
        ids = [i for pair in zip([n] * n, range(n), strict=True) for i in pair]
        batch = Batch(ints(ids), ints([0, 1] * n), ints(np.repeat(range(n), 2).tolist()), ints([1]), pages)
        assert not backend.step(batch, np.empty((1, n + 1), np.float32)).any()
        got = backend.value(out, 2 * n)[1::2, 0]
        for (page,) in pages:
            backend.free_page(page)
    wide = x.astype(np.longdouble)
    assert ulps(got, np.exp(wide) / (1 + np.exp(wide))).max() <= 2


def test_pages_given_back_are_taken_first_up_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b = Builder(8, 64)
    b.logits(b.matmul(b.select(b.embed(Weight("x", 8, 8))), Weight("w", 8, 8)))
    tensors = {"x": table(np.zeros((8, 8))), "w": table(np.zeros((8, 8)))}
    with running(tmp_path / "model.gguf", b.build(), tensors, "scalar") as backend:
        monkeypatch.setattr("tinyslm.backends.native.KEPT_BYTES", 2 * backend.page_bytes)
        pages = [backend.new_page() for _ in range(3)]
        for page in pages:
            backend.free_page(page)
        assert backend._kept == pages[:2]
        assert {backend.new_page(), backend.new_page()} == set(pages[:2])
        assert not backend._kept
        for page in pages[:2]:
            backend.free_page(page)
    assert not backend._kept  # the system has them


# ---- which instruction set runs ----


@FORCED
@pytest.mark.parametrize("how", ["argument", "environment"])
def test_the_instruction_set_that_was_asked_for_runs(
    isa: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = Builder(8, 64)
    b.logits(b.matmul(b.select(b.embed(Weight("x", 8, 8))), Weight("w", 8, 8)))
    tensors = {"x": table(np.zeros((8, 8))), "w": table(np.zeros((8, 8)))}
    if how == "environment":
        monkeypatch.setenv("TINYSLM_ISA", isa)
    asked = isa if how == "argument" else None
    with running(tmp_path / "model.gguf", b.build(), tensors, asked) as backend:  # type: ignore[arg-type]
        assert backend.isa == isa
        assert ffi.string(lib.slm_engine_isa(backend._engine)).decode() == isa


def test_an_instruction_set_that_is_not_here_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for name, _ in native.isa_names()]
    monkeypatch.setenv("TINYSLM_ISA", "mmx")
    with pytest.raises(BackendError, match=r"'mmx': no such instruction set in this build; here are .*scalar$"):
        native.choose_isa()
    monkeypatch.setattr(native, "isa_names", lambda: [(name, name == "scalar") for name in names])
    monkeypatch.setenv("TINYSLM_ISA", names[0])
    with pytest.raises(BackendError, match=rf"'{names[0]}': this CPU lacks it; here are scalar$"):
        native.choose_isa()


def test_the_engine_itself_refuses_one_that_is_not_here() -> None:
    program, error = ffi.new("slm_program *"), ffi.new("int32_t *")
    assert lib.slm_engine_new(program, b"mmx", 1, error) == ffi.NULL
    assert error[0] == lib.SLM_E_ISA
