"""Llama 1 to 3.2, TinyLlama, Mistral 7B, Mixtral, SmolLM, Orca 2 and others of architecture `llama`; and what the
other families change.

Touvron et al., "LLaMA" (arXiv:2302.13971); grouped-query attention: Ainslie et al. (arXiv:2305.13245); RoPE: Su et
al. (arXiv:2104.09864); experts: Jiang et al., "Mixtral of Experts" (arXiv:2401.04088).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from .. import config
from ..ops import Builder, Program, Value, Weight
from . import rope
from .tensors import Tensors


class Llama:
    """Writes the program of a file. A family overrides what differs. The last layer works on wanted rows only, once its
    keys and values are stored."""

    # Rotation tables that old converters wrote out; ours are computed.
    IGNORED: tuple[str, ...] = (r"blk\.\d+\.attn_rot_embd(\.weight)?", r"rope_freqs")
    # Which elements of a head RoPE turns together in the file's rows of q and k; None: positions are not turned.
    PAIRS: Literal["neighbours", "halves"] | None = "neighbours"
    CENTERED = False  # LayerNorm, not RMSNorm
    BIASED = False  # products in layers must have biases, or may
    GATED = True  # the MLP multiplies two products, act(gate) · up; or is act(up) alone
    ACT = "silu"
    WINDOW = 0  # positions, its own among them, that a token sees where the file does not say; 0: all
    PERIOD = 0  # every so many-th layer sees all in spite of the window; 0: none does

    def __init__(self, keys: config.Keys, tensors: Tensors, context: int | None = None) -> None:
        """context: the tokens that the user asks for; None is the file's own."""
        self.keys, self.tensors = keys, tensors
        self.c = config.read(keys, tensors.rows("token_embd.weight"))
        self.context = context or self.c.context
        self.b = Builder(self.c.vocab, self.c.context)
        self.scale = 1 / math.sqrt(self.c.dk)
        self.sliding = keys.count("attention.sliding_window", self.WINDOW, low=0)
        self.windowed = keys.windowed(self.c.layers, self.PERIOD) if self.PERIOD else [True] * self.c.layers

    def program(self) -> Program:
        self.tables = self.rotations()
        x = self.embedded(self.embedding())
        for i in range(self.c.layers):
            x = self.layer(i, x)
        self.b.logits(self.logits(x))
        return self.b.build()

    # ---- what families override ----

    def rotations(self) -> list[int]:
        """The tables of RoPE."""
        return [rope.table(self.b, self.keys, self.c, self.tensors, self.context)] if self.PAIRS else []

    def rotation(self, i: int) -> int | None:
        """Which table layer i turns by."""
        return self.tables[0] if self.tables else None

    def window(self, i: int) -> int:
        """Positions, its own among them, that a token of layer i sees; 0: all."""
        return self.sliding if self.windowed[i] else 0

    def embedding(self) -> Weight:
        return self.tensors.get("token_embd.weight", self.c.vocab, self.c.width)

    def embedded(self, embedding: Weight) -> Value:
        return self.b.embed(embedding)

    def before(self, x: Value, name: str) -> Value:
        """What attention and the MLP see of x."""
        return self.norm(x, name)

    def after(self, y: Value, name: str) -> Value:
        """What becomes of their results before they are added."""
        return y

    def of_head(self, i: int, x: Value, name: str, heads: int) -> Value:
        """What becomes of queries (`q`) and keys (`k`) before they are turned."""
        return x

    def attend(self, q: Value, store: int) -> Value:
        return self.b.attend(q, store, self.c.heads, self.scale)

    def end(self, x: Value) -> Value:
        """What the output matrix sees of the last layer's result."""
        return self.norm(x, "output_norm")

    def logits(self, x: Value) -> Value:
        c, x = self.c, self.end(x)
        w = self.tensors.get("output.weight", c.vocab, x.width) if "output.weight" in self.tensors else self.embedding()
        return self.product(x, "output", w, self.tensors.maybe("output.bias", c.vocab))

    # ---- what they build with ----

    def norm(self, x: Value, name: str, heads: int = 1) -> Value:
        n = x.width // heads
        w = self.tensors.get(f"{name}.weight", n)
        if self.CENTERED:
            return self.b.layernorm(x, w, self.tensors.get(f"{name}.bias", n), self.c.eps, heads)
        return self.b.rmsnorm(x, w, self.c.eps, heads)

    def product(self, x: Value, name: str, w: Weight, bias: Weight | None) -> Value:
        """W x + bias; or s W x + bias, where the file has a scale s of all of W, as those made of NVIDIA's NVFP4 do."""
        scale = self.tensors.scale(name)
        if bias:
            return self.b.matmul(self.b.scale(x, scale), w, bias)
        return self.b.scale(self.b.matmul(x, w), scale)

    def linear(self, x: Value, name: str, n: int, rope_heads: int = 0) -> Value:
        turned = (rope_heads, self.c.rope_dim) if rope_heads else (0, 0)
        w = self.tensors.get(f"{name}.weight", n, x.width, *turned)
        return self.product(x, name, w, self.bias(name, n, *turned))

    def bias(self, name: str, n: int, rope_heads: int = 0, rope_dim: int = 0) -> Weight | None:
        found = (self.tensors.get if self.BIASED else self.tensors.maybe)(f"{name}.bias", n)
        return found and replace(found, rope_heads=rope_heads, rope_dim=rope_dim)

    def rows(self, x: Value, name: str, whole: int, first: int, n: int, rope_heads: int = 0) -> Value:
        """A product with n of the rows of a tensor of `whole`."""
        w, bias = self.tensors.get(f"{name}.weight", whole, x.width), self.bias(name, whole)

        def part(of: Weight) -> Weight:
            return replace(of, n=n, first=first, rope_heads=rope_heads, rope_dim=self.c.rope_dim if rope_heads else 0)

        return self.product(x, name, part(w), bias and part(bias))

    # ---- a layer ----

    def layer(self, i: int, x: Value) -> Value:
        x, _, a = self.attention(i, x, self.before(x, f"blk.{i}.attn_norm"))
        x = self.b.add(x, self.after(a, f"blk.{i}.post_attention_norm"))
        h = self.feed_forward(i, self.before(x, f"blk.{i}.ffn_norm"))
        return self.b.add(x, self.after(h, f"blk.{i}.post_ffw_norm"))

    def attention(self, i: int, x: Value, y: Value) -> tuple[Value, Value, Value]:
        """x and y in the rows that go on, and attention over y in these."""
        c, b = self.c, self.b
        k = self.turned(i, self.of_head(i, self.projected(i, y, "k", c.kv_heads, c.dk), "k", c.kv_heads), c.kv_heads)
        v = self.projected(i, y, "v", c.kv_heads, c.dv)
        if i == c.layers - 1:
            x, y = (b.select(x), b.select(y)) if x is not y else (b.select(x),) * 2
        q = self.turned(i, self.of_head(i, self.projected(i, y, "q", c.heads, c.dk), "q", c.heads), c.heads)
        # after all three products, so that threads wait for each other once
        store = b.store(k, v, c.kv_heads, self.window(i))
        return x, y, self.linear(self.attend(q, store), f"blk.{i}.attn_output", c.width)

    def projected(self, i: int, y: Value, name: str, heads: int, dim: int) -> Value:
        """Queries, keys or values: of a tensor of their own, or of one that holds the rows of all three."""
        permuted = self.PAIRS == "neighbours" and name != "v" and self.rotation(i) is not None
        rope_heads = heads if permuted else 0
        if f"blk.{i}.attn_qkv.weight" in self.tensors:
            q, k, v = self.c.heads * self.c.dk, self.c.kv_heads * self.c.dk, self.c.kv_heads * self.c.dv
            first = {"q": 0, "k": q, "v": q + k}[name]
            return self.rows(y, f"blk.{i}.attn_qkv", q + k + v, first, heads * dim, rope_heads)
        return self.linear(y, f"blk.{i}.attn_{name}", heads * dim, rope_heads)

    def turned(self, i: int, x: Value, heads: int) -> Value:
        table = self.rotation(i)
        return x if table is None else self.b.rope(x, heads, table)

    def feed_forward(self, i: int, x: Value) -> Value:
        c, b, name = self.c, self.b, f"blk.{i}.ffn"
        if c.experts:
            return self.mixture(i, x)
        if not self.GATED:
            return self.linear(b.act(self.linear(x, f"{name}_up", c.ff), self.ACT), f"{name}_down", c.width)
        if f"{name}_gate.weight" not in self.tensors and self.tensors.rows(f"{name}_up.weight") == 2 * c.ff:
            gate, up = (self.rows(x, f"{name}_up", 2 * c.ff, first, c.ff) for first in (0, c.ff))
        else:
            gate, up = self.linear(x, f"{name}_gate", c.ff), self.linear(x, f"{name}_up", c.ff)
        return self.linear(b.glu(gate, up, self.ACT), f"{name}_down", c.width)

    def mixture(self, i: int, x: Value) -> Value:
        """The experts that the router finds best for each token, weighted by the softmax over them."""
        c, b = self.c, self.b
        r = b.route(self.linear(x, f"blk.{i}.ffn_gate_inp", c.experts), c.experts_used)

        def experts(x: Value, name: str, n: int, k: int) -> Value:
            return b.experts(x, r, self.tensors.experts(f"blk.{i}.ffn_{name}", c.experts, n, k))

        hidden = b.glu(experts(x, "gate", c.expert_ff, c.width), experts(x, "up", c.expert_ff, c.width), self.ACT)
        return b.mix(experts(hidden, "down", c.width, c.expert_ff), r)
