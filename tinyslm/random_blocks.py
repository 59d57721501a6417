"""Random blocks of tensor types, for files that are only made to measure speed: MAKERS."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .formats import BY_NAME


def _scaled(rng: np.random.Generator, n: int, size: int, deviation: float, k: int, at: int) -> np.ndarray:
    """Random bytes, with an f16 scale at `at` that gives weights a deviation of 1/√k, codes having `deviation`."""
    blocks = np.frombuffer(rng.bytes(n * size), np.uint8).reshape(n, size).copy()
    blocks[:, at : at + 2] = np.array([1 / (deviation * k**0.5)], np.float16).view(np.uint8)
    return blocks


def _one_level(size: int, deviation: float, at: int = 0) -> Callable[[np.random.Generator, int, int], np.ndarray]:
    return lambda rng, n, k: _scaled(rng, n, size, deviation, k, at)


def _with_minimum(size: int, top: int) -> Callable[[np.random.Generator, int, int], np.ndarray]:
    """Codes 0 … top about their middle, which the minimum brings to 0."""
    deviation = (top + 1) / 12**0.5

    def make(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
        blocks = _scaled(rng, n, size, deviation, k, 0)
        blocks[:, 2:4] = np.array([-top / 2 / (deviation * k**0.5)], np.float16).view(np.uint8)
        return blocks

    return make


def _two_level(size: int, top: int) -> Callable[[np.random.Generator, int, int], np.ndarray]:
    """Codes 0 … top about their middle: the minimum is half of what the scale spans. All groups' scales are alike."""

    def make(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
        blocks = _scaled(rng, n, size, 32 * (top + 1) / 12**0.5, k, 0)
        blocks[:, 2:4] = np.array([top / 2 / (32 * (top + 1) / 12**0.5 * k**0.5)], np.float16).view(np.uint8)
        blocks[:, 4:12], blocks[:, 12:16] = 32 | 2 << 6, 0
        return blocks

    return make


def _q2_k(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    blocks = _scaled(rng, n, 84, 13.9, k, 80)
    blocks[:, 82:84] = np.array([1.5 / (13.9 * k**0.5)], np.float16).view(np.uint8)  # 7.5 minima are 7.5 scales of 1.5
    return blocks


def _ternary(size: int, at: int) -> Callable[[np.random.Generator, int, int], np.ndarray]:
    """Codes 0, 1, 2 of two bits; where chance says 3 stands 1."""

    def make(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
        blocks = _scaled(rng, n, size, 0.5**0.5, k, at)
        codes = np.delete(np.arange(size), [at, at + 1])
        blocks[:, codes] &= ~(blocks[:, codes] << 1 & 0xAA)
        return blocks

    return make


def _iq1_m(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    """The f16 scale stands in the upper 4 bits of 4 words, its lowest first."""
    blocks = _scaled(rng, n, 56, 7.2, k, 54)
    words = blocks[:, 48:].view("<u2")
    scale = words[:, 3].copy()
    words[...] = words & 0xFFF | (scale[:, None] >> np.arange(0, 16, 4, dtype=np.uint16) & 15) << 12
    return blocks


def _mxfp4(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    """Scales are powers of two: of the two beside the right one, as many of each as give the right mean square."""
    blocks = np.frombuffer(rng.bytes(n * 17), np.uint8).reshape(n, 17).copy()
    exponent = -np.log2(5.85 * k**0.5)
    below = np.floor(exponent)
    blocks[:, 0] = 128 + below + (rng.random(n) < (4 ** (exponent - below) - 1) / 3)
    return blocks


def _nvfp4(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    every = np.zeros((32, 36), np.uint8)
    every[:, :4] = np.arange(128).reshape(32, 4)
    integers = BY_NAME["NVFP4"].integers
    assert integers
    blocks = np.frombuffer(rng.bytes(n * 36), np.uint8).reshape(n, 36).copy()
    blocks[:, :4] = np.abs(integers(every).scale.ravel() - 1 / (5.85 * k**0.5)).argmin()
    return blocks


def _f16(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    return _f32(rng, n, k).astype(np.float16)


def _bf16(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    return (_f32(rng, n, k).view(np.uint32) >> 16).astype(np.uint16)


def _f64(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    return _f32(rng, n, k).astype(np.float64)


def _f32(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    weights: np.ndarray = rng.standard_normal(n, np.float32) * np.float32(k**-0.5)
    return weights


# The deviations are those of random codes under a scale of 1.
MAKERS = {"F32": _f32, "F16": _f16, "BF16": _bf16, "F64": _f64, "Q4_0": _one_level(18, 4.6),
          "Q4_1": _with_minimum(20, 15), "Q5_0": _one_level(22, 9.2), "Q5_1": _with_minimum(24, 31),
          "Q8_0": _one_level(34, 74.0), "Q2_K": _q2_k, "Q3_K": _one_level(110, 43.4, 108), "Q4_K": _two_level(144, 15),
          "Q5_K": _two_level(176, 31), "Q6_K": _one_level(210, 18.5 * 74, 208), "IQ1_S": _one_level(50, 7.2),
          "IQ1_M": _iq1_m, "IQ2_XXS": _one_level(66, 53.2), "IQ2_XS": _one_level(74, 55.9),
          "IQ2_S": _one_level(82, 56.4), "IQ3_XXS": _one_level(98, 141.7), "IQ3_S": _one_level(110, 139.9),
          "IQ4_NL": _one_level(18, 67.5), "IQ4_XS": _one_level(136, 1245.0), "TQ1_0": _one_level(54, 0.82, 52),
          "TQ2_0": _ternary(66, 64), "Q1_0": _one_level(18, 1.0), "Q2_0": _ternary(18, 0),
          "MXFP4": _mxfp4, "NVFP4": _nvfp4}  # fmt: skip
