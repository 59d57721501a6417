"""Llama 1 to 3.2, TinyLlama, Mistral 7B, SmolLM, Orca 2 and others of architecture `llama`.

Touvron et al., "LLaMA" (arXiv:2302.13971); grouped-query attention: Ainslie et al. (arXiv:2305.13245); RoPE: Su et
al. (arXiv:2104.09864).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .. import config
from ..ops import Builder, Program, Value

if TYPE_CHECKING:
    from . import Tensors

# Rotation tables that old converters wrote out; ours are computed.
IGNORED: tuple[str, ...] = (r"blk\.\d+\.attn_rot_embd(\.weight)?", r"rope_freqs")


def program(keys: config.Keys, tensors: Tensors) -> Program:
    """The program of a Llama file. The last layer works on wanted rows only, once its keys and values are stored."""
    c = config.read(keys, tensors.rows("token_embd.weight"))
    b = Builder(c.vocab, c.context)
    factors = tensors.floats("rope_freqs.weight", c.rope_dim // 2) if "rope_freqs.weight" in tensors else None
    table = b.table(c.frequencies(keys.path, factors))
    embedding = tensors.get("token_embd.weight", c.vocab, c.width)
    x = b.embed(embedding)
    for i in range(c.layers):
        x = feed_forward(b, c, tensors, i, attention(b, c, tensors, i, x, table))
    x = b.rmsnorm(x, tensors.get("output_norm.weight", c.width), c.eps)
    tied = "output.weight" not in tensors
    output = embedding if tied else tensors.get("output.weight", c.vocab, c.width)
    b.logits(b.matmul(x, output, tensors.maybe("output.bias", c.vocab)))
    return b.build()


def attention(b: Builder, c: config.Config, tensors: Tensors, i: int, x: Value, table: int) -> Value:
    def projected(x: Value, name: str, heads: int, dim: int, rotated: bool) -> Value:
        rope = (heads, c.rope_dim) if rotated else (0, 0)
        w = tensors.get(f"blk.{i}.attn_{name}.weight", heads * dim, c.width, *rope)
        y = b.matmul(x, w, tensors.maybe(f"blk.{i}.attn_{name}.bias", heads * dim, *rope))
        return b.rope(y, heads, table) if rotated else y

    normed = b.rmsnorm(x, tensors.get(f"blk.{i}.attn_norm.weight", c.width), c.eps)
    k = projected(normed, "k", c.kv_heads, c.dk, True)
    v = projected(normed, "v", c.kv_heads, c.dv, False)
    if i == c.layers - 1:
        x, normed = b.select(x), b.select(normed)
    q = projected(normed, "q", c.heads, c.dk, True)
    store = b.store(k, v, c.kv_heads)  # after all three products, so that threads wait for each other once
    a = b.attend(q, store, c.heads, 1 / math.sqrt(c.dk))
    w = tensors.get(f"blk.{i}.attn_output.weight", c.width, c.heads * c.dv)
    return b.add(x, b.matmul(a, w, tensors.maybe(f"blk.{i}.attn_output.bias", c.width)))


def feed_forward(b: Builder, c: config.Config, tensors: Tensors, i: int, x: Value) -> Value:
    def projected(x: Value, name: str, n: int, k: int) -> Value:
        w = tensors.get(f"blk.{i}.ffn_{name}.weight", n, k)
        return b.matmul(x, w, tensors.maybe(f"blk.{i}.ffn_{name}.bias", n))

    normed = b.rmsnorm(x, tensors.get(f"blk.{i}.ffn_norm.weight", c.width), c.eps)
    hidden = b.glu(projected(normed, "gate", c.ff, c.width), projected(normed, "up", c.ff, c.width), "silu")
    return b.add(x, projected(hidden, "down", c.width, c.ff))
