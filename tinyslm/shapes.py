"""Random-weight files of real models' shapes, so that speed can be measured without a download."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from . import mixes
from .errors import FileError, OptionError
from .formats import BY_NAME, TYPE_IDS, TYPES
from .gguf import TensorData, write

CHUNK = 1 << 22  # bytes made at once
ROOM = 1 << 26  # bytes that a disk keeps free beside a file's tensors, for its vocabulary too
Value = TypeVar("Value")


@dataclass(frozen=True)
class Shape:
    """Hyperparameters of a model; widths in elements. window: positions that most layers see; 0: all."""

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
    arch: str = "llama"
    window: int = 0

    @property
    def dim(self) -> int:
        return self.head_dim or self.width // self.heads


# From the models' published config.json files.
SHAPES = {
    "stories260k": Shape(5, 64, 8, 4, 172, 512, 512, False),
    "smollm2-135m": Shape(30, 576, 9, 3, 1536, 49152, 8192, True, 100000.0),
    "smollm2-360m": Shape(32, 960, 15, 5, 2560, 49152, 8192, True, 100000.0),
    "smollm2-1.7b": Shape(24, 2048, 32, 32, 8192, 49152, 8192, True, 130000.0),
    "llama-3.2-1b": Shape(16, 2048, 32, 8, 8192, 128256, 131072, True, 500000.0),
    "qwen2.5-0.5b": Shape(24, 896, 14, 2, 4864, 151936, 32768, True, 1000000.0, 64, "qwen2"),
    "qwen2.5-1.5b": Shape(28, 1536, 12, 2, 8960, 151936, 32768, True, 1000000.0, 128, "qwen2"),
    "qwen3-0.6b": Shape(28, 1024, 16, 8, 3072, 151936, 40960, True, 1000000.0, 128, "qwen3"),
    "qwen3-1.7b": Shape(28, 2048, 16, 8, 6144, 151936, 40960, True, 1000000.0, 128, "qwen3"),
    "gemma-3-270m": Shape(18, 640, 4, 1, 2048, 262144, 32768, True, 1000000.0, 256, "gemma3", 512),
    "gemma-3-1b": Shape(26, 1152, 4, 1, 6912, 262144, 32768, True, 1000000.0, 256, "gemma3", 512),
    "phi-3.5-mini": Shape(32, 3072, 32, 32, 8192, 32064, 131072, False, 10000.0, 96, "phi3", 262144),
    "tinyllama-1.1b": Shape(22, 2048, 32, 4, 5632, 32000, 2048, False),
    "llama-3.2-3b": Shape(28, 3072, 24, 8, 8192, 128256, 131072, True, 500000.0, 128),
    "llama-2-7b": Shape(32, 4096, 32, 32, 11008, 32000, 4096, False),
    "mistral-7b": Shape(32, 4096, 32, 8, 14336, 32768, 32768, False, 1000000.0),
    "llama-3.1-8b": Shape(32, 4096, 32, 8, 14336, 128256, 131072, False, 500000.0),
}
Kinds = Callable[[str, int], str]  # the type of a matrix, by its name and the length of its rows


def make(path: str | os.PathLike[str], shape: Shape, kind: str, embedding: str | None = None, seed: int = 0) -> None:
    """Write a file of `shape` whose matrices are random blocks of type `kind`, the embedding of type `embedding`.

    Row sums of squares are about 1, so that activations keep their size. The vocabulary is 256 bytes and made-up words.
    Raises OptionError for a type that this does not make, or whose blocks do not divide a row.
    """

    def kinds(name: str, k: int) -> str:
        return embedding or kind if name in ("token_embd", "output") else kind

    write(path, metadata(shape), list(_tensors(shape, kinds, np.random.default_rng(seed))))


class Mixed:
    """A file of a real model's shape in a real mix of types, to be written by `write`.

    `shape` is a key of SHAPES, `mix` of `mixes.MIXES`, in either case. OptionError for others; it says what there is.
    """

    def __init__(self, shape: str, mix: str) -> None:
        self.shape = _known("shape", shape, SHAPES)
        self.name = f"{shape}-{mix}.gguf".lower()
        kinds = real_kinds(self.shape, mix)
        self._tensors = list(_tensors(self.shape, kinds, np.random.default_rng(0)))
        self.bytes = sum(t.nbytes for t in self._tensors)

    def write(self, path: Path, progress: Callable[[float], None] | None = None) -> None:
        """Write the file; `progress` is called with the share that is done. FileError where the disk has no room."""
        free = shutil.disk_usage(path.parent).free
        if free < self.bytes + ROOM:
            raise FileError(path, "the disk has no room for it", expected=f"{self.bytes + ROOM} bytes", got=free)
        done = 0

        def counted(chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
            nonlocal done
            for chunk in chunks:
                yield chunk
                done += chunk.nbytes
                if progress:
                    progress(min(done / self.bytes, 1))

        write(path, metadata(self.shape), [t._replace(data=counted(_in_parts(t))) for t in self._tensors])


def _in_parts(tensor: TensorData) -> Iterable[np.ndarray]:
    return [tensor.data] if isinstance(tensor.data, np.ndarray) else tensor.data


def _known(what: str, name: str, table: dict[str, Value]) -> Value:
    if name.lower() not in table:
        raise OptionError(f"there is no {what} {name!r}; there are {', '.join(table)}")
    return table[name.lower()]


def cache_folder() -> Path:
    """Where made files are kept: the user's cache folder, as the platform has it or XDG_CACHE_HOME names it."""
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named) / "tinyslm"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "tinyslm" / "cache"
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "tinyslm"


def real_kinds(shape: Shape, mix: str) -> Kinds:
    """The types that the matrices of such a model have in a file of that mix, made without an importance matrix."""
    name = _known("type", mix, {name.lower(): name for name in mixes.MIXES})
    layers = tuple(range(shape.layers))
    model = mixes.Model(shape.layers, shape.heads // shape.kv_heads, 0, shape.tied, layers, layers)
    return lambda matrix, k: mixes.type_of(f"{matrix}.weight", (k, 1), name, model)


def metadata(shape: Shape) -> dict[str, object]:
    tokens, merges = _vocabulary(shape.vocab)
    keys: dict[str, object] = {
        "vocab_size": shape.vocab, "context_length": shape.context, "embedding_length": shape.width,
        "block_count": shape.layers, "feed_forward_length": shape.ff, "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads, "attention.key_length": shape.dim,
        "attention.value_length": shape.dim, "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": shape.rope_base, "rope.dimension_count": shape.dim,
    }  # fmt: skip
    if shape.window:
        keys["attention.sliding_window"] = shape.window
    if shape.arch == "phi3":
        keys["rope.scaling.original_context_length"] = 4096
    return {
        "general.architecture": shape.arch, "general.name": "random weights",
        **{f"{shape.arch}.{name}": value for name, value in keys.items()},
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([1] * (shape.vocab - 2) + [3, 3], np.int32),
        "tokenizer.ggml.merges": merges, "tokenizer.ggml.bos_token_id": shape.vocab - 2,
        "tokenizer.ggml.eos_token_id": shape.vocab - 1, "tokenizer.ggml.add_bos_token": True,
    }  # fmt: skip


def _vocabulary(size: int) -> tuple[list[str], list[str]]:
    """Byte tokens in GPT-2's spelling, words of two letters and of two such words, and two control tokens."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spelled = {b: chr(b) for b in plain} | {
        b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in plain)
    }
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


def _tensors(shape: Shape, kinds: Kinds, rng: np.random.Generator) -> Iterator[TensorData]:
    def matrix(name: str, n: int, k: int) -> TensorData:
        kind = kinds(name, k)
        block = TYPES[TYPE_IDS[kind]].block
        if kind not in MAKERS or k % block:
            raise OptionError(f"random {kind} rows of {k} weights cannot be made")
        return TensorData(f"{name}.weight", (k, n), TYPE_IDS[kind], _chunks(n * k // block, k, kind, rng))

    def vector(name: str, n: int = shape.width, value: float = 1) -> TensorData:
        return TensorData(name, (n,), TYPE_IDS["F32"], np.full(n, value, np.float32))

    width, q, kv = shape.width, shape.heads * shape.dim, shape.kv_heads * shape.dim
    yield matrix("token_embd", shape.vocab, width)
    for i in range(shape.layers):
        yield vector(f"blk.{i}.attn_norm.weight")
        if shape.arch == "phi3":
            yield matrix(f"blk.{i}.attn_qkv", q + 2 * kv, width)
        else:
            yield matrix(f"blk.{i}.attn_q", q, width)
            yield matrix(f"blk.{i}.attn_k", kv, width)
            yield matrix(f"blk.{i}.attn_v", kv, width)
        if shape.arch == "qwen2":
            for name, n in (("q", q), ("k", kv), ("v", kv)):
                yield vector(f"blk.{i}.attn_{name}.bias", n, 0)
        if shape.arch in ("qwen3", "gemma3"):
            for name in "qk":
                yield vector(f"blk.{i}.attn_{name}_norm.weight", shape.dim)
        yield matrix(f"blk.{i}.attn_output", width, q)
        yield vector(f"blk.{i}.ffn_norm.weight")
        if shape.arch == "gemma3":
            yield vector(f"blk.{i}.post_attention_norm.weight")
            yield vector(f"blk.{i}.post_ffw_norm.weight")
        if shape.arch != "phi3":
            yield matrix(f"blk.{i}.ffn_gate", shape.ff, width)
        yield matrix(f"blk.{i}.ffn_up", shape.ff * (2 if shape.arch == "phi3" else 1), width)
        yield matrix(f"blk.{i}.ffn_down", width, shape.ff)
    if shape.arch == "phi3":
        for name in ("long", "short"):
            yield vector(f"rope_factors_{name}.weight", shape.dim // 2)
    yield vector("output_norm.weight")
    if not shape.tied:
        yield matrix("output", shape.vocab, width)


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
