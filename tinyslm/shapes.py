"""Random-weight files of real models' shapes, so that speed can be measured without a download."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from .errors import OptionError
from .formats import TYPES, TYPE_IDS
from .gguf import TensorData, write

CHUNK = 1 << 22  # bytes made at once


@dataclass(frozen=True)
class Shape:
    """Hyperparameters of a Llama-family model; widths in elements."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    ff: int
    vocab: int
    context: int
    tied: bool
    rope_base: float = 10000.0
    head_dim: int = 0

    @property
    def dim(self) -> int:
        return self.head_dim or self.width // self.heads


# From the models' published config.json files.
SHAPES = {
    "smollm2-135m": Shape(30, 576, 9, 3, 1536, 49152, 8192, True, 100000.0),
    "smollm2-360m": Shape(32, 960, 15, 5, 2560, 49152, 8192, True, 100000.0),
    "llama-3.2-1b": Shape(16, 2048, 32, 8, 8192, 128256, 131072, True, 500000.0),
    "tinyllama-1.1b": Shape(22, 2048, 32, 4, 5632, 32000, 2048, False),
    "llama-3.2-3b": Shape(28, 3072, 24, 8, 8192, 128256, 131072, True, 500000.0, 128),
    "mistral-7b": Shape(32, 4096, 32, 8, 14336, 32768, 32768, False, 1000000.0),
}


def make(path: str | os.PathLike[str], shape: Shape, kind: str, embedding: str | None = None, seed: int = 0) -> None:
    """Write a file of `shape` whose matrices are random blocks of type `kind`, the embedding of type `embedding`.

    Row sums of squares are about 1, so that activations keep their size. The vocabulary is 256 bytes and made-up words.
    Raises OptionError for a type that this does not make, or whose blocks do not divide a row.
    """
    rng = np.random.default_rng(seed)
    write(path, metadata(shape), list(_tensors(shape, kind, embedding or kind, rng)))


def metadata(shape: Shape) -> dict[str, object]:
    tokens, merges = _vocabulary(shape.vocab)
    return {
        "general.architecture": "llama", "general.name": "random weights", "llama.vocab_size": shape.vocab,
        "llama.context_length": shape.context, "llama.embedding_length": shape.width, "llama.block_count": shape.layers,
        "llama.feed_forward_length": shape.ff, "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads, "llama.attention.key_length": shape.dim,
        "llama.attention.value_length": shape.dim, "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": shape.rope_base, "llama.rope.dimension_count": shape.dim,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([1] * (shape.vocab - 2) + [3, 3], np.int32),
        "tokenizer.ggml.merges": merges, "tokenizer.ggml.bos_token_id": shape.vocab - 2,
        "tokenizer.ggml.eos_token_id": shape.vocab - 1, "tokenizer.ggml.add_bos_token": True,
    }  # fmt: skip


def _vocabulary(size: int) -> tuple[list[str], list[str]]:
    """Byte tokens in GPT-2's spelling, words of two letters and of two such words, and two control tokens."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spelled = {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in plain)}
    tokens = [spelled[b] for b in range(256)]
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    pairs = [a + b for a in letters for b in letters]
    merges = [f"{p[0]} {p[1]}" for p in pairs]
    words = pairs + [a + b for a in pairs for b in pairs]
    merges += [f"{a} {b}" for a in pairs for b in pairs]
    room = size - len(tokens) - 2
    if not 0 <= room <= len(words):
        raise OptionError(f"no vocabulary of {size} tokens can be made up")
    return [*tokens, *words[:room], "<|begin|>", "<|end|>"], merges[:room]


def _tensors(shape: Shape, kind: str, embedding: str, rng: np.random.Generator) -> Iterator[TensorData]:
    def matrix(name: str, n: int, k: int, kind: str = kind) -> TensorData:
        block = TYPES[TYPE_IDS[kind]].block
        if kind not in MAKERS or k % block:
            raise OptionError(f"random {kind} rows of {k} weights cannot be made")
        return TensorData(name, (k, n), TYPE_IDS[kind], _chunks(n * k // block, k, kind, rng))

    def norm(name: str) -> TensorData:
        return TensorData(name, (shape.width,), TYPE_IDS["F32"], np.ones(shape.width, np.float32))

    width, q, kv = shape.width, shape.heads * shape.dim, shape.kv_heads * shape.dim
    yield matrix("token_embd.weight", shape.vocab, width, embedding)
    for i in range(shape.layers):
        yield norm(f"blk.{i}.attn_norm.weight")
        yield matrix(f"blk.{i}.attn_q.weight", q, width)
        yield matrix(f"blk.{i}.attn_k.weight", kv, width)
        yield matrix(f"blk.{i}.attn_v.weight", kv, width)
        yield matrix(f"blk.{i}.attn_output.weight", width, q)
        yield norm(f"blk.{i}.ffn_norm.weight")
        yield matrix(f"blk.{i}.ffn_gate.weight", shape.ff, width)
        yield matrix(f"blk.{i}.ffn_up.weight", shape.ff, width)
        yield matrix(f"blk.{i}.ffn_down.weight", width, shape.ff)
    yield norm("output_norm.weight")
    if not shape.tied:
        yield matrix("output.weight", shape.vocab, width, embedding)


def _chunks(blocks: int, k: int, kind: str, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Random blocks, a few megabytes at a time."""
    size = TYPES[TYPE_IDS[kind]].bytes
    while blocks:
        n = min(blocks, max(1, CHUNK // size))
        yield MAKERS[kind](rng, n, k)
        blocks -= n


def _scaled(rng: np.random.Generator, n: int, size: int, deviation: float, k: int, at: int) -> np.ndarray:
    """Random bytes, with an f16 scale at `at` that gives weights a deviation of 1/√k, codes having `deviation`."""
    blocks = np.frombuffer(rng.bytes(n * size), np.uint8).reshape(n, size).copy()
    blocks[:, at : at + 2] = np.array([1 / (deviation * k**0.5)], np.float16).view(np.uint8)
    return blocks


def _q4_0(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    return _scaled(rng, n, 18, 4.6, k, 0)


def _q8_0(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    return _scaled(rng, n, 34, 74.0, k, 0)


def _two_level(size: int, top: int) -> Callable[[np.random.Generator, int, int], np.ndarray]:
    """Codes 0 … top about their middle: the minimum is half of what the scale spans. All groups' scales are alike."""

    def make(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
        blocks = _scaled(rng, n, size, 32 * (top + 1) / 12**0.5, k, 0)
        blocks[:, 2:4] = np.array([top / 2 / (32 * (top + 1) / 12**0.5 * k**0.5)], np.float16).view(np.uint8)
        blocks[:, 4:12], blocks[:, 12:16] = 32 | 2 << 6, 0
        return blocks

    return make


def _q6_k(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    return _scaled(rng, n, 210, 18.5 * 74, k, 208)


def _f16(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    return (rng.standard_normal(n, np.float32) * k**-0.5).astype(np.float16)


def _f32(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    weights: np.ndarray = rng.standard_normal(n, np.float32) * np.float32(k**-0.5)
    return weights


MAKERS = {"F32": _f32, "F16": _f16, "Q4_0": _q4_0, "Q8_0": _q8_0, "Q4_K": _two_level(144, 15),
          "Q5_K": _two_level(176, 31), "Q6_K": _q6_k}  # fmt: skip
