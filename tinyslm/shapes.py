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
from .formats import TYPE_IDS, TYPES
from .gguf import TensorData, write
from .random_blocks import MAKERS

CHUNK = 1 << 22  # bytes made at once
ROOM = 1 << 26  # bytes that a disk keeps free beside a file's tensors, for its vocabulary too
Value = TypeVar("Value")


@dataclass(frozen=True)
class Shape:
    """Hyperparameters of a model; widths in elements. window: positions that most layers see; 0: all. rotated: elements
    of a head that turn; 0: all. experts: how many a layer has, how many a token takes, and their width."""

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
    rotated: int = 0
    experts: tuple[int, int, int] | None = None

    @property
    def dim(self) -> int:
        return self.head_dim or self.width // self.heads


# From the models' published config.json files.
SHAPES = {
    "stories260k": Shape(5, 64, 8, 4, 172, 512, 512, False),
    "smollm2-135m": Shape(30, 576, 9, 3, 1536, 49152, 8192, True, 100000.0),
    "smollm2-360m": Shape(32, 960, 15, 5, 2560, 49152, 8192, True, 100000.0),
    "smollm2-1.7b": Shape(24, 2048, 32, 32, 8192, 49152, 8192, True, 130000.0),
    "smollm3-3b": Shape(36, 2048, 16, 4, 11008, 128256, 65536, True, 5000000.0, arch="smollm3"),
    "llama-3.2-1b": Shape(16, 2048, 32, 8, 8192, 128256, 131072, True, 500000.0),
    "qwen2.5-0.5b": Shape(24, 896, 14, 2, 4864, 151936, 32768, True, 1000000.0, 64, "qwen2"),
    "qwen2.5-1.5b": Shape(28, 1536, 12, 2, 8960, 151936, 32768, True, 1000000.0, 128, "qwen2"),
    "qwen2.5-3b": Shape(36, 2048, 16, 2, 11008, 151936, 32768, True, 1000000.0, 128, "qwen2"),
    "qwen3-0.6b": Shape(28, 1024, 16, 8, 3072, 151936, 40960, True, 1000000.0, 128, "qwen3"),
    "qwen3-1.7b": Shape(28, 2048, 16, 8, 6144, 151936, 40960, True, 1000000.0, 128, "qwen3"),
    "qwen3-4b": Shape(36, 2560, 32, 8, 9728, 151936, 40960, True, 1000000.0, 128, "qwen3"),
    "qwen3-30b-a3b": Shape(48, 2048, 32, 4, 6144, 151936, 40960, False, 1000000.0, 128, "qwen3moe",
                           experts=(128, 8, 768)),
    "gemma-2b": Shape(18, 2048, 8, 1, 16384, 256000, 8192, True, head_dim=256, arch="gemma"),
    "gemma-2-2b": Shape(26, 2304, 8, 4, 9216, 256000, 8192, True, 10000.0, 256, "gemma2", 4096),
    "gemma-3-270m": Shape(18, 640, 4, 1, 2048, 262144, 32768, True, 1000000.0, 256, "gemma3", 512),
    "gemma-3-1b": Shape(26, 1152, 4, 1, 6912, 262144, 32768, True, 1000000.0, 256, "gemma3", 512),
    "phi-2": Shape(32, 2560, 32, 32, 10240, 51200, 2048, False, arch="phi2", rotated=32),
    "phi-3.5-mini": Shape(32, 3072, 32, 32, 8192, 32064, 131072, False, 10000.0, 96, "phi3", 262144),
    "phi-4-mini": Shape(32, 3072, 24, 8, 8192, 200064, 131072, True, 10000.0, 128, "phi3", 262144, 96),
    "opt-125m": Shape(12, 768, 12, 12, 3072, 50272, 2048, True, arch="opt"),
    "gpt2": Shape(12, 768, 12, 12, 3072, 50257, 1024, True, arch="gpt2"),
    "stablelm-2-1.6b": Shape(24, 2048, 32, 32, 5632, 100352, 4096, False, arch="stablelm", rotated=16),
    "granite-3.1-2b": Shape(40, 2048, 32, 8, 8192, 49155, 131072, True, 5000000.0, arch="granite"),
    "olmo-2-1b": Shape(16, 2048, 16, 16, 8192, 100352, 4096, False, 500000.0, arch="olmo2"),
    "tinyllama-1.1b": Shape(22, 2048, 32, 4, 5632, 32000, 2048, False),
    "llama-3.2-3b": Shape(28, 3072, 24, 8, 8192, 128256, 131072, True, 500000.0, 128),
    "llama-2-7b": Shape(32, 4096, 32, 32, 11008, 32000, 4096, False),
    "mistral-7b": Shape(32, 4096, 32, 8, 14336, 32768, 32768, False, 1000000.0),
    "mixtral-8x7b": Shape(32, 4096, 32, 8, 14336, 32000, 32768, False, 1000000.0, experts=(8, 2, 14336)),
    "llama-3.1-8b": Shape(32, 4096, 32, 8, 14336, 128256, 131072, False, 500000.0),
}  # fmt: skip
CENTERED = ("phi2", "stablelm", "gpt2", "opt")  # LayerNorm
BIASED = ("phi2", "gpt2", "opt")  # every product
FLOATS = ("position_embd", "ffn_gate_inp")  # matrices that no mix quantises
UNGATED = ("phi2", "phi3", "gpt2", "opt")  # no gate of the MLP, or one within `ffn_up`
GRANITE = {"attention.scale": 0.015625, "embedding_scale": 12.0, "logit_scale": 8.0, "residual_scale": 0.22}
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
    experts = shape.experts[0] if shape.experts else 0
    model = mixes.Model(shape.layers, shape.heads // shape.kv_heads, experts, shape.tied, layers, layers)
    return lambda matrix, k: mixes.type_of(f"{matrix}.weight", (k, 1), name, model)


def metadata(shape: Shape) -> dict[str, object]:
    tokens, merges = _vocabulary(shape.vocab)
    keys: dict[str, object] = {
        "vocab_size": shape.vocab, "context_length": shape.context, "embedding_length": shape.width,
        "block_count": shape.layers, "feed_forward_length": shape.ff, "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads, "attention.key_length": shape.dim,
        "attention.value_length": shape.dim, "attention.layer_norm_rms_epsilon": 1e-5,
    }  # fmt: skip
    if shape.arch not in ("gpt2", "opt"):
        keys |= {"rope.freq_base": shape.rope_base, "rope.dimension_count": shape.rotated or shape.dim}
    if shape.window:
        keys["attention.sliding_window"] = shape.window
    if shape.arch == "phi3":
        keys["rope.scaling.original_context_length"] = 4096
    if shape.arch == "granite":
        keys |= GRANITE
    if shape.experts:
        count, used, width = shape.experts
        keys |= {"expert_count": count, "expert_used_count": used, "expert_feed_forward_length": width}
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
    for name, n, k, count in _parts(shape):
        if not k:
            values = np.full(n, not name.endswith("bias"), np.float32)
            yield TensorData(name, (n,), TYPE_IDS["F32"], values)
            continue
        stem = name.removesuffix(".weight")
        kind = "F32" if stem.rpartition(".")[2] in FLOATS else kinds(stem, k)
        block = TYPES[TYPE_IDS[kind]].block
        if kind not in MAKERS or k % block:
            raise OptionError(f"random {kind} rows of {k} weights cannot be made")
        sides = (k, n, count) if count else (k, n)
        yield TensorData(name, sides, TYPE_IDS[kind], _chunks(max(count, 1) * n * k // block, k, kind, rng))


Part = tuple[str, int, int, int]  # a tensor's name, its rows, their length (0: a vector), and experts (0: none)


def _parts(s: Shape) -> Iterator[Part]:
    """All tensors of a model of this shape."""
    yield "token_embd.weight", s.vocab, s.width, 0
    if s.arch in ("gpt2", "opt"):
        yield "position_embd.weight", s.context + (2 if s.arch == "opt" else 0), s.width, 0
    for i in range(s.layers):
        for name, *sides in _layer(s):
            yield (f"blk.{i}.{name}", *sides)  # type: ignore[misc]
    if s.arch == "phi3":
        for name in ("long", "short"):
            yield f"rope_factors_{name}.weight", (s.rotated or s.dim) // 2, 0, 0
    yield from _norm(s, "output_norm", s.width)
    if not s.tied:
        yield from _linear("output", s.vocab, s.width, s.arch == "phi2")


def _linear(name: str, n: int, k: int, bias: bool) -> Iterator[Part]:
    yield f"{name}.weight", n, k, 0
    if bias:
        yield f"{name}.bias", n, 0, 0


def _norm(s: Shape, name: str, n: int) -> Iterator[Part]:
    yield f"{name}.weight", n, 0, 0
    if s.arch in CENTERED:
        yield f"{name}.bias", n, 0, 0


def _layer(s: Shape) -> Iterator[Part]:
    arch, width, q, kv, biased = s.arch, s.width, s.heads * s.dim, s.kv_heads * s.dim, s.arch in BIASED
    if arch != "olmo2":
        yield from _norm(s, "attn_norm", width)
    if arch in ("phi3", "gpt2"):
        yield from _linear("attn_qkv", q + 2 * kv, width, biased)
    else:
        for name, n in (("q", q), ("k", kv), ("v", kv)):
            yield from _linear(f"attn_{name}", n, width, biased or arch in ("qwen2", "stablelm"))
    if arch in ("qwen3", "qwen3moe", "gemma3", "olmo2"):
        for name, n in (("q", q), ("k", kv)):
            yield f"attn_{name}_norm.weight", n if arch == "olmo2" else s.dim, 0, 0
    yield from _linear("attn_output", width, q, biased)
    if arch not in ("phi2", "olmo2"):
        yield from _norm(s, "ffn_norm", width)
    if arch in ("gemma2", "gemma3", "olmo2"):
        yield "post_attention_norm.weight", width, 0, 0
        yield "post_ffw_norm.weight", width, 0, 0
    if s.experts:
        count, _, ff = s.experts
        yield "ffn_gate_inp.weight", count, width, 0
        for name, n, k in (("gate", ff, width), ("up", ff, width), ("down", width, ff)):
            yield f"ffn_{name}_exps.weight", n, k, count
        return
    if arch not in UNGATED:
        yield from _linear("ffn_gate", s.ff, width, biased)
    yield from _linear("ffn_up", s.ff * (2 if arch == "phi3" else 1), width, biased)
    yield from _linear("ffn_down", width, s.ff, biased)


def _chunks(blocks: int, k: int, kind: str, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Random blocks, a few megabytes at a time."""
    size = TYPES[TYPE_IDS[kind]].bytes
    while blocks:
        n = min(blocks, max(1, CHUNK // size))
        yield MAKERS[kind](rng, n, k)
        blocks -= n
