"""The NumPy formats against the `gguf` package, which follows ggml's C to the bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from blocks import QUANTISED, put_scale, scales_of
from gguf import quants

from tinyslm.errors import OptionError
from tinyslm.formats import BY_NAME, FORMATS, REMOVED, TYPE_NAMES, TYPES, Format

ALL = pytest.mark.parametrize("format_", FORMATS.values(), ids=lambda f: f.name)
CAN_QUANTISE = pytest.mark.parametrize("format_", [BY_NAME[name] for name in QUANTISED], ids=lambda f: f.name)
# The `gguf` package has no decoder of these.
OWN = ["F64", "I8", "I16", "I32", "I64", "Q1_0", "Q2_0"]


def random_blocks(format_: Format, n: int) -> np.ndarray:
    """Random codes under finite scales of every size: zero, denormal, the largest, of either sign."""
    rng = np.random.default_rng(format_.id)
    blocks = rng.integers(0, 256, (n, format_.bytes), np.uint8)
    edges = np.array([0, -0.0, 6e-8, -6e-8, 6.1e-5, 65504, -65504, 1], "<f2")
    for at in scales_of(format_):
        scales = rng.integers(0, 0x7C00, n, np.uint16) | (rng.integers(0, 2, n, np.uint16) << 15)
        scales[: len(edges)] = rng.permutation(edges).view("<u2")
        put_scale(format_, blocks, at, scales.view("<f2"))
    return blocks.reshape(n // 8, -1)


def random_weights(seed: int) -> np.ndarray:
    """Rows of all magnitudes that f16 scales can bear and of some they cannot, of zeros, ties, and equal values."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((64, 1024)) * np.exp(rng.uniform(-30, 10, (64, 1)))
    rows[0], rows[1], rows[2], rows[3] = 0, -0.0, 3.5, -3.5
    rows[4] = rng.integers(-127, 127, 1024) + 0.5  # ties, under a scale of 1
    rows[4, 1::2] = np.nextafter(np.float32(0.5), np.float32(0))
    rows[4, ::32] = 127
    rows[5, ::2] = 0
    rows[6] = 1e-45
    return rows.astype(np.float32)


def test_sizes_and_names_are_those_of_ggml() -> None:
    theirs = {int(type_): (type_.name, *gguf.GGML_QUANT_SIZES[type_]) for type_ in gguf.GGMLQuantizationType}
    theirs[9] = ("Q8_1", 32, 36)  # two f16 since 2024; the package still counts two f32 (no file holds any)
    assert {id_: tuple(size) for id_, size in TYPES.items() if id_ in theirs} == theirs
    assert set(REMOVED) == {4, 5, 31, 32, 33, 36, 37, 38}
    assert sorted(TYPE_NAMES) == list(range(43))
    assert set(TYPE_NAMES.values()) - set(BY_NAME) == {"Q8_1", "Q8_K", *REMOVED.values()}


@pytest.mark.parametrize("format_", [f for f in FORMATS.values() if f.name not in OWN], ids=lambda f: f.name)
def test_dequantise_equals_ggml_to_the_bit(format_: Format) -> None:
    blocks = random_blocks(format_, 4096)
    with np.errstate(all="ignore"):
        expected = quants.dequantize(blocks, gguf.GGMLQuantizationType(format_.id))
    got = format_.dequantise(blocks)
    assert got.dtype == np.float32
    assert got.shape == (blocks.shape[0], 8 * format_.block)
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("name", ["F64", "I8", "I16", "I32", "I64"])
def test_other_numbers_become_the_nearest_float32(name: str) -> None:
    dtype = f"<{name[0].lower()}{int(name[1:]) // 8}"
    values = np.array([0, 1, -1, 100, -128, 127], dtype)
    if name != "I8":
        values = np.append(values, [12345, np.iinfo("i2").min]).astype(dtype)
    if name == "F64":
        values = np.append(values, [np.pi, 1e-46, 1e300, -np.inf, np.nan])
    if name in ("I32", "I64"):
        values = np.append(values, [16777217, -16777219, np.iinfo("i4").max]).astype(dtype)
    with np.errstate(over="ignore"):
        expected = values.astype(np.float32)
    np.testing.assert_array_equal(BY_NAME[name].dequantise(values.view(np.uint8)), expected)


def test_one_and_two_bits() -> None:
    one, two = BY_NAME["Q1_0"], BY_NAME["Q2_0"]
    block = np.frombuffer(np.float16(-0.75).tobytes() + bytes([0b1101]) + bytes(15), np.uint8)
    np.testing.assert_array_equal(one.dequantise(block)[:5], np.array([-0.75, 0.75, -0.75, -0.75, 0.75], np.float32))
    assert (one.dequantise(block)[4:] == 0.75).all()
    block = np.frombuffer(np.float16(0.5).tobytes() + bytes([0b11100100, 0b01]) + bytes(14), np.uint8)
    np.testing.assert_array_equal(two.dequantise(block)[:6], np.array([-0.5, 0, 0.5, 1, 0, -0.5], np.float32))
    assert (two.dequantise(block)[5:] == -0.5).all()


@pytest.mark.parametrize("format_", [f for f in FORMATS.values() if f.integers], ids=lambda f: f.name)
def test_the_integers_are_whole_and_make_the_weights(format_: Format) -> None:
    blocks = random_blocks(format_, 512)
    assert format_.integers
    whole, scale, minimum, multiple = format_.integers(blocks)
    assert (whole == np.rint(whole)).all()
    assert np.abs(whole).max() * 127 * format_.block < 2**31  # of any sum of products with activations
    per = whole.shape[1] // scale.shape[1]
    weights = np.repeat(scale, per, axis=1).astype(np.float64) * whole
    if minimum is not None:
        weights += np.repeat(minimum, per, axis=1) * (np.float64(1) if multiple is None else multiple)
    got = format_.dequantise(blocks)
    with np.errstate(over="ignore"):
        expected = weights.astype(np.float32)
    atol = 2e-7 * np.abs(weights).max() if minimum is not None else 0
    np.testing.assert_allclose(got, expected, rtol=2e-7, atol=atol)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantise_equals_ggml_to_the_bit(name: str) -> None:
    format_ = BY_NAME[name]
    weights = random_weights(format_.id)
    with np.errstate(all="ignore"):
        expected = quants.quantize(weights, gguf.GGMLQuantizationType(format_.id)).view(np.uint8)
    np.testing.assert_array_equal(format_.quantise(weights), expected.reshape(len(weights), -1))


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_any_float_is_rounded_as_in_ggml(name: str) -> None:
    bits = np.random.default_rng(3).integers(0, 2**32, (64, 64), np.uint32)
    bits[0] = (bits[0] & 0xFFFF0000) | 0x8000  # halfway between two BF16
    bits[1] = (bits[1] & 0xFFFFE000) | 0x1000  # halfway between two F16
    bits[2] |= 0x7F800000  # nan of every payload
    bits[3] = 0x7F800001
    bits[4] = 0xFFFFFFFF
    with np.errstate(all="ignore"):
        expected = quants.quantize(bits.view(np.float32), gguf.GGMLQuantizationType[name]).view(np.uint8)
    np.testing.assert_array_equal(BY_NAME[name].quantise(bits.view(np.float32)), expected.reshape(64, -1))


def test_q6_k_rounds_each_weight_to_the_nearest_step() -> None:
    format_ = BY_NAME["Q6_K"]
    weights = np.random.default_rng(1).standard_normal((32, 1024)).astype(np.float32)
    back = format_.dequantise(format_.quantise(weights))
    groups, error = weights.reshape(-1, 16), np.abs(back - weights).reshape(-1, 16)
    # Half a step is 1/64 of the group's farthest weight; that weight's own opposite is cut at 31 of 32 steps, and the
    # group's scale is off by up to half of 1/127 of the block's largest, times up to 32 steps.
    farthest = np.abs(groups).max(axis=1, keepdims=True)
    largest = np.abs(weights).reshape(-1, 256).max(axis=1).repeat(16)[:, None]
    assert (error <= farthest / 31 + largest / 254 * 1.01).all()
    assert np.sqrt((error**2).mean()) < 0.02


@CAN_QUANTISE
def test_quantised_values_survive_quantising_again(format_: Format) -> None:
    once = format_.quantise(np.random.default_rng(2).standard_normal((4, 512)).astype(np.float32))
    again = format_.quantise(format_.dequantise(once))
    tolerance = 0.02 if format_.name == "Q6_K" else 0.002  # the f16 scale is rounded once more
    np.testing.assert_allclose(format_.dequantise(again), format_.dequantise(once), atol=tolerance)


@CAN_QUANTISE
def test_not_a_number_stays_visible(format_: Format) -> None:
    weights = np.zeros((1, 256), np.float32)
    weights[0, 7] = np.nan
    assert np.isnan(format_.dequantise(format_.quantise(weights))[0, 7])


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q6_K"])
def test_blocks_of_denormals_are_blocks_of_zeros(name: str) -> None:
    tiny = np.linspace(0, 1e-40, 256, dtype=np.float32)  # 1 / scale is infinite
    quantised = BY_NAME[name].quantise(tiny)
    np.testing.assert_array_equal(quantised, BY_NAME[name].quantise(np.zeros_like(tiny)))
    assert not BY_NAME[name].dequantise(quantised).any()


@ALL
def test_shapes(format_: Format) -> None:
    k = 2 * format_.block
    assert format_.dequantise(np.zeros((3, 2, 2 * format_.bytes), np.uint8)).shape == (3, 2, k)
    assert format_.dequantise(np.zeros((0, 2 * format_.bytes), np.uint8)).shape == (0, k)
    assert format_.dequantise(np.zeros((2, 4 * format_.bytes), np.uint8)[:, ::2]).shape == (2, k)


@CAN_QUANTISE
def test_shapes_of_what_is_quantised(format_: Format) -> None:
    k = 2 * format_.block
    assert format_.quantise(np.zeros((3, 2, k), np.float32)).shape == (3, 2, 2 * format_.bytes)
    assert format_.quantise(np.zeros(k, np.float32)).shape == (2 * format_.bytes,)
    strided = np.zeros((2, 2 * k), np.float32)[:, ::2]
    assert format_.quantise(strided).shape == (2, 2 * format_.bytes)


@ALL
def test_wrong_arguments(format_: Format) -> None:
    with pytest.raises(OptionError, match="float32" if format_.name in QUANTISED else "nothing here quantises to"):
        format_.quantise(np.zeros((1, format_.block)))  # float64
    with pytest.raises(OptionError, match="multiple" if format_.bytes > 1 else "uint8"):
        format_.dequantise(np.zeros((1, format_.bytes + 1), np.uint8 if format_.bytes > 1 else np.int8))
