"""The speed of each kernel, for each format and instruction set, beside the machine's limits.

    pytest bench/test_kernels_speed.py --benchmark-sort=name --benchmark-json=kernels.json

extra_info has GB/s or GOPS, the limit that was measured before each round, and the share of it (the median of pairs).
TINYSLM_THREADS says on how many threads; -k picks among the cases.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyslm import bench, shapes
from tinyslm.backends.base import ACTIVATION_BLOCK, Batch, Weights
from tinyslm.backends.native import Native, isa_names
from tinyslm.backends.threads import default_threads
from tinyslm.engine import Engine, Work
from tinyslm.formats import BY_NAME
from tinyslm.gguf import GGUF, TensorData, write
from tinyslm.kvcache import Sequence
from tinyslm.ops import Builder, Program, Weight

ROUNDS = 9
K = 2048
MEMORY = 1 << 27  # bytes of what is read once a step: more than caches hold
PROMPT = 512
DEPTH = 4096
HEADS, KV_HEADS = 32, 8
KINDS = [*ACTIVATION_BLOCK, "F16", "BF16"]
ISAS = [name for name, here in isa_names() if here]


@pytest.fixture(scope="module", params=ISAS)
def limits(request: pytest.FixtureRequest) -> Iterator[tuple[str, bench.Limits]]:
    """An instruction set, and the machine's limits on it."""
    with bench.Limits(request.param, default_threads()) as limits:
        yield request.param, limits


def random_tensor(name: str, n: int, k: int, kind: str) -> TensorData:
    form, rng = BY_NAME[kind], np.random.default_rng(0)
    rows = [16] * (n // 16)
    return TensorData(name, (k, n), form.id, (shapes.MAKERS[kind](rng, r * k // form.block, k) for r in rows))


def engine(path: Path, program: Program, tensors: list[TensorData], isa: str) -> Engine:
    write(path, {}, tensors)
    with GGUF.open(path) as file:
        made = Engine(program, Native(program, Weights(file), default_threads(), PROMPT, isa))
    path.unlink()
    return made


def timed(
    benchmark: Any, limits: bench.Limits, step: Callable[[], object], work: float, operations: bool, **info: object
) -> None:
    """Rounds of a step that does `work` operations, or reads so many bytes, a probe before each."""
    probes = list[float]()

    def probe() -> None:
        found = limits.run()
        probes.append(found.ops_per_second if operations else found.bytes_per_second)

    benchmark.pedantic(step, setup=probe, rounds=ROUNDS, warmup_rounds=1)
    rates = [work / seconds for seconds in benchmark.stats.stats.data]
    beside = probes[-ROUNDS:]
    benchmark.extra_info |= {
        "threads": default_threads(), **info, "gops" if operations else "gbps": statistics.median(rates) / 1e9,
        "probe": statistics.median(beside) / 1e9,
        "limit_share": statistics.median(r / p for r, p in zip(rates, beside, strict=True)),
    }  # fmt: skip


@pytest.mark.parametrize("tokens", [1, 4, PROMPT])
@pytest.mark.parametrize("kind", KINDS)
def test_matmul(benchmark: Any, tmp_path: Path, limits: tuple[str, bench.Limits], kind: str, tokens: int) -> None:
    """W x of rows of 2048 weights: with few tokens as many rows as memory is to be read, else few."""
    isa, probe = limits
    row = K // BY_NAME[kind].block * BY_NAME[kind].bytes
    n = (256 if isa == "scalar" else 8192) if tokens == PROMPT else MEMORY // row // 16 * 16
    b = Builder(n, PROMPT)
    x = b.select(b.embed(Weight("embedding", 16, K)))
    b.logits(b.matmul(x, Weight("matrix", n, K)))
    tensors = [random_tensor("embedding", 16, K, "F32"), random_tensor("matrix", n, K, kind)]
    made = engine(tmp_path / "matmul.gguf", b.build(), tensors, isa)
    each = np.arange(tokens, dtype=np.int32)
    batch = Batch(each % 16, each, np.zeros_like(each), each, [[0] * -(-tokens // 64)])
    logits = np.empty((tokens, n), np.float32)
    work = 2.0 * n * K * tokens if tokens == PROMPT else float(n * row)
    timed(benchmark, probe, lambda: made.backend.step(batch, logits), work, tokens == PROMPT,
          kernel="matmul", kind=kind, isa=isa, tokens=tokens)  # fmt: skip
    made.close()


@pytest.mark.parametrize("tokens", [1, PROMPT])
@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
def test_attention(benchmark: Any, tmp_path: Path, limits: tuple[str, bench.Limits], dim: int, tokens: int) -> None:
    """32 heads on 8 of keys and values, behind 4096 tokens: one token each of several sequences, or a prompt of one.

    The operations are those of the products with keys and values. They run in float32, so that the share of the 8-bit
    rate says how the kernel stands beside the matrices, not how near it is to its own limit.
    """
    isa, probe = limits
    b = Builder(16, 2 * DEPTH)
    q, k, v = (
        b.embed(Weight(name, 16, heads * dim)) for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))
    )
    store = b.store(k, v, KV_HEADS)
    x = b.attend(b.select(q), store, HEADS, dim**-0.5)
    b.logits(b.matmul(x, Weight("output", 16, HEADS * dim)))  # as little as there can be behind it
    tensors = [random_tensor(name, 16, h * dim, "F32") for name, h in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))]
    tensors.append(random_tensor("output", 16, HEADS * dim, "F32"))
    made = engine(tmp_path / "attention.gguf", b.build(), tensors, isa)
    size = KV_HEADS * 2 * dim * 2 * DEPTH  # of the keys and values of one sequence
    sequences = [Sequence() for _ in range(1 if tokens == PROMPT else -(-MEMORY // size))]
    ids = np.arange(PROMPT, dtype=np.int32) % 16
    logits = np.empty((PROMPT, 16), np.float32)
    for s in sequences:
        for _ in range(0, DEPTH, PROMPT):
            made.step([Work(s, ids, 0)], logits[:0])

    def step() -> None:
        made.step([Work(s, ids[:tokens], tokens) for s in sequences], logits[: tokens * len(sequences)])
        for s in sequences:
            made.cache.truncate(s, DEPTH)

    work = 4.0 * HEADS * dim * tokens * (DEPTH + tokens / 2) if tokens == PROMPT else float(size * len(sequences))
    timed(benchmark, probe, step, work, tokens == PROMPT, kernel="attention", dim=dim, isa=isa, tokens=tokens,
          sequences=len(sequences), depth=DEPTH)  # fmt: skip
    for s in sequences:
        made.cache.free(s)
    made.close()
