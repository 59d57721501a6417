"""csrc/sample.c against its NumPy twin bit for bit, and both against plain oracles in float64."""

from __future__ import annotations

import dataclasses
import math
import pickle
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cffi
import numpy as np
import pytest

from tinyslm.errors import NonFiniteError, OptionError
from tinyslm.sampling import Sampling, log_probabilities, natural_log, random_bits, sample, splitmix

CSRC = Path(__file__).resolve().parents[1] / "csrc"
OFF = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=1)
E_ARGUMENT, E_NONFINITE = -3, -6


def native_library(folder: Path, *flags: str) -> tuple[Any, Any]:
    """(ffi, lib) with slm_sample; the one place that knows where it comes from."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    target = folder / f"sample{''.join(flags)}.so"
    command = [compiler, "-ffp-contract=off", "-fPIC", "-shared", *flags, str(CSRC / "sample.c"), "-o", str(target)]
    subprocess.run(command, check=True, timeout=60)
    ffi = cffi.FFI()
    header = (CSRC / "sample.h").read_text()
    ffi.cdef(header.split("Below this line", 1)[1].split("*/", 1)[1].rsplit("/* Above this line", 1)[0])
    return ffi, ffi.dlopen(str(target))


class Native:
    """slm_sample with the arguments of the twin."""

    def __init__(self, library: tuple[Any, Any]) -> None:
        self.ffi, self.lib = library

    def __call__(
        self,
        logits: np.ndarray,
        params: Sampling,
        index: int = 0,
        recent: Sequence[int] = (),
        mask: np.ndarray | None = None,
        *,
        n_top: int = 0,
        want_logprob: bool = True,
        **override: Any,
    ) -> tuple[int, float, list[tuple[int, float]]]:
        ffi = self.ffi
        fields = ("temperature top_p min_p typical_p repeat_penalty frequency_penalty presence_penalty top_k").split()
        values = {f: getattr(params, f) for f in fields} | {"seed": params.seed or 0} | override
        sampler = ffi.new("slm_sampler *", values)
        logits = np.ascontiguousarray(logits, np.float32)
        before = logits.tobytes()
        window = list(recent)[-params.repeat_last_n :] if params.repeat_last_n else []
        bias = params.logit_bias or {}
        room = np.full(self.lib.slm_sample_scratch(len(logits)) + 64, 0xFF, np.uint8)
        start = -room.ctypes.data % 64
        logprob, ids, probs = ffi.new("float *"), ffi.new("int32_t[]", n_top), ffi.new("float[]", n_top)
        token = self.lib.slm_sample(
            ffi.from_buffer("float[]", logits), len(logits), sampler, index,
            ffi.new("int32_t[]", window), len(window),
            ffi.new("int32_t[]", list(bias)), ffi.new("float[]", list(bias.values())), len(bias),
            ffi.NULL if mask is None else ffi.from_buffer("uint32_t[]", mask),
            logprob if want_logprob else ffi.NULL, n_top, ids, probs, ffi.from_buffer("char[]", room) + start,
        )  # fmt: skip
        assert logits.tobytes() == before, "the logits are the caller's"
        assert (room[:start] == 0xFF).all()
        assert (room[len(room) - 64 + start :] == 0xFF).all(), "wrote behind the scratch"
        return token, logprob[0], list(zip(ids, probs, strict=True))


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Native:
    return Native(native_library(tmp_path_factory.mktemp("sample"), "-O3", "-Wall", "-Wextra", "-Werror"))


def same(native: Native, logits: np.ndarray, params: Sampling, index: int = 0, recent: Sequence[int] = (),
         mask: np.ndarray | None = None) -> int:  # fmt: skip
    """The token, after C and twin agreed on it and on every bit of the log probability."""
    token, logprob = sample(logits, params, index, recent, mask)
    assert native(logits, params, index, recent, mask)[:2] == (token, logprob), (params, index, len(logits))
    return token


def random_params(rng: np.random.Generator, size: int) -> Sampling:
    def pick(*choices: Callable[[], float] | float) -> float:
        choice = choices[rng.integers(len(choices))]
        return float(choice() if callable(choice) else choice)

    ids = rng.integers(0, size, rng.integers(1, 6))
    biases = rng.choice([-math.inf, -5.0, 0.3, 4.0, 25.0], len(ids), p=[0.1, 0.2, 0.3, 0.3, 0.1])
    return Sampling(
        temperature=pick(0.8, 0.8, 0.0, 1e-6, lambda: rng.uniform(0.1, 3), 1e4, 1e-44),
        top_k=int(pick(40, 40, 0, 1, -1, lambda: rng.integers(1, 2 * size + 1), 2**31 - 1)),
        top_p=pick(0.95, 1.0, 0.0, rng.random, 1e-12, 0.9999999),
        min_p=pick(0.05, 0.0, 1.0, rng.random, 1e-9, 1e-44),
        typical_p=pick(1.0, 1.0, 0.0, rng.random, 0.9999999),
        repeat_penalty=pick(1.0, 1.1, lambda: rng.uniform(0.5, 3)),
        frequency_penalty=pick(0.0, 0.0, lambda: rng.normal()),
        presence_penalty=pick(0.0, 0.0, lambda: rng.normal()),
        logit_bias=dict(zip(ids.tolist(), biases.tolist(), strict=True)) if rng.random() < 0.3 else None,
        seed=int(rng.integers(0, 2**64, dtype=np.uint64)),
        repeat_last_n=int(pick(64, 64, 0, 1, 1000)),
    )


def random_logits(rng: np.random.Generator, size: int) -> np.ndarray:
    """Usual logits, and the awkward kinds: ties, plateaus, one-hot, huge, banned, tiny, around zero of either sign."""
    x = rng.normal(0, rng.choice([0.1, 2.5, 8.0]), size)
    kind = rng.integers(9)
    if kind == 1:
        x = np.round(x)
    elif kind == 2:
        x[:] = rng.normal()
    elif kind == 3:
        x[:] = -20.0
        x[rng.integers(size)] = 20.0
    elif kind == 4:
        x = np.clip(x * rng.choice([1e10, 1e30, 3e37]), -3e38, 3e38)
    elif kind == 5:
        x[rng.random(size) < rng.choice([0.5, 0.99])] = -np.inf
        x[rng.integers(size)] = 1.0
    elif kind == 6:
        x = rng.integers(-3, 4, size) * 1e-45
    elif kind == 7:
        x = rng.choice([0.0, -0.0, -1.0], size)
    elif kind == 8:
        x = np.sort(x)[:: rng.choice([-1, 1])].copy()
    return x.astype(np.float32)


def random_mask(rng: np.random.Generator, logits: np.ndarray) -> np.ndarray | None:
    if rng.random() < 0.7:
        return None
    words = rng.integers(0, 2**32, (len(logits) + 31) // 32, dtype=np.uint32)
    words |= rng.choice(np.array([0, 0xFFFFFFFF], np.uint32), len(words))
    allowed = int(rng.choice(np.flatnonzero(logits > -np.inf)))
    words[allowed // 32] |= np.uint32(1 << allowed % 32)
    return words


def assert_twins(native: Native, rng: np.random.Generator, size: int) -> None:
    logits, params = random_logits(rng, size), random_params(rng, size)
    recent = rng.integers(0, max(1, min(size, 50)), rng.integers(0, 100)).tolist()
    mask, index = random_mask(rng, logits), int(rng.integers(0, 2**64, dtype=np.uint64))
    try:
        expected: tuple[int, float] | int = sample(logits, params, index, recent, mask)
    except NonFiniteError:
        expected = E_NONFINITE
    got = native(logits, params, index, recent, mask)
    assert (got[:2] if isinstance(expected, tuple) else got[0]) == expected, (size, params, index)


def test_twin_equals_c_on_random_cases(native: Native) -> None:
    rng = np.random.default_rng(1)
    for _ in range(12000):
        assert_twins(native, rng, int(rng.integers(1, 700)))


@pytest.mark.parametrize("size", [1, 2, 31, 32, 33, 127, 128, 129, 255, 257, 5121, 32000, 128256, 151937, 200001])
def test_twin_equals_c_at_awkward_sizes(native: Native, size: int) -> None:
    rng = np.random.default_rng(size)
    for _ in range(12 if size > 6000 else 150):
        assert_twins(native, rng, size)


def test_optimisation_does_not_change_a_bit(native: Native, tmp_path: Path) -> None:
    plain = Native(native_library(tmp_path, "-O0"))
    rng = np.random.default_rng(2)
    for _ in range(1500):
        size = int(rng.integers(1, 2000))
        logits, params, index = random_logits(rng, size), random_params(rng, size), int(rng.integers(1000))
        n_top = min(size, 5)
        assert plain(logits, params, index, [0], n_top=n_top) == native(logits, params, index, [0], n_top=n_top)


# ---- golden values: a change of generator or arithmetic shows here ----


def test_random_bits_are_splitmix64() -> None:
    golden = 0x9E3779B97F4A7C15
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]  # of the generator started at 1234567
    assert [splitmix(1234567 + i * golden) for i in (1, 2, 3)] == published
    assert random_bits(42, 5) == splitmix(splitmix(42 + golden) + 6 * golden)
