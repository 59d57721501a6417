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

from tinyslm import sampling
from tinyslm.errors import NonFiniteError, OptionError
from tinyslm.sampling import Sampling, log_probabilities, natural_log, random_bits, sample, splitmix

CSRC = Path(__file__).resolve().parents[1] / "csrc"
OFF = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=1)
E_ARGUMENT, E_NONFINITE = -3, -6
GOLDEN_DEFAULT = [355, 970, 502, 86, 667, 86, 199, 719, 138, 719, 658, 190]
GOLDEN_WIDE = [251, 952, 398, 50, 631, 50, 147, 701, 86, 683, 588, 138]


def native_library(folder: Path, *flags: str) -> tuple[Any, Any]:
    """(ffi, lib) with slm_sample; the one place that knows where it comes from."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    target = folder / f"sample{''.join(flags)}.so"
    command = [compiler, "-ffp-contract=off", "-Wno-psabi", "-fPIC", "-shared", *flags]
    command += [str(CSRC / "sample.c"), str(CSRC / "cpu.c"), "-o", str(target)]
    subprocess.run(command, check=True, timeout=60)
    ffi = cffi.FFI()
    ffi.cdef((CSRC / "api.h").read_text())
    return ffi, ffi.dlopen(str(target))


def largest_of_sixteen(logits: np.ndarray) -> np.ndarray:
    return np.maximum.reduceat(logits, np.arange(0, len(logits), 16))


class Native:
    """slm_sample with the arguments of the twin; with and without maxima of 16 logits, it draws the same."""

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
        fields = {field for field, _ in ffi.typeof("slm_sampler").fields}
        values = {f: getattr(params, f) for f in fields - {"seed"}} | {"seed": params.seed or 0} | override
        sampler = ffi.new("slm_sampler *", values)
        logits = np.ascontiguousarray(logits, np.float32)
        before = logits.tobytes()
        window = list(recent)[-params.repeat_last_n :] if params.repeat_last_n else []
        bias = params.logit_bias or {}
        room = np.full(self.lib.slm_sample_scratch(len(logits)) + 64, 0xFF, np.uint8)
        start = -room.ctypes.data % 64
        logprob, ids, probs = ffi.new("float *"), ffi.new("int32_t[]", n_top), ffi.new("float[]", n_top)

        def sample(maxima: Any) -> tuple[int, float, list[tuple[int, float]]]:
            token = self.lib.slm_sample(
                ffi.from_buffer("float[]", logits), maxima, len(logits), sampler, index,
                ffi.new("int32_t[]", window), len(window),
                ffi.new("int32_t[]", list(bias)), ffi.new("float[]", list(bias.values())), len(bias),
                ffi.NULL if mask is None else ffi.from_buffer("uint32_t[]", mask),
                logprob if want_logprob else ffi.NULL, n_top, ids, probs, ffi.from_buffer("char[]", room) + start,
            )  # fmt: skip
            return token, logprob[0], list(zip(ids, probs, strict=True))

        got = sample(ffi.NULL)
        if not np.isnan(logits).any() and not (logits == np.inf).any():
            room[start : len(room) - 64 + start] = 0xFF
            assert sample(ffi.from_buffer("float[]", largest_of_sixteen(logits))) == got
        assert logits.tobytes() == before, "the logits are the caller's"
        assert (room[:start] == 0xFF).all()
        assert (room[len(room) - 64 + start :] == 0xFF).all(), "wrote behind the scratch"
        return got


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Native:
    return Native(native_library(tmp_path_factory.mktemp("sample"), "-O3", "-Wall", "-Wextra", "-Werror"))


WIDTHS = """
#include "sample.c"
__attribute__((visibility("default"))) int widths(const float *x, int32_t n, double max, uint64_t *out) {
  int count = 0;
  out[count++] = total_weight_plain(x, n, max);
#if defined(__x86_64__)
  if (slm_cpu_has(SLM_CPU_AVX2)) out[count++] = total_weight_avx2(x, n, max);
  if (slm_cpu_has(SLM_CPU_AVX512)) out[count++] = total_weight_avx512(x, n, max);
#endif
  return count;
}
"""


@pytest.mark.parametrize("n", [1, 7, 8, 9, 1000, 49155])
def test_sum_of_weights_is_the_same_in_all_registers(tmp_path: Path, n: int) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc") or pytest.skip("no C compiler")
    (tmp_path / "widths.c").write_text(WIDTHS)
    command = [compiler, "-std=gnu11", "-O2", "-ffp-contract=off", "-Wno-psabi", "-fPIC", "-shared", f"-I{CSRC}"]
    subprocess.run(
        [*command, str(tmp_path / "widths.c"), str(CSRC / "cpu.c"), "-o", str(tmp_path / "widths.so")],
        check=True,
        timeout=60,
    )
    x = np.random.default_rng(n).normal(0, 12, n).astype(np.float32)
    x[0] = x.max()  # so that the first is the largest
    x[n // 2 :: 50] = -np.finfo(np.float32).max
    ffi = cffi.FFI()
    ffi.cdef("int widths(const float *, int32_t, double, uint64_t *);")
    found = ffi.new("uint64_t[3]")
    count = ffi.dlopen(str(tmp_path / "widths.so")).widths(ffi.from_buffer("float[]", x), n, float(x[0]), found)
    assert set(found[0:count]) == {int(sampling._weights(x.astype(np.float64) - float(x[0])).sum())}


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


def test_golden_tokens(native: Native) -> None:
    logits = (np.arange(1000, dtype=np.float32) * np.float32(7.25) % np.float32(13)).astype(np.float32)
    tokens = [same(native, logits, Sampling(seed=42), i) for i in range(12)]
    assert tokens == GOLDEN_DEFAULT
    wide = dataclasses.replace(OFF, seed=42, typical_p=0.7, top_p=0.8, min_p=0.01, repeat_penalty=1.2)
    assert [same(native, logits, wide, i, [1, 2, 3]) for i in range(12)] == GOLDEN_WIDE


# ---- each filter against an oracle in float64: the set of tokens that many draws reach ----


def reached(native: Native, logits: np.ndarray, params: Sampling, draws: int = 3000, **more: Any) -> set[int]:
    return {native(logits, params, i, **more)[0] for i in range(draws)}


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x.astype(np.float64) - float(x.max()))
    return e / e.sum()


@pytest.fixture
def flat() -> np.ndarray:
    """40 logits within about 1.5 of each other, so that 3000 draws reach each token that is left."""
    return np.random.default_rng(3).uniform(0, 1.5, 40).astype(np.float32)


def test_all_off_reaches_every_token(native: Native, flat: np.ndarray) -> None:
    assert reached(native, flat, OFF) == set(range(40))


@pytest.mark.parametrize("k", [1, 2, 7, 39])
def test_top_k(native: Native, flat: np.ndarray, k: int) -> None:
    assert reached(native, flat, dataclasses.replace(OFF, top_k=k)) == set(np.argsort(-flat)[:k].tolist())


@pytest.mark.parametrize("k", [0, -1, 40, 41, 2**31 - 1])
def test_top_k_off(native: Native, flat: np.ndarray, k: int) -> None:
    assert reached(native, flat, dataclasses.replace(OFF, top_k=k)) == set(range(40))


def test_top_k_prefers_the_smaller_id_among_equals(native: Native) -> None:
    logits = np.zeros(1000, np.float32)
    logits[::2] = -0.0
    assert reached(native, logits, dataclasses.replace(OFF, top_k=3), 200) == {0, 1, 2}


@pytest.mark.parametrize("p", [0.0, 0.01, 0.3, 0.9, 0.97])
def test_top_p(native: Native, flat: np.ndarray, p: float) -> None:
    order = np.argsort(-flat)
    sums = np.cumsum(softmax(flat)[order])
    expected = order[: int(np.argmax(sums >= p)) + 1]
    assert reached(native, flat, dataclasses.replace(OFF, top_p=p)) == set(expected.tolist())


def test_top_p_stops_when_the_sum_is_reached_exactly(native: Native) -> None:
    assert reached(native, np.zeros(4, np.float32), dataclasses.replace(OFF, top_p=0.5), 200) == {0, 1}


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9, 1.0])
def test_min_p(native: Native, flat: np.ndarray, p: float) -> None:
    probabilities = softmax(flat)
    expected = np.flatnonzero(probabilities >= p * probabilities.max())
    assert reached(native, flat, dataclasses.replace(OFF, min_p=p)) == set(expected.tolist())


def test_min_p_of_one_keeps_the_equals(native: Native) -> None:
    logits = np.array([1, 2, 2, 0], np.float32)
    assert reached(native, logits, dataclasses.replace(OFF, min_p=1.0), 200) == {1, 2}


@pytest.mark.parametrize("p", [0.0, 0.2, 0.6, 0.95])
def test_typical_p(native: Native, p: float) -> None:
    logits = np.random.default_rng(4).normal(0, 1.2, 30).astype(np.float32)
    probabilities = softmax(logits)
    surprise = -np.log(probabilities)
    order = np.argsort(np.abs(surprise - (probabilities * surprise).sum()))
    expected = order[: int(np.argmax(np.cumsum(probabilities[order]) > p)) + 1]
    assert 0 < len(expected) < 30
    assert int(logits.argmax()) not in expected or p > 0.5, "the most likely token is not typical here"
    assert reached(native, logits, dataclasses.replace(OFF, typical_p=p), 6000) == set(expected.tolist())


def test_typical_p_goes_beyond_equality(native: Native) -> None:
    # top-p stops at "reaches p", typical-p at "exceeds p"
    assert reached(native, np.zeros(4, np.float32), dataclasses.replace(OFF, typical_p=0.5), 200) == {0, 1, 2}


# ---- the order of the steps ----


def test_top_k_comes_before_top_p(native: Native) -> None:
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    # of the first two, renormalised to 0.57 and 0.43, the first reaches 0.5; of all four it takes two
    assert reached(native, logits, dataclasses.replace(OFF, top_k=2, top_p=0.5), 300) == {0}
    assert reached(native, logits, dataclasses.replace(OFF, top_p=0.5), 300) == {0, 1}


def test_typical_comes_between_top_k_and_top_p(native: Native) -> None:
    rng = np.random.default_rng(5)
    differ = 0
    for _ in range(20):
        logits = rng.normal(0, 1.5, 30).astype(np.float32)
        kept = np.argsort(-logits)[:12]
        for step in ("typical", "top_p"):
            p = softmax(logits[kept])
            surprise = -np.log(p)
            typical = step == "typical"
            order = np.argsort(np.abs(surprise - (p * surprise).sum())) if typical else np.argsort(-p)
            sums = np.cumsum(p[order])
            kept = kept[order[: int(np.argmax(sums > 0.6 if typical else sums >= 0.7)) + 1]]
        params = dataclasses.replace(OFF, top_k=12, typical_p=0.6, top_p=0.7)
        assert reached(native, logits, params, 1500) == set(kept.tolist())
        differ += int(logits.argmax()) not in kept
    assert differ, "typical-p should have dropped the most likely token somewhere"


def test_temperature_comes_last(native: Native, flat: np.ndarray) -> None:
    # a temperature before top-p or min-p would change what they keep
    filters = dataclasses.replace(OFF, top_p=0.6, min_p=0.4)
    cold, hot = (reached(native, flat, dataclasses.replace(filters, temperature=t), 4000) for t in (0.7, 50.0))
    assert cold == hot


def test_penalties_come_before_top_k(native: Native) -> None:
    logits = np.array([3.0, 2.9, 0.0], np.float32)
    params = dataclasses.replace(OFF, top_k=1, presence_penalty=1.0)
    assert reached(native, logits, params, 10, recent=[0]) == {1}


# ---- bias, penalties, mask, greedy ----


def test_penalties_are_those_of_the_definition(native: Native) -> None:
    logits = np.array([4.0, -2.0, 3.0, 1.0], np.float32)
    params = Sampling(temperature=0.0, repeat_penalty=2.0, frequency_penalty=0.25, presence_penalty=0.5, seed=0)
    recent = [0, 0, 1]
    # 4 / 2 - (2 * 0.25 + 0.5) = 1; -2 * 2 - (0.25 + 0.5) = -4.75
    expected = np.array([1.0, -4.75, 3.0, 1.0])
    for bias in np.linspace(-9, 9, 37):  # greedy shows the adjusted value of each token against a known one
        for token in (0, 1):
            biased = dataclasses.replace(params, logit_bias={2: bias})
            masked = np.array([1 << token | 1 << 2], np.uint32)
            want = token if (expected[token], -token) > (3.0 + bias, -2) else 2
            assert same(native, logits, biased, 0, recent, masked) == want


def test_window_is_the_last_64(native: Native) -> None:
    logits = np.array([1.0, 0.9], np.float32)
    params = Sampling(temperature=0.0, presence_penalty=0.5, seed=0)
    assert same(native, logits, params, 0, [0] + [1] * 63) == 0, "both are penalised"
    assert same(native, logits, params, 0, [0] + [1] * 64) == 0
    assert same(native, logits, params, 0, [1] + [0] * 64) == 1, "the 1 has left the window"
    assert same(native, logits, dataclasses.replace(params, repeat_last_n=0), 0, [0] * 10) == 0


def test_bias_adds_and_bans(native: Native) -> None:
    logits = np.array([1.0, 0.0, 0.5], np.float32)
    greedy = Sampling(temperature=0.0, seed=0)
    assert same(native, logits, dataclasses.replace(greedy, logit_bias={1: 2.0})) == 1
    assert same(native, logits, dataclasses.replace(greedy, logit_bias={0: -math.inf})) == 2


def test_bias_on_a_banned_token_does_not_revive_it(native: Native) -> None:
    logits = np.array([-np.inf, 0.0], np.float32)
    assert same(native, logits, Sampling(seed=0, logit_bias={0: 3e38})) == 1


def test_mask_is_never_left(native: Native) -> None:
    rng = np.random.default_rng(6)
    logits = rng.normal(0, 1, 777).astype(np.float32)
    allowed = np.sort(rng.permutation(777)[:20])
    mask = np.zeros(25, np.uint32)
    for token in allowed:
        mask[token // 32] |= np.uint32(1 << int(token) % 32)
    assert reached(native, logits, OFF, mask=mask) == set(allowed.tolist())
    assert same(native, logits, Sampling(temperature=0.0, seed=0), mask=mask) == allowed[logits[allowed].argmax()]


def test_greedy_takes_the_smallest_id_of_equals(native: Native) -> None:
    logits = np.zeros(500, np.float32)
    logits[[77, 300, 499]] = 2.0
    assert same(native, logits, Sampling(temperature=0.0, seed=0)) == 77
    logits[:] = 0.0
    logits[0] = -0.0
    assert same(native, logits, Sampling(temperature=0.0, seed=0)) == 0


# ---- the draw ----


def test_draw_follows_the_distribution(native: Native) -> None:
    rng = np.random.default_rng(7)
    logits = rng.normal(0, 1, 50).astype(np.float32)
    params = dataclasses.replace(OFF, temperature=0.8)
    draws = 40000
    counts = np.bincount([native(logits, params, i, want_logprob=False)[0] for i in range(draws)], minlength=50)
    expected = softmax(logits / np.float32(0.8)) * draws
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 100, "49 degrees of freedom: above 100 once in 40,000 seeds, and the seed is fixed"


def test_seeds_and_indices_are_independent(native: Native) -> None:
    logits = np.zeros(2, np.float32)
    by_index = np.array([native(logits, OFF, i)[0] for i in range(4096)])
    by_seed = np.array([native(logits, dataclasses.replace(OFF, seed=i))[0] for i in range(4096)])
    for bits in (by_index, by_seed, by_index ^ by_seed):
        assert abs(bits.mean() - 0.5) < 0.04  # five standard deviations
        for lag in (1, 2, 3, 64):
            assert abs((bits[lag:] ^ bits[:-lag]).mean() - 0.5) < 0.04


def test_a_draw_depends_on_seed_and_index_alone(native: Native) -> None:
    rng = np.random.default_rng(8)
    logits = rng.normal(0, 2, 3000).astype(np.float32)
    params = Sampling(seed=9)
    forward = [native(logits, params, i)[0] for i in range(50)]
    backward = [native(logits, params, i)[0] for i in reversed(range(50))]
    assert forward == backward[::-1]
    # a filter that removes nothing does not change the draw
    assert [native(logits, dataclasses.replace(params, typical_p=0.9999999), i)[0] for i in range(50)] == forward
    assert [native(logits, params, i, mask=np.full(94, 0xFFFFFFFF, np.uint32))[0] for i in range(50)] == forward


# ---- log probabilities ----


@pytest.mark.parametrize("size", [1, 5, 1000, 150001])
def test_log_probabilities(native: Native, size: int) -> None:
    logits = np.random.default_rng(size).normal(3, 4, size).astype(np.float32)
    exact = logits.astype(np.float64) - np.logaddexp.reduce(logits.astype(np.float64))
    np.testing.assert_allclose(log_probabilities(logits), exact, rtol=1e-7, atol=1e-8)
    n_top = min(size, 20)
    # bias, penalties, mask and truncation must not show in what is reported
    params = Sampling(seed=1, logit_bias={0: 30.0}, repeat_penalty=1.5, top_k=1)
    token, logprob, top = native(logits, params, 0, [0], n_top=n_top)
    assert token == 0
    assert logprob == log_probabilities(logits)[0]
    best = np.lexsort((np.arange(size), -logits))[:n_top]
    assert top == [(int(i), float(log_probabilities(logits)[i])) for i in best]


def test_top_list_is_filled_up(native: Native) -> None:
    logits = np.array([-np.inf, 0.0, -np.inf, 0.0], np.float32)
    top = native(logits, OFF, n_top=4)[2]
    half = pytest.approx(math.log(0.5), rel=1e-7)
    assert top == [(1, half), (3, half), (-1, -math.inf), (-1, -math.inf)]
    assert native(logits, OFF, n_top=2, want_logprob=False)[2] == [(1, half), (3, half)]


def test_natural_log() -> None:
    for y in np.concatenate([np.geomspace(1e-300, 1e300, 2001), np.linspace(0.5, 2, 2001)]).tolist():
        assert natural_log(y) == pytest.approx(math.log(y), rel=1e-14, abs=2e-14)


# ---- what is refused ----


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf])
@pytest.mark.parametrize("at", [0, 63, 64, 200, 299])
def test_non_finite_logits_are_an_error(native: Native, value: float, at: int) -> None:
    for fill in (-1.0, 1.0, -np.inf):
        logits = np.full(300, fill, np.float32)
        logits[at] = np.copysign(value, -1.0) if value is not np.inf and at % 2 else value
        mask = np.full(10, 0xFFFFFFFF, np.uint32)
        mask[at // 32] &= ~np.uint32(1 << at % 32)  # masking it does not hide it
        for m in (None, mask):
            assert native(logits, OFF, mask=m)[0] == E_NONFINITE
            with pytest.raises(NonFiniteError):
                sample(logits, OFF, 0, [], m)


def test_nothing_allowed_is_an_error(native: Native) -> None:
    banned, one = np.full(200, -np.inf, np.float32), np.zeros(1, np.float32)
    assert native(banned, OFF)[0] == E_NONFINITE
    assert native(one, OFF, mask=np.zeros(1, np.uint32))[0] == E_NONFINITE
    with pytest.raises(NonFiniteError, match="no allowed token"):
        sample(one, OFF, 0, [], np.zeros(1, np.uint32))


def test_bad_arguments_are_refused_in_c(native: Native) -> None:
    logits = np.zeros(10, np.float32)
    assert native.lib.slm_sample_scratch(0) == native.lib.slm_sample_scratch(2**22 + 1) == 0
    bad: list[dict[str, Any]] = [{"recent": [10]}, {"recent": [-1]}, {"n_top": 11}]
    for name in (
        "temperature",
        "top_p",
        "min_p",
        "typical_p",
        "repeat_penalty",
        "frequency_penalty",
        "presence_penalty",
    ):
        bad.append({name: math.nan})
    bad += [{"temperature": math.inf}, {"repeat_penalty": 0.0}, {"top_p": -0.1}, {"min_p": 1.5}, {"typical_p": -1.0}]
    for more in bad:
        assert native(logits, OFF, **more)[0] == E_ARGUMENT, more
    assert native(logits, dataclasses.replace(OFF, logit_bias={10: 1.0}))[0] == E_ARGUMENT
    ffi, null = native.ffi, native.ffi.NULL
    room = ffi.new("char[]", 4096)
    aligned = room + (-int(ffi.cast("intptr_t", room)) % 64)
    data, s = ffi.new("float[10]"), ffi.new("slm_sampler *", {"temperature": 1.0, "repeat_penalty": 1.0})

    def call(**change: Any) -> int:
        plain = {
            "logits": data, "maxima": null, "n": 10, "s": s, "index": 0, "recent": null, "n_recent": 0,
            "bias_ids": null, "bias": null, "n_bias": 0, "mask": null, "logprob": null, "n_top": 0, "ids": null,
            "probs": null, "scratch": aligned,
        }  # fmt: skip
        return int(native.lib.slm_sample(*(plain | change).values()))

    assert call() >= 0
    for change in (
        {"logits": null}, {"s": null}, {"scratch": null}, {"scratch": aligned + 4}, {"n": 0}, {"n": -1}, {"n": 2**30},
        {"n_recent": 1}, {"n_recent": -1}, {"n_bias": 1}, {"n_bias": -1}, {"n_top": 1}, {"n_top": -1},
    ):  # fmt: skip
        assert call(**change) == E_ARGUMENT, change


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf), ("temperature", "1"),
        ("temperature", True), ("temperature", 1e39), ("top_p", 1.1), ("top_p", -0.1), ("top_p", math.nan),
        ("min_p", 2), ("typical_p", -1), ("repeat_penalty", 0.0), ("repeat_penalty", math.nan),
        ("frequency_penalty", math.inf), ("presence_penalty", math.nan), ("top_k", 1.5), ("top_k", 2**31),
        ("top_k", True), ("seed", -1), ("seed", 2**64), ("seed", 1.0), ("repeat_last_n", -1),
        ("logit_bias", {-1: 0.0}), ("logit_bias", {1: math.nan}), ("logit_bias", {1: math.inf}),
        ("logit_bias", {"a": 1.0}), ("logit_bias", [1]),
    ],
)  # fmt: skip
def test_options_are_checked(name: str, value: object) -> None:
    with pytest.raises(OptionError, match=name) as caught:
        Sampling(**{name: value})  # type: ignore[arg-type]
    shown = value if not isinstance(value, dict) else next(iter(value.items()))[0 if name not in str(value) else 1]
    assert str(shown) in str(caught.value)


def test_sampling_is_a_value() -> None:
    biases = {3: 1.0}
    params = Sampling(logit_bias=biases, temperature=np.float32(0.5), top_k=np.int64(3))  # type: ignore[arg-type]
    biases[4] = 2.0
    assert params.logit_bias == {3: 1.0}
    assert pickle.loads(pickle.dumps(params)) == params
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.top_k = 2  # type: ignore[misc]
    assert Sampling(seed=5).resolved_seed() == 5
    drawn = {params.resolved_seed() for _ in range(20)}
    assert len(drawn) == 20
    assert all(0 <= seed < 2**63 for seed in drawn)


def test_the_twin_names_what_it_refuses() -> None:
    logits = np.zeros(4, np.float32)
    with pytest.raises(OptionError, match="seed=None"):
        sample(logits, Sampling(), 0, [])
    with pytest.raises(OptionError, match="token id 4"):
        sample(logits, Sampling(seed=0, presence_penalty=1.0), 0, [4])


def test_defaults_are_those_of_llama_cpp() -> None:
    assert dataclasses.astuple(Sampling()) == (0.8, 40, 0.95, 0.05, 1.0, 1.0, 0.0, 0.0, None, None, 64)


def test_the_header_is_plain() -> None:
    assert not re.search(r"^\s*#", (CSRC / "api.h").read_text(), re.M)
