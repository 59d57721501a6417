"""Random models of each family, with llama.cpp's keys and tensor names, in tinyslm and in llama.cpp.

    python tests/compare_families.py --llama PYTHON [--seeds N] [--types F32,Q4_0…] [NAME…]

PYTHON is that of an environment with llama-cpp-python. A line a model: the greatest difference of a logit and the mean
one, in prefill and decode, as shares of the logits' deviation. F32 models have float32 keys and values on both sides,
so that nothing but mathematics is compared; the others are as they are used. Of mixtures only the median token counts,
as experts that nearly tie may go either way. Ends with 1 where a line is beyond BOUNDS.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from test_families import Exact, build, fastest, logits_of

from tinyslm.backends.base import Weights
from tinyslm.errors import TinySLMError
from tinyslm.formats import BY_NAME
from tinyslm.gguf import GGUF, TensorData, write
from tinyslm.quantise.rows import quantise_rows

DECODE = 10  # tokens that go one by one; as logits_of has it
TYPES = ("F32", "F16", "Q8_0", "Q4_0", "Q4_K")
# Of the mean and the greatest difference, by type. F32: both sum in float32; GELU comes of a table of f16 values in
# llama.cpp. F16: keys, values, and in llama.cpp activations have 11 bits. The rest: activations of 8 bits.
BOUNDS = {"F32": (2e-5, 3e-4), "F16": (5e-3, 5e-2)}
GELU, GELU_BOUNDS = ("phi2", "gemma", "gemma2", "gemma3", "gpt2"), (5e-4, 5e-3)
COARSE = (5e-2, 5e-1)


class Model:
    """A random model that grows by the keys and tensors of its family. Matrices are of `kind`, Q4_K with some Q6_K."""

    def __init__(self, arch: str, kind: str, seed: int, **sizes: Any) -> None:
        self.rng, self.kind, self.arch = np.random.default_rng(seed), kind, arch
        block = BY_NAME[kind].block
        unit = block if block > 1 else 2 * int(self.rng.integers(3, 20))
        group = int(self.rng.choice([1, 2, 3, 7]))
        self.kv_heads = int(sizes.pop("kv_heads", self.rng.integers(1, 3)))
        self.heads = int(sizes.pop("heads", self.kv_heads * group))
        self.dk = int(sizes.pop("dk", max(unit, 32) if block > 1 else unit))
        self.width = int(sizes.pop("width", self.heads * self.dk))
        self.ff = int(sizes.pop("ff", unit * int(self.rng.integers(1, 4))))
        self.layers = int(sizes.pop("layers", 2))
        self.vocab = int(sizes.pop("vocab", self.rng.integers(50, 150)))
        self.tokens = int(sizes.pop("tokens", 150))
        self.context = int(sizes.pop("context", 512))
        self.q, self.kv = self.heads * self.dk, self.kv_heads * self.dk
        self.tensors: list[TensorData] = []
        self.keys: dict[str, object] = {
            "context_length": 4096, "embedding_length": self.width, "block_count": self.layers,
            "feed_forward_length": self.ff, "attention.head_count": self.heads, "vocab_size": self.vocab,
            "attention.head_count_kv": self.kv_heads, "attention.key_length": self.dk,
            "attention.value_length": self.dk, "rope.freq_base": float(self.rng.choice([500.0, 10000.0, 1e6])),
        }  # fmt: skip
        assert not sizes, sizes

    def coin(self) -> bool:
        return bool(self.rng.integers(2))

    def array(self, name: str, *shape: int, kind: str | None = None) -> None:
        """A tensor with the row length last in `shape`."""
        kind = kind or (self.kind if len(shape) > 1 else "F32")
        if kind == "Q4_K" and ("v.weight" in name or "down" in name or name == "output.weight"):
            kind = "Q6_K"
        values = self.rng.standard_normal(shape, np.float32)
        if len(shape) > 1 and "_norm" not in name:
            values *= 0.7 if "embd" in name else 1.3 * shape[-1] ** -0.5
        else:
            values = 0.3 * values + (not name.endswith("bias"))
        blocks = quantise_rows(kind, np.ascontiguousarray(values.reshape(-1, shape[-1]), np.float32))
        self.tensors.append(TensorData(name, shape[::-1], BY_NAME[kind].id, blocks))

    def matrix(self, name: str, n: int, k: int, bias: bool = False) -> None:
        self.array(f"{name}.weight", n, k)
        if bias:
            self.array(f"{name}.bias", n)

    def norm(self, name: str, bias: bool = False, n: int = 0) -> None:
        self.array(f"{name}.weight", n or self.width)
        if bias:
            self.array(f"{name}.bias", n or self.width)

    def ends(self, *, tied: bool | None = None, bias: bool = False, norm_bias: bool = False) -> None:
        self.matrix("token_embd", self.vocab, self.width)
        self.norm("output_norm", norm_bias)
        if not (self.coin() if tied is None else tied):
            self.matrix("output", self.vocab, self.width, bias)

    def attention(self, i: int, bias: bool = False, fused: bool = False, out_bias: bool = False) -> None:
        if fused:
            self.matrix(f"blk.{i}.attn_qkv", self.q + 2 * self.kv, self.width, bias)
        else:
            for name, n in (("q", self.q), ("k", self.kv), ("v", self.kv)):
                self.matrix(f"blk.{i}.attn_{name}", n, self.width, bias)
        self.matrix(f"blk.{i}.attn_output", self.width, self.q, out_bias)

    def head_norms(self, i: int) -> None:
        for name in "qk":
            self.norm(f"blk.{i}.attn_{name}_norm", n=self.dk)

    def mlp(self, i: int, bias: bool = False, gate: bool = True) -> None:
        for name, n, k in (("gate", self.ff, self.width), ("up", self.ff, self.width), ("down", self.width, self.ff)):
            if gate or name != "gate":
                self.matrix(f"blk.{i}.ffn_{name}", n, k, bias)

    def experts(self, i: int, ff: int) -> None:
        count = self.keys["expert_count"]
        assert isinstance(count, int)
        self.array(f"blk.{i}.ffn_gate_inp.weight", count, self.width, kind="F32")
        for name, n, k in (("gate", ff, self.width), ("up", ff, self.width), ("down", self.width, ff)):
            self.array(f"blk.{i}.ffn_{name}_exps.weight", count, n, k)

    def write(self, path: Path) -> None:
        centered = any(t.name == "output_norm.bias" for t in self.tensors)
        eps = f"attention.layer_norm_{'' if centered else 'rms_'}epsilon"
        keys = {f"{self.arch}.{name}": value for name, value in {**self.keys, eps: 1e-5}.items()}
        head = {"general.architecture": self.arch, "tokenizer.ggml.model": "none"}
        write(path, {**head, **keys}, self.tensors)


# ---- families ----

Make = Callable[[str, int], Model]
MODELS: dict[str, Make] = {}


def model(make: Make) -> Make:
    MODELS[make.__name__] = make
    return make


def llama_like(m: Model, *, bias: bool = False, fused: bool = False, norms: bool = False, mlp_bias: bool = False,
               tied: bool | None = None) -> Model:  # fmt: skip
    m.ends(tied=tied)
    for i in range(m.layers):
        m.norm(f"blk.{i}.attn_norm")
        m.attention(i, bias, fused)
        if norms:
            m.head_norms(i)
        m.norm(f"blk.{i}.ffn_norm")
        m.mlp(i, mlp_bias)
    return m


@model
def llama(kind: str, seed: int) -> Model:
    return llama_like(Model("llama", kind, seed))


@model
def llama_long(kind: str, seed: int) -> Model:
    return llama_like(Model("llama", kind, seed, tokens=470))


@model
def llama_factors(kind: str, seed: int) -> Model:
    m = Model("llama", kind, seed)
    m.array("rope_freqs.weight", m.dk // 2)
    return llama_like(m)


@model
def llama_biases(kind: str, seed: int) -> Model:
    return llama_like(Model("llama", kind, seed), bias=True, mlp_bias=True)


@model
def llama_fused(kind: str, seed: int) -> Model:
    return llama_like(Model("llama", kind, seed), bias=seed % 2 == 0, fused=True)


@model
def llama_linear(kind: str, seed: int) -> Model:
    m = Model("llama", kind, seed)
    m.keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0} if m.coin() else {"rope.scale_linear": 3.0}
    return llama_like(m)


@model
def llama_none(kind: str, seed: int) -> Model:
    m = Model("llama", kind, seed)
    m.keys |= {"rope.scaling.type": "none", "rope.scaling.factor": 4.0}
    return llama_like(m)


@model
def llama_yarn(kind: str, seed: int) -> Model:
    m = Model("llama", kind, seed)
    m.keys |= {"rope.scaling.type": "yarn", "rope.scaling.factor": float(m.rng.choice([0.5, 4.0, 32.0])),
               "rope.scaling.original_context_length": int(m.rng.choice([64, 1000])),
               "rope.scaling.finetuned": True}  # fmt: skip
    if m.coin():
        m.keys["rope.scaling.attn_factor"] = 1.3
    return llama_like(m)


@model
def llama_longrope(kind: str, seed: int) -> Model:
    m = Model("llama", kind, seed, context=256 if seed % 2 else 512)
    m.keys |= {"rope.scaling.type": "longrope", "rope.scaling.original_context_length": 256}
    for name in ("long", "short"):
        m.array(f"rope_factors_{name}.weight", m.dk // 2)
    return llama_like(m)


@model
def mixtral(kind: str, seed: int) -> Model:
    m = Model("llama", kind, seed)
    m.keys |= {"expert_count": int(m.rng.integers(2, 9)), "expert_used_count": 2}
    m.ends()
    for i in range(m.layers):
        m.norm(f"blk.{i}.attn_norm")
        m.attention(i)
        m.norm(f"blk.{i}.ffn_norm")
        m.experts(i, m.ff)
    return m


@model
def qwen2(kind: str, seed: int) -> Model:
    return llama_like(Model("qwen2", kind, seed), bias=True)


@model
def qwen3(kind: str, seed: int) -> Model:
    m = Model("qwen3", kind, seed, heads=6, kv_heads=2, width=max(256, BY_NAME[kind].block))
    return llama_like(m, norms=True)


@model
def qwen3moe(kind: str, seed: int) -> Model:
    m = Model("qwen3moe", kind, seed)
    ff = max(BY_NAME[kind].block, 24)
    m.keys |= {"expert_count": 8, "expert_used_count": int(m.rng.integers(1, 9)), "expert_feed_forward_length": ff}
    m.ends()
    for i in range(m.layers):
        m.norm(f"blk.{i}.attn_norm")
        m.attention(i)
        m.head_norms(i)
        m.norm(f"blk.{i}.ffn_norm")
        m.experts(i, ff)
    return m


@model
def phi2(kind: str, seed: int) -> Model:
    m = Model("phi2", kind, seed)
    m.keys["rope.dimension_count"] = 2 * int(m.rng.integers(1, m.dk // 2 + 1))
    m.ends(tied=False, bias=True, norm_bias=True)
    fused = m.coin()
    for i in range(m.layers):
        m.norm(f"blk.{i}.attn_norm", True)
        m.attention(i, True, fused, True)
        m.mlp(i, True, gate=False)
    return m


def phi3_like(m: Model, factors: bool) -> Model:
    m.keys["rope.dimension_count"] = 2 * int(m.rng.integers(1, m.dk // 2 + 1)) if m.coin() else m.dk
    rotated = m.keys["rope.dimension_count"]
    assert isinstance(rotated, int)
    if factors:
        m.keys["rope.scaling.original_context_length"] = 256
        if m.coin():
            m.keys["rope.scaling.attn_factor"] = 1.19
        for name in ("long", "short"):
            m.array(f"rope_factors_{name}.weight", rotated // 2)
    m.ends()
    fused = m.coin()
    for i in range(m.layers):
        m.norm(f"blk.{i}.attn_norm")
        m.attention(i, fused=fused)
        m.norm(f"blk.{i}.ffn_norm")
        m.matrix(f"blk.{i}.ffn_up", 2 * m.ff, m.width)
        m.matrix(f"blk.{i}.ffn_down", m.width, m.ff)
    return m


@model
def phi3(kind: str, seed: int) -> Model:
    m = Model("phi3", kind, seed)
    m.keys["attention.sliding_window"] = int(m.rng.choice([0, 2047]))
    return phi3_like(m, False)


@model
def phi3_short(kind: str, seed: int) -> Model:
    return phi3_like(Model("phi3", kind, seed, context=256, tokens=250), True)


@model
def phi3_long(kind: str, seed: int) -> Model:
    return phi3_like(Model("phi3", kind, seed, tokens=300), True)


@model
def gemma(kind: str, seed: int) -> Model:
    m = Model("gemma", kind, seed, width=max(64, BY_NAME[kind].block))
    return llama_like(m, tied=True)


def gemma2_like(m: Model, head_norms: bool) -> Model:
    m.ends(tied=True)
    for i in range(m.layers):
        m.norm(f"blk.{i}.attn_norm")
        m.attention(i)
        if head_norms:
            m.head_norms(i)
        m.norm(f"blk.{i}.post_attention_norm")
        m.norm(f"blk.{i}.ffn_norm")
        m.mlp(i)
        m.norm(f"blk.{i}.post_ffw_norm")
    return m


@model
def gemma2(kind: str, seed: int) -> Model:
    m = Model("gemma2", kind, seed, layers=3)
    m.keys["attention.sliding_window"] = int(m.rng.integers(10, 100))
    if m.coin():
        m.keys |= {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
    return gemma2_like(m, False)


@model
def gemma2_defaults(kind: str, seed: int) -> Model:
    return gemma2_like(Model("gemma2", kind, seed, layers=3), False)


@model
def gemma3(kind: str, seed: int) -> Model:
    m = Model("gemma3", kind, seed, layers=7, kv_heads=1, heads=4, width=max(64, BY_NAME[kind].block))
    m.keys["attention.sliding_window"] = int(m.rng.integers(10, 100))
    if m.coin():
        m.keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
    if m.coin():
        m.keys["rope.freq_base_swa"] = 5000.0
    if m.coin():
        m.keys["attention.sliding_window_pattern"] = 3 if m.coin() else [True, False] * 3 + [True]
    if m.coin():
        m.keys["final_logit_softcapping"] = 3.0
    return gemma2_like(m, True)


@model
def gemma3_defaults(kind: str, seed: int) -> Model:
    return gemma2_like(Model("gemma3", kind, seed, layers=7), True)


@model
def smollm3(kind: str, seed: int) -> Model:
    return llama_like(Model("smollm3", kind, seed, layers=5))


@model
def stablelm(kind: str, seed: int) -> Model:
    m = Model("stablelm", kind, seed)
    m.keys |= {"rope.dimension_count": 2 * int(m.rng.integers(1, m.dk // 2 + 1)), "use_parallel_residual": True}
    bias, norms, parallel = m.coin(), m.coin(), m.coin()
    m.ends(tied=False, norm_bias=True)
    for i in range(m.layers):
        m.norm(f"blk.{i}.attn_norm", True)
        m.attention(i, bias)
        if norms:
            for name, heads in (("q", m.heads), ("k", m.kv_heads)):
                m.array(f"blk.{i}.attn_{name}_norm.weight", heads, m.dk, kind="F32")
        if not parallel:
            m.norm(f"blk.{i}.ffn_norm", True)
        m.mlp(i)
    return m


@model
def gpt2(kind: str, seed: int) -> Model:
    m = Model("gpt2", kind, seed, kv_heads=3, heads=3)
    for name in [name for name in m.keys if "rope" in name]:
        del m.keys[name]
    m.keys["context_length"] = 600
    m.ends(norm_bias=True)
    m.array("position_embd.weight", 600, m.width, kind="F32")
    for i in range(m.layers):
        m.norm(f"blk.{i}.attn_norm", True)
        m.attention(i, True, True, True)
        m.norm(f"blk.{i}.ffn_norm", True)
        m.mlp(i, True, gate=False)
    return m


@model
def granite(kind: str, seed: int) -> Model:
    m = Model("granite", kind, seed)
    m.keys["logit_scale"] = 8.0
    for name, value in (("attention.scale", 0.1), ("residual_scale", 0.4), ("embedding_scale", 5.0)):
        if m.coin():
            m.keys[name] = value if m.coin() else 0.0
    if m.coin():
        m.keys["rope.scaling.finetuned"] = m.coin()
    return llama_like(m)


@model
def olmo2(kind: str, seed: int) -> Model:
    m = Model("olmo2", kind, seed, layers=5)
    if m.coin():
        m.keys["attention.sliding_window"] = 40
        m.keys |= {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.attn_factor": 1.1,
                   "rope.scaling.original_context_length": 64}  # fmt: skip
        if m.coin():
            m.keys["attention.sliding_window_pattern"] = [True, True, False, True, False]
    m.ends(tied=False)
    for i in range(m.layers):
        m.attention(i)
        m.norm(f"blk.{i}.attn_q_norm", n=m.q)
        m.norm(f"blk.{i}.attn_k_norm", n=m.kv)
        m.norm(f"blk.{i}.post_attention_norm")
        m.mlp(i)
        m.norm(f"blk.{i}.post_ffw_norm")
    return m


# ---- comparing ----


class Llama:
    """llama.cpp in a process of its own."""

    def __init__(self, python: str, folder: Path) -> None:
        worker = Path(__file__).parent / "llama_logits.py"
        self.out = folder / "logits.npy"
        self.process = subprocess.Popen([python, worker], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def logits(self, path: Path, ids: np.ndarray, context: int, kv: str) -> np.ndarray:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        asked = {"file": str(path), "ids": ids.tolist(), "decode": DECODE, "context": context, "kv": kv,
                 "out": str(self.out)}  # fmt: skip
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"llama.cpp died over {path}")
        if "error" in (answer := json.loads(line)):
            raise ValueError(answer["error"])
        logits: np.ndarray = np.load(self.out)
        return logits


def compared(m: Model, path: Path, other: Llama) -> Iterator[np.ndarray]:
    """Differences by deviations, of prefill and of decode."""
    m.write(path)
    ids = m.rng.integers(0, m.vocab, m.tokens).astype(np.int32)
    with GGUF.open(path) as file:
        program = build(file, dict(file.metadata), m.context)
        exact = m.kind == "F32"
        theirs = other.logits(path, ids, m.context, "F32" if exact else "F16")
        golden = {"ids": ids, "at": np.arange(len(ids))}
        ours = logits_of((Exact if exact else fastest)(program, Weights(file)), program, golden, 50)
    difference = np.abs(ours - theirs) / theirs.std()
    if "expert_count" in m.keys:
        difference = np.median(difference, 0, keepdims=True).repeat(len(ids), 0)
    yield from (difference[:-DECODE], difference[-DECODE:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama", required=True, metavar="PYTHON")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--types", default=",".join(TYPES))
    parser.add_argument("names", nargs="*", default=list(MODELS))
    arguments = parser.parse_args()
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        other = Llama(arguments.llama, Path(folder))
        for name in arguments.names:
            for kind in arguments.types.split(","):
                for seed in range(arguments.first, arguments.first + arguments.seeds):
                    label = f"{name:16} {kind:5} {seed:3}"
                    try:
                        m = MODELS[name](kind, seed)
                        parts = list(compared(m, Path(folder) / "random.gguf", other))
                    except (TinySLMError, ValueError) as error:
                        bad += 1
                        print(label, "FAILS", error, flush=True)
                        continue
                    mean, most = COARSE if kind != "F32" and "expert_count" in m.keys else BOUNDS.get(kind, COARSE)
                    if kind == "F32" and m.arch in GELU:
                        mean, most = GELU_BOUNDS
                    beyond = any(p.mean() > mean or p.max() > most for p in parts)
                    bad += beyond
                    told = "  ".join(f"{p.mean():.1e} {p.max():.1e}" for p in parts)
                    print(label, told, "BEYOND" if beyond else "", flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
