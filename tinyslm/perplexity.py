"""How well a model foresees a text, and how far another model's probabilities are from its own.

Windows and errors are those of llama.cpp's llama-perplexity, so that numbers compare. The text is cut into windows of c
tokens; what is left over at its end is not used. Each window is read by itself, its first token replaced by BOS where
the model puts BOS before a text. Scored are its tokens c // 2 + 1 … c - 1, each with all tokens of the window before it
as its past: of 512 tokens 255. Perplexity is e^m, m the mean over all scored tokens of the negative log-likelihood.

Errors are standard errors: that of a mean is s / sqrt(n - 1), s² the mean squared deviation; what is computed from
means has theirs, propagated to first order, with the covariance of the two models' log-likelihoods, which are paired.
Sums and exponentials are made in float64.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from . import kvcache
from .engine import Work
from .errors import NonFiniteError, OptionError
from .model import load
from .tokenizer import Tokenizer

F64 = npt.NDArray[np.float64]
SHORTEST = 8  # tokens of a window: three are scored then
BLOCK_BYTES = 16 << 20  # of the logits that one model holds at a time
PIECE = 1 << 16  # logits that are reduced at once: their float64 copies stay in the cache


class Estimate(NamedTuple):
    """A value and its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Comparison:
    """A model beside a base, over the same scored tokens. Differences of probabilities are those of the text's own
    tokens, model less base; divergences are in nats, KL(base ‖ model)."""

    base_perplexity: Estimate
    correlation: float
    """Of the two models' log-likelihoods; nan where one of them does not vary."""
    log_ratio: Estimate
    """ln(perplexity / base perplexity)."""
    ratio: Estimate
    difference: Estimate
    kl: Estimate
    kl_median: float
    kl_99: float
    """99 of 100 tokens have a smaller divergence."""
    kl_999: float
    kl_max: float
    same_top: Estimate
    """The share of tokens where both models hold the same token for the likeliest."""
    mean_probability_difference: Estimate
    rms_probability_difference: Estimate
    max_probability_difference: float
    """The greatest magnitude."""


@dataclass(frozen=True)
class Perplexity:
    """What was measured over `windows` windows, of whose tokens `tokens` were scored."""

    windows: int
    tokens: int
    nll: Estimate
    """Mean negative log-likelihood, nats a token."""
    perplexity: Estimate
    comparison: Comparison | None


class Scores:
    """What was found of each scored token, window by window. One thread adds; any may look."""

    def __init__(self) -> None:
        self._parts: list[F64] = []
        self._tokens, self._sums = 0, np.zeros(2)

    def add(self, part: F64) -> None:
        """Of a window: float64 (1, tokens), the negative log-likelihoods; or (4, tokens): those, the base's, the
        divergences, and 1 where both have the same likeliest token."""
        self._tokens += part.shape[1]
        self._sums += (part[0].sum(), (part[0] ** 2).sum())
        self._parts.append(part)

    @property
    def windows(self) -> int:
        return len(self._parts)

    def perplexity(self) -> Estimate:
        """So far, from sums: cheap after each window of a long text, where `result` looks at every token again."""
        mean, square = (self._sums / self._tokens).tolist()
        return exponential(Estimate(mean, math.sqrt(max(square - mean * mean, 0.0) / max(self._tokens - 1, 1))))

    def result(self) -> Perplexity:
        """Of all windows so far; there must be one."""
        parts = self._parts[:]
        nll, *compared = np.concatenate(parts, axis=1)
        mean = mean_of(nll)
        comparison = compare(nll, *compared) if compared else None
        return Perplexity(len(parts), len(nll), mean, exponential(mean), comparison)


def mean_of(values: F64) -> Estimate:
    error = values.std() / math.sqrt(len(values) - 1) if len(values) > 1 else math.nan
    return Estimate(float(values.mean()), float(error))


def exponential(x: Estimate) -> Estimate:
    value = math.exp(min(x.value, 700.0))  # what is beyond is no model
    return Estimate(value, value * x.error)


def compare(nll: F64, base_nll: F64, kl: F64, same: F64) -> Comparison:
    """The statistics over tokens, float64 (tokens,) each."""
    ours, bases = mean_of(nll), mean_of(base_nll)
    covariance = float(((nll - ours.value) * (base_nll - bases.value)).mean()) / (len(nll) - 1)
    ppl, base_ppl = exponential(ours), exponential(bases)
    log_ratio = Estimate(ours.value - bases.value, _error_of_difference(ours.error, bases.error, covariance))
    product = ours.error * bases.error
    change = np.exp(-nll) - np.exp(-base_nll)
    square = mean_of(change**2)
    rms = math.sqrt(square.value)
    median, most_99, most_999 = np.quantile(kl, (0.5, 0.99, 0.999)).tolist()
    return Comparison(
        base_perplexity=base_ppl,
        correlation=covariance / product if product else math.nan,
        log_ratio=log_ratio,
        ratio=exponential(log_ratio),
        difference=Estimate(
            ppl.value - base_ppl.value,
            _error_of_difference(ppl.error, base_ppl.error, ppl.value * base_ppl.value * covariance),
        ),
        kl=mean_of(kl),
        kl_median=median,
        kl_99=most_99,
        kl_999=most_999,
        kl_max=float(kl.max()),
        same_top=mean_of(same),
        mean_probability_difference=mean_of(change),
        rms_probability_difference=Estimate(rms, square.error / (2 * rms) if rms else 0.0),
        max_probability_difference=float(np.abs(change).max()),
    )


def _error_of_difference(a: float, b: float, covariance: float) -> float:
    return math.sqrt(max(a * a + b * b - 2 * covariance, 0.0))


# ---- from logits to scores ----


def score(logits: np.ndarray, tokens: np.ndarray) -> F64:
    """float32 (rows, vocabulary) and the token that follows each row: negative log-likelihoods, float64 (1, rows)."""
    total, x = _log_sum(logits)
    nll: F64 = total - x[np.arange(len(x)), tokens]
    return nll[None]


def score_beside(logits: np.ndarray, base: np.ndarray, tokens: np.ndarray) -> F64:
    """The same beside a base's logits: float64 (4, rows), as `Scores.add` takes them."""
    total, x = _log_sum(logits)
    base_total, y = _log_sum(base)
    rows = np.arange(len(x))
    # ln(p_base / p) is the difference of the logits less that of the sums, and the p_base add up to 1
    kl = np.einsum("ij,ij->i", np.exp(y - base_total[:, None]), y - x) - base_total + total
    same = x.argmax(axis=1) == y.argmax(axis=1)
    return np.stack([total - x[rows, tokens], base_total - y[rows, tokens], kl, same])


def _log_sum(logits: np.ndarray) -> tuple[F64, F64]:
    """ln Σ e^logit of each row, and the logits, in float64."""
    x = logits.astype(np.float64)
    top = x.max(axis=1, keepdims=True)
    return np.log(np.exp(x - top).sum(axis=1)) + top[:, 0], x


# ---- models and texts ----


class Scorer:
    """A loaded model whose logits are taken block by block. One thread uses it."""

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        *,
        threads: int | None = None,
        batch: int = 512,
        backend: str | None = None,
        activations: int | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        """Options as for tinyslm.load, which also says what is raised; `batch`: most tokens in a step."""
        self.model = load(
            path, threads=threads, backend=backend, chunk=batch, activations=activations, progress=progress
        )
        self.tokenizer, self.threads = self.model.tokenizer, self.model.threads
        self._engine, self._batch = self.model._scheduler.engine, batch
        rows = max(1, min(batch, BLOCK_BYTES // (4 * self.model.vocab_size)))
        self._logits = np.empty((rows, self.model.vocab_size), np.float32)

    def logits(self, ids: np.ndarray, first: int) -> Iterator[np.ndarray]:
        """The logits at positions `first` … of a sequence of its own, int32 (tokens,): blocks of rows, float32
        (rows, vocabulary), each valid until the next is asked for. Raises NonFiniteError, MemoryError."""
        sequence, at = kvcache.Sequence(), 0
        try:
            while at < len(ids):
                start = max(at, first)
                end = min(at + self._batch, start + len(self._logits), len(ids))
                block = self._logits[: max(0, end - start)]
                if not all(self._engine.step([Work(sequence, ids[at:end], len(block))], block)):
                    raise NonFiniteError(f"{self.model.path}: a value is no finite number")
                if len(block):
                    yield block
                at = end
        finally:
            self._engine.cache.free(sequence)

    def close(self) -> None:
        self.model.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def windows(model: Scorer, text: str, context: int | None = None) -> list[np.ndarray]:
    """The text's windows of `context` tokens (None: 512, or the model's context where that is less), int32 each.

    Raises OptionError where the model's context is shorter than the window, or the text is.
    """
    longest = model.model.context
    c = min(512, longest) if context is None else context
    if not SHORTEST <= c <= longest:
        raise OptionError(f"a window of {c} tokens: {model.model.path.name} can have {SHORTEST} to {longest}")
    tokenizer = model.tokenizer
    begin = [tokenizer.bos] if tokenizer.add_bos and tokenizer.bos is not None else []
    ids = np.array(begin + tokenizer.encode(text, bos=False), np.int32)
    if len(ids) < c:
        fits = f", or a window of at most {len(ids)}" if len(ids) >= SHORTEST else ""
        raise OptionError(f"the text has {len(ids)} tokens, a window needs {c}: a longer text is wanted{fits}")
    cut = ids[: len(ids) // c * c].reshape(-1, c)
    if begin:
        cut[:, 0] = begin
    return list(cut)


def check_vocabularies(model: Tokenizer, base: Tokenizer) -> None:
    """OptionError where the two have other tokens: their probabilities could not be compared."""
    ours, theirs = ([t.token_text(i) for i in range(t.vocab_size)] for t in (model, base))
    if len(ours) != len(theirs):
        raise OptionError(f"model and base have different vocabularies: {len(ours)} and {len(theirs)} tokens")
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a != b:
            raise OptionError(f"model and base have different vocabularies: token {i} is {a!r} and {b!r}")


def measure(
    model: Scorer,
    texts: Sequence[np.ndarray],
    *,
    first: int | None = None,
    base: Scorer | None = None,
    progress: Callable[[Scores], None] | None = None,
) -> Perplexity:
    """Score windows of token ids, int32 each, of one length or of several.

    first: the position from which on logits are scored, each with the token after it (None: half of the window). base:
    a model of the same vocabulary to be compared with. progress: called after each window. The logits in memory are
    those of a block, BLOCK_BYTES a model. Raises NonFiniteError, MemoryError, and OptionError where the vocabularies
    differ.
    """
    if base:
        check_vocabularies(model.tokenizer, base.tokenizer)
    scores = Scores()
    with ThreadPoolExecutor(model.threads) as pool:
        for ids in texts:
            start = len(ids) // 2 if first is None else first
            scores.add(np.concatenate(list(_scored(model, base, ids, start, pool)), axis=1))
            if progress:
                progress(scores)
    return scores.result()


def _scored(model: Scorer, base: Scorer | None, ids: np.ndarray, first: int, pool: ThreadPoolExecutor) -> Iterator[F64]:
    """The scores of a window, block by block; both models are asked for the same rows at a time."""
    read, following = ids[:-1], ids[first + 1 :]  # the last token is foreseen, not read
    bases = base.logits(read, first) if base else None
    at = 0
    for block in model.logits(read, first):
        other = next(bases) if bases else None
        step = max(1, PIECE // block.shape[1])
        pieces = [slice(start, start + step) for start in range(0, len(block), step)]
        yield from pool.map(_scorer_of(block, other, following[at : at + len(block)]), pieces)
        at += len(block)


def _scorer_of(block: np.ndarray, base: np.ndarray | None, tokens: np.ndarray) -> Callable[[slice], F64]:
    """What scores some rows of a block."""
    if base is None:
        return lambda rows: score(block[rows], tokens[rows])
    return lambda rows: score_beside(block[rows], base[rows], tokens[rows])
