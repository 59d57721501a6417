"""Quantising rows: how well, to the same bits everywhere, and what is refused."""

from __future__ import annotations

import gguf as ggml
import numpy as np
import pytest
from gguf import quants

from tinyslm.backends import has_native
from tinyslm.errors import BackendError, OptionError
from tinyslm.formats import BY_NAME, TYPE_IDS, TYPES
from tinyslm.quantise import rows
from tinyslm.quantise.rows import SEARCHED, quantise_rows

NATIVE = pytest.mark.skipif(not has_native(), reason="the C core was not built")
# What ggml's own quantiser leaves (version 0.25) of the rows below: root mean square of the error, of that of the row.
GGML = {
    "Q4_0": (0.08602, 0.11654), "Q4_1": (0.07829, 0.09431), "Q5_0": (0.04282, 0.05844), "Q5_1": (0.03798, 0.04542),
    "Q2_K": (0.29697, 0.34698), "Q3_K": (0.15092, 0.18456), "Q4_K": (0.07155, 0.08727), "Q5_K": (0.03626, 0.04400),
    "Q6_K": (0.01775, 0.02304), "IQ4_NL": (0.07621, 0.09412), "IQ4_XS": (0.07679, 0.09512),
    "TQ1_0": (0.80849, 0.84240), "TQ2_0": (0.80849, 0.84240), "MXFP4": (0.11513, 0.13150),
    "NVFP4": (0.09514, 0.09181), "Q1_0": (0.60056, 0.70605), "Q2_0": (0.71874, 0.73038),
}  # fmt: skip


def gaussian() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((64, 2048)).astype(np.float32)


def heavy_tailed() -> np.ndarray:
    rng = np.random.default_rng(0)
    rng.standard_normal((64, 2048))
    return rng.standard_t(4, (64, 2048)).astype(np.float32)


def back(kind: str, blocks: np.ndarray) -> np.ndarray:
    """By the reference implementation, so that what holds here holds in llama.cpp; by ours where it has none."""
    if kind in ("Q1_0", "Q2_0"):
        return BY_NAME[kind].dequantise(blocks)
    return quants.dequantize(blocks, ggml.GGMLQuantizationType[kind])


def error(
    kind: str, values: np.ndarray, weights: np.ndarray | float = 1, importance: np.ndarray | None = None
) -> float:
    away = (back(kind, quantise_rows(kind, values, importance)).astype(np.float64) - values) ** 2
    return float(np.sqrt((weights * away).mean() / (weights * values.astype(np.float64) ** 2).mean()))


@NATIVE
@pytest.mark.parametrize("kind", SEARCHED)
def test_the_error_is_no_larger_than_that_of_ggml(kind: str) -> None:
    assert error(kind, gaussian()) <= GGML[kind][0]
    assert error(kind, heavy_tailed()) <= GGML[kind][1]


@NATIVE
@pytest.mark.parametrize("kind", SEARCHED)
def test_the_bits_do_not_depend_on_the_machine_or_the_slice(kind: str) -> None:
    k = 256 + TYPES[TYPE_IDS[kind]].block % 256  # a span of 256, and one of a block
    values = gaussian().reshape(-1)[: 12 * k].reshape(12, k)
    importance = np.abs(heavy_tailed().reshape(-1)[:k])
    for weights in (None, importance):
        whole = quantise_rows(kind, values, weights)
        np.testing.assert_array_equal(whole, quantise_rows(kind, values, weights, isa="scalar"))
        np.testing.assert_array_equal(whole[5:7], quantise_rows(kind, values[5:7], weights))


@NATIVE
@pytest.mark.parametrize("kind", [kind for kind in SEARCHED if kind not in ("TQ1_0", "TQ2_0", "MXFP4", "Q1_0")])
def test_columns_that_matter_more_are_held_better(kind: str) -> None:
    importance = np.random.default_rng(1).lognormal(0, 1.5, 2048).astype(np.float32)
    assert error(kind, gaussian(), importance, importance) < 0.99 * error(kind, gaussian(), importance)


@NATIVE
@pytest.mark.parametrize("kind", [kind for kind in SEARCHED if kind != "Q1_0"])
def test_odd_rows(kind: str) -> None:
    block = TYPES[TYPE_IDS[kind]].block
    step = np.resize(np.array([0, 0.5, -0.5], np.float32), block)
    odd = np.stack([np.zeros(block), np.full(block, 3.0), np.full(block, -3.0), np.full(block, 1e-30), step,
                    np.eye(1, block, 7)[0] * 100]).astype(np.float32)  # fmt: skip
    values = back(kind, quantise_rows(kind, odd))
    assert not values[0].any()
    coarse = 0.34 if kind == "MXFP4" else 0.01  # of four bits with a power of two as their scale, 3 is half way
    np.testing.assert_allclose(values[1], 3, rtol=coarse)
    np.testing.assert_allclose(values[2], -3, rtol=coarse)
    assert np.abs(values[3]).max() < 1e-6
    np.testing.assert_allclose(values[4], step, atol=0.05 if kind.startswith("IQ4") else 0.02)
    assert np.abs(values[5] - odd[5]).max() < 7


@NATIVE
def test_ternary_weights_are_held_as_they_are() -> None:
    values = np.random.default_rng(0).integers(-1, 2, (8, 512)).astype(np.float32) * 0.375
    for kind in ("TQ1_0", "TQ2_0", "Q2_0"):
        np.testing.assert_array_equal(back(kind, quantise_rows(kind, values)), values)


@NATIVE
def test_signs_are_held_under_the_mean_magnitude() -> None:
    rows = np.resize(np.array([1, -3, 2, -6], np.float32), (4, 256))
    rows[1] = np.where(rows[0] < 0, -0.5, 0.5)
    rows[2], rows[3, :128] = 1e-30, 0
    found = back("Q1_0", quantise_rows("Q1_0", rows))
    np.testing.assert_array_equal(found[0], np.sign(rows[0]) * 3)
    np.testing.assert_array_equal(found[1], rows[1])
    assert not found[2].any()
    np.testing.assert_array_equal(found[3], np.where(np.arange(256) < 128, 0, np.sign(rows[3]) * 3))
    importance = np.resize(np.array([1, 0], np.float32), 256)  # of what counts, all have one magnitude
    even = np.resize(np.array([2, 7], np.float32), (1, 256))
    np.testing.assert_array_equal(back("Q1_0", quantise_rows("Q1_0", even, importance)), np.full((1, 256), 2))


@NATIVE
def test_two_bits_lean_to_either_side() -> None:
    """Codes are -1, 0, 1 and 2 times a scale, which may be negative."""
    values = np.random.default_rng(0).integers(-1, 3, (8, 192)).astype(np.float32) * 0.75
    for wanted in (values, -values):
        np.testing.assert_array_equal(back("Q2_0", quantise_rows("Q2_0", wanted)), wanted)
    assert error("Q2_0", gaussian()) < 0.353  # 0.356 where the farthest weight is always on the long side


BYTES = np.arange(1, 127)
# The scales of NVFP4: floats of 4 bits of exponent and 3 of fraction, halved.
SCALES = np.where(BYTES < 8, BYTES, (8 + BYTES % 8) * 2.0 ** (BYTES // 8 - 1)) * 2.0**-10


@NATIVE
def test_every_small_float_is_a_scale() -> None:
    """NVFP4: 16 weights that are multiples of a scale come back, for each scale that there is, denormal or largest."""
    codes = np.array([0, 1, 2, 3, 4, 6, 8, 12, -1, -2, -3, -4, -6, -8, -12, 0])
    rows = np.tile((SCALES[:, None] * codes).astype(np.float32), 4)
    np.testing.assert_array_equal(back("NVFP4", quantise_rows("NVFP4", rows)), rows)
    for largest, held in ((2688.0, True), (2689.0, False)):
        rows = np.full((1, 64), largest, np.float32)
        if held:
            np.testing.assert_array_equal(back("NVFP4", quantise_rows("NVFP4", rows)), rows)
        else:
            with pytest.raises(OptionError, match="too large for NVFP4"):
                quantise_rows("NVFP4", rows)


@NATIVE
def test_the_best_small_float_is_found() -> None:
    """NVFP4: the error is that of trying every scale there is for every 16 weights."""
    values = np.concatenate([gaussian()[:, :64] * size for size in (0.003, 0.02, 1, 300)])
    codes = np.array([0, 1, 2, 3, 4, 6, 8, 12], np.float32)
    least = np.full(values.size // 16, np.inf)
    sizes = np.abs(values.reshape(-1, 16))
    for scale in SCALES:
        held = codes[np.searchsorted((codes[1:] + codes[:-1]) / 2, sizes / scale)] * scale
        least = np.minimum(least, ((sizes - held) ** 2).sum(1))
    found = ((back("NVFP4", quantise_rows("NVFP4", values)) - values) ** 2).reshape(-1, 16).sum(1)
    assert found.sum() <= least.sum() * 1.0001


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", *(SEARCHED if has_native() else ())])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_what_a_type_cannot_hold_is_refused(kind: str, bad: float) -> None:
    values = np.ones((2, 256), np.float32)
    values[1, 77] = bad
    if bad == 1e30 and kind in ("F32", "BF16", "MXFP4"):
        quantise_rows(kind, values)
    else:
        with pytest.raises(OptionError, match=f"no finite number, or too large for {kind}"):
            quantise_rows(kind, values)


def test_wrong_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="Q4_K is made of float32 rows of a multiple of 256 weights"):
        quantise_rows("Q4_K", np.zeros((2, 288), np.float32))
    with pytest.raises(OptionError, match="not of float64"):
        quantise_rows("F16", np.zeros((2, 288)))
    monkeypatch.setattr(rows, "has_native", lambda: False)
    with pytest.raises(BackendError, match="quantising to Q4_0 needs the C core"):
        quantise_rows("Q4_0", np.zeros((2, 32), np.float32))
