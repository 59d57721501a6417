"""How the next token is drawn: the parameters, and the twin in NumPy of csrc/sample.c.

The steps and their meaning are llama.cpp's (src/llama-sampling.cpp, min_keep 1): bias and mask, penalties over the
last tokens, top-k, typical-p (Meister et al. 2022, arXiv:2202.00666), top-p (Holtzman et al. 2019, arXiv:1904.09751),
min-p (Nguyen et al. 2024, arXiv:2407.01082), temperature, draw.

The same seed gives the same token on every machine, in C and here. So probabilities are integers, exp(x - max) in
units of 2^-40, whose sums are exact; exp and log are built from IEEE operations that no library or CPU varies; ties go
to the smaller id; the random number is a hash of the seed and the token's index in its request. The twin sorts where C
selects.
"""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinyslm.errors import NonFiniteError, OptionError

_LARGEST = float(np.finfo(np.float32).max)
_UNIT_BITS = 40
_WORD = 2**64

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Weights = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Sampling:
    """What shapes the draw. An argument outside its range, or NaN, raises OptionError.

    temperature: >= 0; 0 takes the most likely token. top_k: the k most likely tokens; 0 or less is off.
    top_p, typical_p: 0 to 1, 1 is off. min_p: 0 to 1, the least probability relative to the most likely token's, 0 is
    off.
    repeat_penalty: > 0, 1 is off; frequency_penalty, presence_penalty: finite, 0 is off; they look at the last
    `repeat_last_n` tokens of prompt and answer. logit_bias: token id to what is added to its logit; -inf bans it.
    seed: 0 to 2^64 - 1; None draws a fresh one for each request.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None
    repeat_last_n: int = 64

    def __post_init__(self) -> None:
        _check_real("temperature", self.temperature, 0.0, _LARGEST)
        for name in ("top_p", "min_p", "typical_p"):
            _check_real(name, getattr(self, name), 0.0, 1.0)
        # as float32, which C computes in, it must stay above 0
        _check_real("repeat_penalty", self.repeat_penalty, float(np.finfo(np.float32).tiny), _LARGEST)
        for name in ("frequency_penalty", "presence_penalty"):
            _check_real(name, getattr(self, name), -_LARGEST, _LARGEST)
        _check_integer("top_k", self.top_k, -(2**31), 2**31 - 1)
        _check_integer("repeat_last_n", self.repeat_last_n, 0, 2**31 - 1)
        if self.seed is not None:
            _check_integer("seed", self.seed, 0, _WORD - 1)
        if self.logit_bias is not None:
            if not isinstance(self.logit_bias, Mapping):
                raise OptionError(f"logit_bias={self.logit_bias!r}: must map token ids to numbers")
            for token, bias in self.logit_bias.items():
                _check_integer("logit_bias key", token, 0, 2**31 - 1)
                if bias != -math.inf:
                    _check_real(f"logit_bias[{token}]", bias, -_LARGEST, _LARGEST, "or -inf")
            # a copy, so that the caller's later changes do not reach a running request
            object.__setattr__(self, "logit_bias", dict(self.logit_bias))

    def resolved_seed(self) -> int:
        """The seed, or, where it is None, a fresh random one of 63 bits: call it once for each request."""
        return int.from_bytes(os.urandom(8), "little") >> 1 if self.seed is None else int(self.seed)


def _check_real(name: str, value: object, low: float, high: float, also: str = "") -> None:
    is_real = isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))
    if not is_real or not low <= float(value) <= high:  # type: ignore[arg-type]
        raise OptionError(f"{name}={value!r}: must be a number from {low:g} to {high:g} {also}".rstrip())


def _check_integer(name: str, value: object, low: int, high: int) -> None:
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_integer or not low <= int(value) <= high:  # type: ignore[call-overload]
        raise OptionError(f"{name}={value!r}: must be an integer from {low} to {high}")


def sample(
    logits: Floats,
    params: Sampling,
    index: int,
    recent: Sequence[int],
    mask: npt.NDArray[np.uint32] | None = None,
) -> tuple[int, float]:
    """One token and its natural log probability, by the same decisions as slm_sample in C.

    logits: float32, shape (vocabulary,); -inf bans a token. index: the token's number in its request. recent: prompt
    and answer so far, of which the last `repeat_last_n` count. mask: bit id % 32 of word id // 32 allows token id. The
    log probability is that under the raw logits at temperature 1, before bias, mask, penalties and truncation.

    Raises NonFiniteError for a NaN or +inf, or when no allowed token has a finite logit; OptionError for a seed of None
    and for ids outside the vocabulary.
    """
    if params.seed is None:
        raise OptionError("seed=None: draw one for the request with Sampling.resolved_seed()")
    raw = np.asarray(logits, np.float32)
    _check_logits(raw)
    x = _adjusted(raw, params, recent, mask)
    _check_logits(x)
    greedy = np.float32(params.temperature) <= 0
    token = int(np.argmax(x)) if greedy else _draw(x, _kept(x, params), params, index)
    return token, float(log_probabilities(raw)[token])


def log_probabilities(logits: Floats) -> Floats:
    """The natural logarithm of softmax(logits), float32, same shape; -inf where the logit is."""
    most = float(logits.max())
    total = int(_weights(logits.astype(np.float64) - most).sum())
    log_sum = most + natural_log(total / 2**_UNIT_BITS)
    with np.errstate(over="ignore"):  # a logit of -3e38 may end at -inf
        return (logits.astype(np.float64) - log_sum).astype(np.float32)


def _check_logits(x: Floats) -> None:
    if not np.all(x < np.inf):
        raise NonFiniteError("a logit is NaN or +inf: the weights are broken or overflow in float32")
    if x.max() == -np.inf:
        raise NonFiniteError("no allowed token has a finite logit")


def _adjusted(raw: Floats, params: Sampling, recent: Sequence[int], mask: npt.NDArray[np.uint32] | None) -> Floats:
    """The logits after bias, mask and penalties, each operation rounded to float32."""
    x = raw.copy()
    with np.errstate(over="ignore", invalid="ignore"):
        for token, bias in (params.logit_bias or {}).items():
            x[_in_vocabulary(token, len(x))] += np.float32(bias)
        if mask is not None:
            ids = np.arange(len(x))
            x[mask[ids // 32] >> (ids % 32).astype(np.uint32) & np.uint32(1) == 0] = -np.inf
        repeat, frequency, presence = map(
            np.float32, (params.repeat_penalty, params.frequency_penalty, params.presence_penalty)
        )
        if repeat != 1 or frequency != 0 or presence != 0:
            window = list(recent)[-params.repeat_last_n :] if params.repeat_last_n else []
            for token in set(window):
                v = x[_in_vocabulary(token, len(x))]
                v = v * repeat if v <= 0 else v / repeat
                x[token] = v - (np.float32(window.count(token)) * frequency + presence)
    return x


def _in_vocabulary(token: int, size: int) -> int:
    if not 0 <= token < size:
        raise OptionError(f"token id {token}: must be from 0 to {size - 1}")
    return token


def _kept(x: Floats, params: Sampling) -> Ids:
    """The ids that top-k, typical-p, top-p and min-p leave."""
    ids = _most_likely_first(x, np.flatnonzero(x > -np.inf))
    if params.top_k > 0:
        ids = ids[: params.top_k]
    typical_p, top_p, min_p = np.float32(params.typical_p), np.float32(params.top_p), np.float32(params.min_p)
    if typical_p < 1:
        ids = _most_likely_first(x, _keep_typical(x, ids, float(typical_p)))
    if top_p < 1:
        weights = _weights(_below_most(x, ids))
        ids = ids[: _needed(weights, max(_share(float(top_p), weights), 1))]
    if min_p > 0:
        ids = ids[_below_most(x, ids) >= natural_log(float(min_p))]
    return ids


def _most_likely_first(x: Floats, ids: Ids) -> Ids:
    return ids[np.lexsort((ids, -x[ids]))]


def _keep_typical(x: Floats, ids: Ids, p: float) -> Ids:
    """The tokens whose surprise -log p is nearest to the entropy, until their probabilities exceed p.

    With d = max - logit, both surprise and entropy contain the logarithm of the sum: what is left is |d - mean of d|.
    """
    d = -_below_most(x, ids)
    weights = _weights(-d)
    mean = float(int((weights * d).astype(np.uint64).sum())) / float(int(weights.sum()))
    distance = np.minimum(np.abs(d - mean), 1e30).astype(np.float32)
    order = np.lexsort((ids, distance))
    return ids[order[: _needed(weights[order], _share(p, weights) + 1)]]


def _draw(x: Floats, ids: Ids, params: Sampling, index: int) -> int:
    ids = np.sort(ids)
    assert params.seed is not None
    with np.errstate(over="ignore"):
        weights = _weights(_below_most(x, ids) * (1.0 / float(np.float32(params.temperature))))
    at = random_bits(int(params.seed), index) * int(weights.sum()) // _WORD
    return int(ids[np.searchsorted(np.cumsum(weights), np.uint64(at), side="right")])


def _below_most(x: Floats, ids: Ids) -> npt.NDArray[np.float64]:
    kept: npt.NDArray[np.float64] = x[ids].astype(np.float64)
    most: np.float64 = kept.max()
    return kept - most


def _share(p: float, weights: Weights) -> int:
    """p of the sum of weights, rounded down."""
    return int(p * _WORD) * int(weights.sum()) // _WORD


def _needed(weights: Weights, target: int) -> int:
    """How many weights from the front reach the target."""
    return int(np.searchsorted(np.cumsum(weights), np.uint64(target))) + 1


def _weights(d: npt.NDArray[np.float64]) -> Weights:
    """round(exp(d) * 2^40) for d <= 0: exp(d) = 2^k exp(r), the second factor by its Taylor polynomial of degree 9."""
    d = np.maximum(d, -40.0)  # below it the result is 0 anyway
    k = np.rint(d * 1.4426950408889634)
    r = d - k * 0.6931471805599453
    p = np.full_like(d, 1.0 / math.factorial(9))
    for n in range(8, -1, -1):
        p = p * r + 1.0 / math.factorial(n)
    return np.rint(np.ldexp(p, k.astype(np.int32) + _UNIT_BITS)).astype(np.uint64)


def natural_log(y: float) -> float:
    """log(y) of a positive normal float, from atanh's series; math.log is not the same on every machine."""
    half_to_one, exponent = math.frexp(y)
    m, e = half_to_one * 2.0, exponent - 1
    if m >= 1.4142135623730951:
        m, e = m * 0.5, e + 1
    f = (m - 1.0) / (m + 1.0)
    series = 1.0 / 15.0
    for odd in range(13, 0, -2):
        series = series * (f * f) + 1.0 / odd
    return e * 0.6931471805599453 + 2.0 * f * series


def random_bits(seed: int, index: int) -> int:
    """64 random bits for token `index`: the output of SplitMix64 (Steele, Lea, Flood 2014) from a hash of the seed."""
    golden = 0x9E3779B97F4A7C15
    return splitmix(splitmix(seed + golden) + (index + 1) * golden)


def splitmix(z: int) -> int:
    """The finaliser of SplitMix64: a bijection of 64 bits."""
    z %= _WORD
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % _WORD
    z = (z ^ z >> 27) * 0x94D049BB133111EB % _WORD
    return z ^ z >> 31
