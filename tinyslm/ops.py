"""The plain op vocabulary: what a model family is written in, and what every backend runs.

A program is a flat list of ops over values. A value is a float32 matrix with one row per token of the step
(`rows="token"`) or one per token whose logits are wanted (`rows="output"`); it is written once. Weights are named
tensors of the file. Nothing here knows of files, formats, memory or threads.

op        reads          attributes                 meaning, per row
embed     token ids      w                          y = W[id]
position  positions      w, offset                  y = W[position + offset]
rmsnorm   x              w, eps, heads              in each head, y = x / sqrt(mean(x²) + eps) · w
layernorm x              w, bias?, eps, heads       in each head, y = (x - mean(x)) / sqrt(variance(x) + eps) · w + bias
matmul    x              w, bias?                   y = W x + bias, W of shape (columns of y, columns of x)
rope      x              heads, dim, table          in each head, element i < r and i + r turn by position × frequency i
store     k, v           store                      keys and values of this position enter the KV store
attend    q              store, heads, scale,       softmax(s) V over positions up to the row's own, of them the last
                         softcap                    `window`, per head; s = scale · q Kᵀ, or softcap · tanh(s / softcap)
act       x              act                        y = act(x)
glu       a, b           act                        y = act(a) · b
add       a, b                                      y = a + b
scale     x              scale                      y = scale · x
softcap   x              softcap                    y = softcap · tanh(x / softcap)
route     x              used                       the `used` greatest of x: softmax over them, then their numbers
experts   x, r           w of each, used            y[j] = W[number j of r] x, or x[j] where x is as wide as all
mix       x, r           used                       y = Σ weight j of r · x[j]
select    x                                         the rows whose logits are wanted
logits    x                                         x is the result of the step
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Rows = Literal["token", "output"]
READS = {
    "embed": 0, "position": 0, "rmsnorm": 1, "layernorm": 1, "matmul": 1, "rope": 1, "store": 2, "attend": 1, "act": 1,
    "glu": 2, "add": 2, "scale": 1, "softcap": 1, "route": 1, "experts": 2, "mix": 2, "select": 1, "logits": 1,
}  # fmt: skip
# silu: x / (1 + e^-x); gelu: x / (1 + e^-2u), u = √(2/π) (x + 0.044715 x³), which is the form with tanh (Hendrycks and
# Gimpel, arXiv:1606.08415); relu: max(x, 0)
ACTIVATIONS = ("silu", "gelu", "relu")


@dataclass(frozen=True)
class Value:
    """A float32 matrix of the step: (rows, width)."""

    index: int
    width: int
    rows: Rows


@dataclass(frozen=True)
class Weight:
    """A tensor of the file as an op reads it: (n, k), or (n,) where k is 0; its rows from `first` on.

    `rope_heads` > 0: the file pairs neighbours for RoPE (elements 2i and 2i + 1), the op pairs halves, so that each
    head's first `rope_dim` rows are taken in the order 0, 2, 4 … 1, 3, 5 …
    """

    name: str
    n: int
    k: int = 0
    rope_heads: int = 0
    rope_dim: int = 0
    first: int = 0

    def row_order(self) -> np.ndarray | None:
        """For each row as the op sees it, the row in the file, from `first`; None where they are the same."""
        if not self.rope_heads:
            return None
        head, half = self.n // self.rope_heads, self.rope_dim // 2
        within = np.arange(head)
        within[: 2 * half] = np.arange(2 * half).reshape(half, 2).T.ravel()
        order: np.ndarray = (np.arange(self.rope_heads)[:, None] * head + within).ravel()
        return order


@dataclass(frozen=True)
class RopeTable:
    """Angles: position × frequency[i] radians, float64 (r,); cos and sin are multiplied by `magnitude`."""

    frequency: tuple[float, ...]
    magnitude: float = 1.0


@dataclass(frozen=True)
class Store:
    """The KV geometry of one layer: heads, width of a key and of a value; window: how many positions, its own among
    them, a token sees (0: all)."""

    kv_heads: int
    dk: int
    dv: int
    window: int = 0


@dataclass(frozen=True)
class Op:
    """One row of the table above; attributes that the kind does not name keep their defaults."""

    kind: str
    out: Value | None
    reads: tuple[Value, ...] = ()
    weight: Weight | None = None
    bias: Weight | None = None
    experts: tuple[Weight, ...] = ()
    eps: float = 0.0
    heads: int = 0
    dim: int = 0
    table: int = -1
    store: int = -1
    scale: float = 1.0
    softcap: float = 0.0
    act: str = ""
    offset: int = 0
    used: int = 0

    def weights(self) -> tuple[Weight, ...]:
        return tuple(w for w in (self.weight, self.bias, *self.experts) if w is not None)


@dataclass(frozen=True)
class Program:
    """What one step computes: `ops` in order. The result is the value that the `logits` op reads."""

    ops: tuple[Op, ...]
    values: tuple[Value, ...]
    stores: tuple[Store, ...]
    tables: tuple[RopeTable, ...]
    vocab: int
    context: int

    def weights(self) -> Iterable[Weight]:
        """Each distinct weight once, in the order of first use."""
        return dict.fromkeys(w for op in self.ops for w in op.weights()).keys()


@dataclass
class Builder:
    """Writes a program: each method appends one op and gives back its value. Shapes are checked as they are written."""

    vocab: int
    context: int
    ops: list[Op] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    stores: list[Store] = field(default_factory=list)
    tables: list[RopeTable] = field(default_factory=list)

    def _emit(self, op: Op) -> None:
        assert len(op.reads) == READS[op.kind], op
        self.ops.append(op)

    def _value(self, width: int, rows: Rows) -> Value:
        value = Value(len(self.values), width, rows)
        self.values.append(value)
        return value

    def table(self, frequency: Iterable[float], magnitude: float = 1.0) -> int:
        """Declare a table of rotation frequencies, to be named by `rope`."""
        self.tables.append(RopeTable(tuple(frequency), magnitude))
        return len(self.tables) - 1

    def embed(self, w: Weight) -> Value:
        out = self._value(w.k, "token")
        self._emit(Op("embed", out, weight=w))
        return out

    def position(self, w: Weight, offset: int = 0) -> Value:
        """Learned positions: there are as many as the offset leaves of w's rows."""
        assert offset < w.n, (w, offset)
        out = self._value(w.k, "token")
        self._emit(Op("position", out, weight=w, offset=offset))
        return out

    def rmsnorm(self, x: Value, w: Weight, eps: float, heads: int = 1) -> Value:
        """Each head is normed by itself, w being of one head's width, or of all where each has weights of its own."""
        assert w.n in (x.width, x.width // heads) and x.width % heads == 0 and w.k == 0, (w, x)
        out = self._value(x.width, x.rows)
        self._emit(Op("rmsnorm", out, (x,), weight=w, eps=eps, heads=heads, dim=x.width // heads))
        return out

    def layernorm(self, x: Value, w: Weight, bias: Weight | None, eps: float, heads: int = 1) -> Value:
        """As rmsnorm, with the mean taken off first."""
        assert w.n in (x.width, x.width // heads) and x.width % heads == 0 and w.k == 0, (w, x)
        assert bias is None or (bias.n, bias.k) == (w.n, 0), (w, bias)
        out = self._value(x.width, x.rows)
        self._emit(Op("layernorm", out, (x,), weight=w, bias=bias, eps=eps, heads=heads, dim=x.width // heads))
        return out

    def matmul(self, x: Value, w: Weight, bias: Weight | None = None) -> Value:
        assert w.k == x.width, (w, x)
        assert bias is None or (bias.n == w.n and bias.k == 0), (w, bias)
        out = self._value(w.n, x.rows)
        self._emit(Op("matmul", out, (x,), weight=w, bias=bias))
        return out

    def rope(self, x: Value, heads: int, table: int) -> Value:
        dim = x.width // heads
        assert dim * heads == x.width and 2 * len(self.tables[table].frequency) <= dim, (x, heads)
        out = self._value(x.width, x.rows)
        self._emit(Op("rope", out, (x,), heads=heads, dim=dim, table=table))
        return out

    def store(self, k: Value, v: Value, kv_heads: int, window: int = 0) -> int:
        """Append keys and values to a KV store of its own; gives back its number, to be named by `attend`.

        window: positions, its own among them, that a token sees when it attends; 0: all before it.
        """
        assert 0 <= window < 1 << 31, window
        self.stores.append(Store(kv_heads, k.width // kv_heads, v.width // kv_heads, window))
        self._emit(Op("store", None, (k, v), store=len(self.stores) - 1))
        return len(self.stores) - 1

    def attend(self, q: Value, store: int, heads: int, scale: float, softcap: float = 0.0) -> Value:
        """softcap > 0: scores, once scaled, become softcap · tanh(score / softcap)."""
        geometry = self.stores[store]
        assert q.width == heads * geometry.dk and heads % geometry.kv_heads == 0, (q, geometry)
        out = self._value(heads * geometry.dv, q.rows)
        self._emit(Op("attend", out, (q,), store=store, heads=heads, dim=geometry.dk, scale=scale, softcap=softcap))
        return out

    def act(self, x: Value, act: str) -> Value:
        assert act in ACTIVATIONS, act
        out = self._value(x.width, x.rows)
        self._emit(Op("act", out, (x,), act=act))
        return out

    def glu(self, a: Value, b: Value, act: str) -> Value:
        assert a.width == b.width and act in ACTIVATIONS, (a, b, act)
        out = self._value(a.width, a.rows)
        self._emit(Op("glu", out, (a, b), act=act))
        return out

    def add(self, a: Value, b: Value) -> Value:
        assert a.width == b.width and a.rows == b.rows, (a, b)
        out = self._value(a.width, a.rows)
        self._emit(Op("add", out, (a, b)))
        return out

    def scale(self, x: Value, scale: float) -> Value:
        """x itself where `scale` is 1."""
        if scale == 1:
            return x
        out = self._value(x.width, x.rows)
        self._emit(Op("scale", out, (x,), scale=scale))
        return out

    def softcap(self, x: Value, softcap: float) -> Value:
        """x itself where `softcap` is 0: no cap."""
        if softcap == 0:
            return x
        out = self._value(x.width, x.rows)
        self._emit(Op("softcap", out, (x,), softcap=softcap))
        return out

    def route(self, x: Value, used: int) -> Value:
        """Which experts each row takes, for `experts` and `mix`: (weights, numbers), each `used` wide."""
        assert 1 <= used <= x.width, (x, used)
        out = self._value(2 * used, x.rows)
        self._emit(Op("route", out, (x,), used=used))
        return out

    def experts(self, x: Value, r: Value, experts: tuple[Weight, ...]) -> Value:
        w, used = experts[0], r.width // 2
        assert all((e.n, e.k) == (w.n, w.k) for e in experts) and x.width in (w.k, used * w.k), (w, x)
        assert x.rows == r.rows, (x, r)
        out = self._value(used * w.n, x.rows)
        self._emit(Op("experts", out, (x, r), experts=experts, used=used))
        return out

    def mix(self, x: Value, r: Value) -> Value:
        used = r.width // 2
        assert x.width % used == 0 and x.rows == r.rows, (x, r)
        out = self._value(x.width // used, x.rows)
        self._emit(Op("mix", out, (x, r), used=used))
        return out

    def select(self, x: Value) -> Value:
        out = self._value(x.width, "output")
        self._emit(Op("select", out, (x,)))
        return out

    def logits(self, x: Value) -> None:
        assert x.width == self.vocab and x.rows == "output", x
        self._emit(Op("logits", None, (x,)))

    def build(self) -> Program:
        return Program(
            tuple(self.ops), tuple(self.values), tuple(self.stores), tuple(self.tables), self.vocab, self.context
        )
