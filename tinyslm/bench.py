"""How fast a model runs here, and how near to this machine's limits.

The tests are llama-bench's: `pp512` is the time that a prompt of 512 random tokens takes, `tg128` that of 128 tokens
one after another, `@ d4096` behind 4096 tokens that are not timed; `tg128 x4` has four sequences decode together, and
counts the tokens of all. As there, only the last token of a prompt has its logits computed; the engine does the
last layer for that one alone, and is counted as if it had done it for all. Where llama-bench decodes random tokens, the
likeliest one is drawn here, as generation with temperature 0 does, and its time counts.

Two limits stand beside each repetition, from the same threads and instruction set: the rate of reading memory, and
that of 8-bit multiplications and additions in registers. Decoding is held against the first, by the bytes of the
weights that a token needs (all but the embedding, of which it takes a row), as the file holds them; a prompt against
the second, by two operations for each weight of the layers' matrices and each token.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from .backends import REMEDY, has_native
from .engine import Work
from .errors import BackendError, NonFiniteError, OptionError
from .gguf import GGUF
from .kvcache import Sequence
from .model import load
from .ops import Program
from .sampler import Sampler
from .sampling import Sampling
from .scheduler import PATIENCE

PROBE_BYTES = 1 << 28  # read by the probe: more than caches hold


@dataclass(frozen=True)
class Case:
    """A prompt of `prompt` tokens, or `gen` tokens of each of `sequences`, behind `depth` tokens."""

    prompt: int
    gen: int
    depth: int = 0
    sequences: int = 1

    @property
    def name(self) -> str:
        what = f"pp{self.prompt}" if self.prompt else f"tg{self.gen}"
        together = f" x{self.sequences}" if self.sequences > 1 else ""
        return what + together + (f" @ d{self.depth}" if self.depth else "")

    @property
    def tokens(self) -> int:
        return self.prompt + self.gen * self.sequences


def cases(prompts: Iterable[int], gens: Iterable[int], depths: Iterable[int], sequences: Iterable[int]) -> list[Case]:
    """All combinations, by depth; 0 leaves a kind out. Several sequences concern decoding only."""
    prompts, gens, sequences = list(prompts), list(gens), list(sequences)
    return [
        case
        for depth in depths
        for case in (
            *(Case(p, 0, depth) for p in prompts if p),
            *(Case(0, n, depth, b) for n in gens if n for b in sequences),
        )
    ]


@dataclass(frozen=True)
class Probe:
    """Limits of the machine, at one moment."""

    bytes_per_second: float
    ops_per_second: float


def mean(a: Probe, b: Probe) -> Probe:
    return Probe((a.bytes_per_second + b.bytes_per_second) / 2, (a.ops_per_second + b.ops_per_second) / 2)


class Limits:
    """Measures them, on the threads and the instruction set (None: the best) of an engine.

    Raises BackendError where the C core was not built, MemoryError.
    """

    def __init__(self, isa: str | None, threads: int, size: int = PROBE_BYTES) -> None:
        if not has_native():
            raise BackendError(f"the machine's limits are measured by the C core, which was not built: {REMEDY}")
        from ._native import ffi, lib

        self._ffi, self._lib = ffi, lib
        self._probe = lib.slm_probe_new(ffi.NULL if isa is None else isa.encode(), threads, size)
        if self._probe == ffi.NULL:
            raise MemoryError(f"no memory or no threads to measure the machine's limits with {size} bytes")

    def run(self) -> Probe:
        rates = self._ffi.new("double[2]")
        self._lib.slm_probe_run(self._probe, rates, rates + 1)
        return Probe(rates[0], rates[1])

    def close(self) -> None:
        self._lib.slm_probe_free(self._probe)
        self._probe = self._ffi.NULL

    def __enter__(self) -> Limits:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Result:
    """The repetitions of a test: what each took, and the limits beside it (the mean of those before and after).

    `work`: bytes read, or operations done, in a repetition.
    """

    case: Case
    nanoseconds: list[int]
    probes: list[Probe]
    work: float

    @property
    def speeds(self) -> list[float]:
        """Tokens a second."""
        return [self.case.tokens * 1e9 / ns for ns in self.nanoseconds]

    @property
    def rates(self) -> list[float]:
        """Bytes, or operations, a second."""
        return [self.work * 1e9 / ns for ns in self.nanoseconds]

    @property
    def limits(self) -> list[float]:
        return [p.ops_per_second if self.case.prompt else p.bytes_per_second for p in self.probes]

    @property
    def share(self) -> float:
        """Of the limit, 0 to 1: the median over the repetitions, each held against the limit beside it."""
        return statistics.median(rate / limit for rate, limit in zip(self.rates, self.limits, strict=True))

    def record(self) -> dict[str, Any]:
        """The result by llama-bench's names where they mean the same."""
        ns, ts, rate = self.nanoseconds, self.speeds, statistics.median(self.rates) / 1e9
        return {
            "n_prompt": self.case.prompt, "n_gen": self.case.gen, "n_depth": self.case.depth,
            "n_sequences": self.case.sequences, "test": self.case.name,
            "avg_ns": statistics.fmean(ns), "stddev_ns": deviation(ns),
            "avg_ts": statistics.fmean(ts), "stddev_ts": deviation(ts), "samples_ns": ns, "samples_ts": ts,
            "gbps": None if self.case.prompt else rate, "gops": rate if self.case.prompt else None,
            "probe_gbps": statistics.median(p.bytes_per_second for p in self.probes) / 1e9,
            "probe_gops": statistics.median(p.ops_per_second for p in self.probes) / 1e9,
            "limit_share": self.share,
        }  # fmt: skip


def deviation(samples: list[Any]) -> float:
    return statistics.stdev(samples) if len(samples) > 1 else 0.0


def layer_weights(program: Program) -> int:
    """Weights of the matrices that a token of a prompt meets: all but the embedding and the output."""
    matmuls = [op for op in program.ops if op.kind == "matmul"]
    result = program.ops[-1].reads[0]
    return sum(op.weight.n * op.weight.k for op in matmuls if op.weight and op.out != result)


class Bench:
    """A loaded model to be measured, on random tokens. One thread uses it."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        threads: int | None = None,
        progress: Callable[[float], None] | None = None,
        limits: int = PROBE_BYTES,
        kv: str = "f16",
    ) -> None:
        """Options as for tinyslm.load, which also says what is raised; `limits`: bytes that the probe reads."""
        self.path, self.kv = Path(path), kv
        with GGUF.open(self.path) as file:
            self.bytes = sum(t.nbytes for t in file.tensors.values())
            self.params = sum(prod(t.shape) for t in file.tensors.values())
        self.model = load(self.path, threads=threads, kv=kv, progress=progress)
        try:
            self.limits = Limits(self.model.isa, self.model.threads, limits)
        except BaseException:
            self.model.close()
            raise
        self._engine = self.model._scheduler.engine
        self._weights = layer_weights(self._engine.program)
        self._rng = np.random.default_rng(0)
        self._greedy = Sampler(Sampling(temperature=0), self.model.vocab_size)
        self._depth, self._sequences = 0, list[Sequence]()

    def record(self) -> dict[str, Any]:
        """The model and how it runs, by llama-bench's names where they mean the same."""
        return {
            "model_filename": str(self.path), "model_size": self.bytes, "model_n_params": self.params,
            "backends": self.model.backend, "isa": self.model.isa, "n_threads": self.model.threads,
            "n_batch": self.model.chunk, "type_k": self.kv, "type_v": self.kv,
        }  # fmt: skip

    def check(self, case: Case) -> None:
        """OptionError for a test that is longer than the model's context."""
        if case.depth + max(case.prompt, case.gen) > self.model.context:
            raise OptionError(f"{case.name}: {self.path.name} has a context of {self.model.context} tokens")

    def run(self, case: Case, repetitions: int = 5, progress: Callable[[float], None] | None = None) -> Result:
        """Measure. Raises NonFiniteError where the model's values overflow, MemoryError, OptionError as `check`."""
        self.prepare(case)
        taken, probes = list[int](), [self.limits.run()]
        for i in range(repetitions):
            taken.append(self.repeat(case))
            probes.append(self.limits.run())
            if progress:
                progress((i + 1) / repetitions)
        return Result(case, taken, [mean(a, b) for a, b in pairwise(probes)], self.work(case))

    def work(self, case: Case) -> float:
        """What a repetition is counted as: operations of a prompt, bytes of decoding."""
        return 2.0 * self._weights * case.prompt if case.prompt else float(self.model.step_bytes) * case.gen

    def prepare(self, case: Case) -> None:
        """Have the depth, and run once uncounted; of decoding, two steps. Raises as `run`."""
        self.check(case)
        self._filled(case)
        self.repeat(Case(case.prompt, min(case.gen, 2), case.depth, case.sequences))

    def _filled(self, case: Case) -> list[Sequence]:
        """Sequences of the test's depth, each with pages of its own; kept for the next test of that depth."""
        if case.depth != self._depth:
            self._free()
            self._depth = case.depth
        while len(self._sequences) < case.sequences:
            self._sequences.append(Sequence())
            self._read(self._sequences[-1], self._ids(case.depth))
        return self._sequences[: case.sequences]

    def _ids(self, *shape: int) -> np.ndarray:
        return self._rng.integers(0, self.model.vocab_size, shape, np.int32)

    def repeat(self, case: Case) -> int:
        """Nanoseconds of one repetition; the sequences are then as they were."""
        sequences = self._filled(case)
        ids = self._ids(case.prompt or case.sequences)
        start = time.perf_counter_ns()
        if case.prompt:
            self._read(sequences[0], ids)
        else:
            self._generate(sequences, ids, case.gen)
        taken = time.perf_counter_ns() - start
        for s in sequences:
            self._engine.cache.truncate(s, case.depth)
        return taken

    def _read(self, sequence: Sequence, ids: np.ndarray) -> None:
        """A prompt, with the logits of its last token."""
        logits = np.empty((1, self.model.vocab_size), np.float32)
        for at in range(0, len(ids), self.model.chunk):
            end = at + self.model.chunk
            self._step([Work(sequence, ids[at:end], int(end >= len(ids)))], logits[: int(end >= len(ids))])

    def _generate(self, sequences: list[Sequence], ids: np.ndarray, count: int) -> None:
        """So many steps, the first of one id for each sequence: as many in a call as a stream takes."""
        logits = np.empty((len(sequences), self.model.vocab_size), np.float32)
        steps, done = 1, 0
        while done < count:
            works = [Work(s, ids[i : i + 1], 1) for i, s in enumerate(sequences)]
            start = time.perf_counter()
            if self._engine.backend.burst:
                drawn = self._burst(works, logits, min(steps, count - done))
            else:
                self._step(works, logits)
                drawn = logits.argmax(1).astype(np.int32)[None]
            ids, done = drawn[-1], done + len(drawn)
            steps = max(1, int(PATIENCE / (time.perf_counter() - start) * len(drawn)))

    def _burst(self, works: list[Work], logits: np.ndarray, steps: int) -> np.ndarray:
        """The likeliest tokens of up to so many steps, int32 (steps, sequences)."""
        draws = [self._greedy.ahead(0, (), False, ())] * len(works)
        drawn = self._engine.burst(works, logits, draws, steps, np.zeros(1, np.int32))
        if not drawn[0]:
            raise self._broken()
        return np.array([[token for token, _ in tokens] for tokens in drawn], np.int32).T

    def _broken(self) -> NonFiniteError:
        return NonFiniteError(f"{self.path}: a value is no finite number")

    def _step(self, works: list[Work], logits: np.ndarray) -> None:
        if not all(self._engine.step(works, logits)):
            raise self._broken()

    def _free(self) -> None:
        for s in self._sequences:
            self._engine.cache.free(s)
        self._sequences.clear()

    def close(self) -> None:
        self._free()
        self.limits.close()
        self.model.close()

    def __enter__(self) -> Bench:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
