"""Small random models of any shape as GGUF files, and scripts of steps to run them by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tinyslm import gguf
from tinyslm.backends.base import PAGE, Backend, Batch
from tinyslm.formats import BY_NAME
from tinyslm.ops import Builder, Program, Value, Weight


@dataclass
class Shape:
    """A decoder of the Llama kind. `types` are dealt to the matrices in turn; `half`: rotated pairs of a head."""

    width: int = 20
    heads: int = 3
    kv_heads: int = 3
    dk: int = 8
    dv: int = 8
    half: int = 4
    ff: int = 37
    layers: int = 2
    vocab: int = 45
    types: Sequence[str] = ("F32",)
    bias: bool = False
    tied: bool = False
    permuted: bool = False
    magnitude: float = 1.0
    window: int = 0
    softcap: float = 0.0


@dataclass
class Toy:
    """Writes the program of a shape, drawing each weight as it is named."""

    shape: Shape
    rng: np.random.Generator
    tensors: list[gguf.TensorData] = field(default_factory=list)
    matrices: int = 0

    def matrix(self, name: str, n: int, k: int, rope_heads: int = 0) -> Weight:
        kind = BY_NAME[self.shape.types[self.matrices % len(self.shape.types)]]
        self.matrices += 1
        values = (self.rng.normal(size=(n, k)) * 1.5 / np.sqrt(k)).astype(np.float32)
        self.tensors.append(gguf.TensorData(name, (k, n), kind.id, kind.quantise(values)))
        return Weight(name, n, k, *self.rope(rope_heads))

    def vector(self, name: str, n: int, mean: float = 0, rope_heads: int = 0) -> Weight:
        values = self.rng.normal(mean, 0.3, n).astype(np.float32)
        self.tensors.append(gguf.TensorData(name, (n,), 0, values))
        return Weight(name, n, 0, *self.rope(rope_heads))

    def rope(self, heads: int) -> tuple[int, int]:
        return (heads, 2 * self.shape.half) if heads and self.shape.permuted else (0, 0)

    def linear(self, b: Builder, x: Value, name: str, n: int, rope_heads: int = 0) -> Value:
        bias = self.vector(name + ".bias", n, 0, rope_heads) if self.shape.bias else None
        return b.matmul(x, self.matrix(name, n, x.width, rope_heads), bias)

    def program(self) -> Program:
        s, b = self.shape, Builder(self.shape.vocab, 4096)
        table = b.table(10000.0 ** (-np.arange(s.half) / s.half), s.magnitude)
        embedding = self.matrix("embedding", s.vocab, s.width)
        x = b.embed(embedding)
        for i in range(s.layers):
            y = b.rmsnorm(x, self.vector(f"{i}.norm", s.width, 1), 1e-5)
            k = b.rope(self.linear(b, y, f"{i}.k", s.kv_heads * s.dk, s.kv_heads), s.kv_heads, table)
            store = b.store(k, self.linear(b, y, f"{i}.v", s.kv_heads * s.dv), s.kv_heads, s.window)
            if i == s.layers - 1:
                x, y = b.select(x), b.select(y)
            q = b.rope(self.linear(b, y, f"{i}.q", s.heads * s.dk, s.heads), s.heads, table)
            a = b.attend(q, store, s.heads, s.dk**-0.5, s.softcap)
            x = b.add(x, self.linear(b, a, f"{i}.out", s.width))
            y = b.rmsnorm(x, self.vector(f"{i}.norm2", s.width, 1), 1e-5)
            hidden = b.glu(self.linear(b, y, f"{i}.gate", s.ff), self.linear(b, y, f"{i}.up", s.ff), "silu")
            x = b.add(self.linear(b, hidden, f"{i}.down", s.width), x)
        x = b.rmsnorm(x, self.vector("norm", s.width, 1), 1e-5)
        b.logits(b.matmul(x, embedding if s.tied else self.matrix("output", s.vocab, s.width)))
        return b.build()


class Zoo(Toy):
    """A decoder that uses every op in every place where it is fused, and where it is not."""

    def norm(self, b: Builder, x: Value, name: str, heads: int = 1, own: bool = False, center: bool = False) -> Value:
        n = x.width if own else x.width // heads
        w = self.vector(name, n, 1)
        bias = self.vector(name + ".bias", n) if center and heads == 1 else None
        return b.layernorm(x, w, bias, 1e-5, heads) if center else b.rmsnorm(x, w, 1e-6, heads)

    def sliced(self, b: Builder, x: Value, name: str, *widths: int) -> list[Value]:
        """Products with rows of one tensor, biases with elements of one vector."""
        whole, bias, at = self.matrix(name, sum(widths), x.width), self.vector(name + ".bias", sum(widths)), 0
        out = []
        for n in widths:
            some = Weight(whole.name, n, whole.k, first=at)
            out.append(b.matmul(x, some, Weight(bias.name, n, first=at)))
            at += n
        return out

    def mixture(self, b: Builder, x: Value, name: str, act: str, count: int = 5, used: int = 3) -> Value:
        s = self.shape
        r = b.route(self.linear(b, x, name + ".router", count), used)
        cube = self.matrix(name + ".gate", count * s.ff, s.width)
        gate = tuple(Weight(cube.name, s.ff, s.width, first=i * s.ff) for i in range(count))
        up = self.matrices_of(f"{name}.up", count, s.ff, s.width)
        down = self.matrices_of(f"{name}.down", count, s.width, s.ff)
        return b.mix(b.experts(b.glu(b.experts(x, r, gate), b.experts(x, r, up), act), r, down), r)

    def matrices_of(self, name: str, count: int, n: int, k: int) -> tuple[Weight, ...]:
        """Tensors of their own, of one type."""
        before = self.matrices
        out = []
        for i in range(count):
            self.matrices = before
            out.append(self.matrix(f"{name}.{i}", n, k))
        return tuple(out)

    def attention(self, b: Builder, y: Value, kept: Value, i: int, table: int) -> Value:
        s = self.shape
        q, k, v = self.sliced(b, y, f"{i}.qkv", s.heads * s.dk, s.kv_heads * s.dk, s.kv_heads * s.dv)
        k = b.rope(self.norm(b, k, f"{i}.knorm", s.kv_heads, own=i == 1), s.kv_heads, table)
        store = b.store(k, v, s.kv_heads)
        if kept is not y:
            q = self.linear(b, kept, f"{i}.q", s.heads * s.dk)
        q = b.rope(self.norm(b, q, f"{i}.qnorm", s.heads, own=i == 1, center=i == 1), s.heads, table)
        return b.attend(q, store, s.heads, s.dk**-0.5)

    def program(self) -> Program:
        s, b = self.shape, Builder(self.shape.vocab, 128)
        table = b.table(10000.0 ** (-np.arange(s.half) / s.half))
        embedding = self.matrix("embedding", s.vocab, s.width)
        x = b.add(b.scale(b.embed(embedding), 7.5), b.position(self.matrix("positions", 130, s.width), 2))
        # parallel, LayerNorm, an activation between two products
        y = self.norm(b, x, "0.norm", center=True)
        a = self.linear(b, self.attention(b, y, y, 0, table), "0.out", s.width)
        hidden = b.act(self.linear(b, y, "0.up", s.ff), "gelu")
        x = b.add(b.add(x, a), b.scale(self.linear(b, hidden, "0.down", s.width), 0.3))
        # norms behind, which are added; experts of what no norm has touched
        a = self.linear(b, self.attention(b, x, x, 1, table), "1.out", s.width)
        x = b.add(x, self.norm(b, a, "1.post"))
        x = b.add(self.norm(b, self.mixture(b, x, "1.moe", "relu"), "1.post2", center=True), x)
        # experts of a norm; the last layer, of wanted rows alone
        y = self.norm(b, x, "2.norm")
        x, kept = b.select(x), b.select(y)
        x = b.add(x, self.linear(b, self.attention(b, y, kept, 2, table), "2.out", s.width))
        x = b.add(x, self.mixture(b, self.norm(b, x, "2.norm2"), "2.moe", "gelu", 4, 1))
        gate, up = self.sliced(b, self.norm(b, x, "2.norm3", center=True), "2.gateup", s.ff, s.ff)
        x = b.add(x, self.linear(b, b.act(b.scale(b.glu(gate, up, "gelu"), 0.5), "relu"), "2.down", s.width))
        x = b.softcap(b.scale(self.norm(b, x, "norm"), 2.5), 4.0)
        y = b.matmul(x, embedding if s.tied else self.matrix("output", s.vocab, s.width))
        b.logits(b.softcap(b.scale(y, 2.0), 3))
        return b.build()


def write_toy(path: Path, shape: Shape, seed: int = 0) -> Program:
    """Write the weights to `path`; the program that reads them."""
    toy = Toy(shape, np.random.default_rng(seed))
    program = toy.program()
    gguf.write(path, {"general.architecture": "toy"}, toy.tensors)
    return program


Step = Sequence[tuple[int, int, int]]  # (sequence, how many tokens, of how many at its end the logits are wanted)


@dataclass
class Run:
    """Sequences on a backend."""

    backend: Backend
    program: Program
    seed: int = 0
    lengths: dict[int, int] = field(default_factory=dict)
    pages: dict[int, list[Any]] = field(default_factory=dict)

    def batch(self, step: Step) -> Batch:
        ids: list[int] = []
        positions: list[int] = []
        sequence: list[int] = []
        outputs: list[int] = []
        for i, (name, count, wanted) in enumerate(step):
            start = self.lengths.get(name, 0)
            pages = self.pages.setdefault(name, [])
            pages += [self.backend.new_page() for _ in range(len(pages), -(-(start + count) // PAGE))]
            stream = np.random.default_rng((self.seed, name)).integers(0, self.program.vocab, start + count)
            ids += stream[start:].tolist()
            positions += range(start, start + count)
            sequence += [i] * count
            outputs += range(len(ids) - wanted, len(ids))
            self.lengths[name] = start + count
        id_array, at, owner, last = (np.array(a, np.int32) for a in (ids, positions, sequence, outputs))
        return Batch(id_array, at, owner, last, [self.pages[name] for name, _, _ in step])

    def step(self, step: Step) -> tuple[np.ndarray, np.ndarray, Batch]:
        """Logits, which tokens went bad, and the batch."""
        batch = self.batch(step)
        logits = np.full((len(batch.outputs), self.program.vocab), np.nan, np.float32)
        return logits, self.backend.step(batch, logits), batch

    def close(self) -> None:
        for pages in self.pages.values():
            for page in pages:
                self.backend.free_page(page)
        self.backend.close()
