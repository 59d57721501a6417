"""Small random models and the steps that go with them, as dumps for the replay driver. Between them they have every
lowered op, fused and not, every type with panels, tied and separate embeddings, biases, head sizes and row lengths
that fill no lane, narrow and wide steps, several sequences, a context of more than one attention segment, and rows
that are no finite number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import toys
from blocks import QUANTISED
from toys import Zoo

from tinyslm import config, models, shapes
from tinyslm.backends.base import PAGE, Batch, Weights
from tinyslm.backends.dump import dump
from tinyslm.backends.native import Native, lib
from tinyslm.formats import BY_NAME
from tinyslm.gguf import GGUF, write
from tinyslm.ops import Builder, Program, Value, Weight

STORIES = Path(__file__).resolve().parents[2] / "shared" / "data" / "stories260K"
GOLDENS = Path(__file__).parent / "goldens"
BAD_ID = 5


@dataclass(frozen=True)
class Shape:
    """A model like Llama. `types`: of the matrices, in turn; `embedding` and `output` (None: tied) theirs. A row that
    the type's blocks do not divide is of Q8_0 or F16 instead."""

    width: int
    heads: int
    kv_heads: int
    dk: int
    dv: int
    ff: int
    vocab: int
    types: tuple[str, ...]
    embedding: str
    output: str | None = None
    down: str = "F16"
    half: int = 0  # rotated pairs; 0: all
    layers: int = 2
    biases: bool = False
    odd: bool = False  # ops that no fusion takes in
    window: int = 0
    softcap: float = 0.0
    kv: str = "f16"
    bad: bool = False  # the embedding of BAD_ID is no number
    rows: int = 40


SHAPES = {
    "tied": Shape(64, 8, 4, 8, 8, 172, 83, ("Q4_0",), "Q8_0"),
    "biases": Shape(192, 3, 1, 64, 64, 160, 101, ("Q5_1", "Q4_1", "Q5_0"), "Q4_0", "Q8_0", "Q5_0", biases=True),
    "q6": Shape(256, 6, 3, 80, 48, 256, 65, ("Q6_K", "Q8_0", "Q4_K", "Q5_K"), "Q6_K", down="Q6_K", half=16),
    "few": Shape(256, 4, 2, 64, 64, 512, 65, ("Q2_K", "Q3_K", "TQ1_0", "TQ2_0", "Q1_0", "Q2_0", "MXFP4", "NVFP4"),
                 "Q2_K", "F64", down="IQ4_XS"),
    "books": Shape(256, 4, 2, 64, 64, 256, 50, ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S",
                   "IQ4_NL"), "IQ3_S", down="IQ4_XS"),
    "floats": Shape(40, 2, 1, 128, 128, 172, 90, ("F32", "BF16", "F16"), "BF16", "F32", "F32", odd=True),
    "bad": Shape(32, 2, 1, 16, 16, 64, 70, ("Q8_0", "F32"), "F32", bad=True),
    "window": Shape(32, 5, 1, 16, 24, 32, 48, ("Q8_0",), "Q4_1", window=23, softcap=2.0),
    "eights": Shape(32, 10, 2, 24, 40, 32, 48, ("Q8_0",), "Q4_1", window=33, kv="q8_0"),
    "long": Shape(32, 2, 1, 8, 8, 32, 48, ("Q8_0",), "Q4_1", layers=1, rows=512),
}  # fmt: skip


def program(s: Shape) -> tuple[Program, dict[str, str]]:
    """The program, and the type of each of its matrices."""
    b, types = Builder(s.vocab, 4096), dict[str, str]()

    def matrix(name: str, n: int, k: int, kind: str | None = None) -> Weight:
        wanted = kind or s.types[len(types) % len(s.types)]
        others = (t for t in (wanted, "Q8_0", "F16") if k % BY_NAME[t].block == 0)
        types[name] = next(others)
        return Weight(name, n, k)

    def matmul(x: Value, name: str, n: int, kind: str | None = None) -> Value:
        return b.matmul(x, matrix(name, n, x.width, kind), Weight(name + ".bias", n) if s.biases else None)

    table = b.table(0.1 ** np.arange(s.half or s.dk // 2), 1.1)
    embedding = matrix("embedding", s.vocab, s.width, s.embedding)
    x = b.embed(embedding)
    for i in range(s.layers):
        y = b.rmsnorm(x, Weight(f"{i}.norm", s.width), 1e-5)
        k = b.rope(matmul(y, f"{i}.k", s.kv_heads * s.dk), s.kv_heads, table)
        store = b.store(k, matmul(y, f"{i}.v", s.kv_heads * s.dv), s.kv_heads, s.window)
        if i == s.layers - 1:
            x, y = b.select(x), b.select(y)
        q = b.rope(matmul(y, f"{i}.q", s.heads * s.dk), s.heads, table)
        x = b.add(x, matmul(b.attend(q, store, s.heads, s.dk**-0.5, s.softcap), f"{i}.o", s.width))
        y = b.rmsnorm(x, Weight(f"{i}.norm2", s.width), 1e-5)
        gate, up = matmul(y, f"{i}.gate", s.ff), matmul(y, f"{i}.up", s.ff)
        x = b.add(x, matmul(b.glu(gate, up, "silu"), f"{i}.down", s.width, s.down))
    if s.odd:
        turned = b.rope(x, 1, b.table([0.5, 0.25, 0.125]))
        x = b.add(b.glu(turned, x, "silu"), b.rmsnorm(b.add(x, turned), Weight("odd", s.width), 1e-6))
    x = b.rmsnorm(x, Weight("last", s.width), 1e-5)
    if s.output:
        b.logits(matmul(x, "output", s.vocab, s.output))
    else:
        b.logits(b.matmul(x, embedding))
    return b.build(), types


def write_model(path: Path, program: Program, types: dict[str, str], bad: bool = False, seed: int = 0) -> None:
    """A file with random weights for the program."""
    rng = np.random.default_rng(seed)
    tensors = []
    for w in program.weights():
        kind = BY_NAME[types.get(w.name, "F32")]
        values = rng.standard_normal((w.n, w.k or 1), np.float32) * np.float32(w.k**-0.5 if w.k else 0.1)
        if not w.k and "bias" not in w.name:
            values += np.float32(1)
        if bad and w.name == "embedding":
            values[BAD_ID, -1] = np.nan
        shape = (w.k, w.n) if w.k else (w.n,)
        if w.k and kind.name not in QUANTISED:
            rows = shapes.MAKERS[kind.name](rng, values.size // kind.block, w.k)
            tensors.append((w.name, shape, kind.id, np.frombuffer(rows.tobytes(), np.uint8)))
        else:
            tensors.append((w.name, shape, kind.id, kind.quantise(values if w.k else values.reshape(1, -1))))
    write(path, {"general.architecture": "random"}, tensors)


class Sequences:
    """Makes steps: remembers how long each sequence is, and gives it pages in no order."""

    def __init__(self, vocab: int, seed: int = 0, avoid: int = -1) -> None:
        self.rng, self.vocab, self.avoid = np.random.default_rng(seed), vocab, avoid
        self.length: dict[str, int] = {}
        self.pages: dict[str, list[int]] = {}
        self.free = list(self.rng.permutation(64))

    def step(self, outputs: str | Sequence[int], *parts: tuple[str, int]) -> Batch:
        """So many tokens of each sequence. `outputs`: "all", "last" of each part, or their indices."""
        ids, positions, sequence, last = [], [], [], []
        for i, (name, count) in enumerate(parts):
            start = self.length.get(name, 0)
            self.length[name] = start + count
            listed = self.pages.setdefault(name, [])
            while len(listed) * PAGE < start + count:
                listed.append(int(self.free.pop()))
            drawn = self.rng.integers(0, self.vocab, count)
            ids += list(np.where(drawn == self.avoid, 0, drawn))
            positions += range(start, start + count)
            sequence += [i] * count
            last.append(len(ids) - 1)
        chosen = range(len(ids)) if outputs == "all" else last if outputs == "last" else outputs
        arrays = (np.array(list(a), np.int32) for a in (ids, positions, sequence, chosen))
        return Batch(*arrays, pages=[list(self.pages[name]) for name, _ in parts])


def steps(s: Shape) -> list[Batch]:
    run = Sequences(s.vocab, avoid=BAD_ID if s.bad else -1)
    if s.rows >= 512:
        return [
            run.step("last", ("a", 512)),
            run.step([0, 7, 60], ("a", 60), ("b", 5)),
            run.step("last", ("a", 1)),
            run.step("all", ("a", 3), ("b", 2)),
        ]
    out = [
        run.step("last", ("a", 37)),
        run.step("last", ("a", 1)),
        run.step([0, 3, 20, 23], ("a", 1), ("b", 20), ("c", 3)),
        run.step("all", ("a", 1), ("b", 1), ("c", 4)),
        run.step([], ("b", 8)),
        run.step("all", ("c", 9)),
        run.step("last", ("a", 30), ("c", 2)),
        run.step("last", ("a", 1)),
    ]
    if s.bad:
        for count in (6, 20):
            broken = run.step("all", ("a", 2), (f"d{count}", count - 4), ("c", 2))
            broken.ids[3] = BAD_ID
            out.append(broken)
    return out


def random_shape(seed: int) -> Shape:
    """Any shape that the engine should take."""
    rng = np.random.default_rng(seed)
    block = int(rng.choice([1, 32, 256], p=[0.2, 0.6, 0.2]))
    kinds = [f.name for f in BY_NAME.values() if f.block <= block and lib.slm_panel_bytes(f.id, f.block)]
    kv_heads, dk = int(rng.integers(1, 5)), 2 * int(rng.integers(1, 50))

    def pick() -> str:
        return str(rng.choice(kinds))

    def length(most: int) -> int:
        return block * int(rng.integers(1, most // block + 1))

    return Shape(
        width=length(300), heads=kv_heads * int(rng.integers(1, 6)), kv_heads=kv_heads, dk=dk,
        dv=int(rng.integers(1, 100)), ff=length(600), vocab=int(rng.integers(8, 150)), types=(pick(), pick(), pick()),
        embedding=pick(), output=rng.choice([None, pick()]), down=pick(), half=int(rng.integers(1, dk // 2 + 1)),
        layers=int(rng.integers(1, 4)), biases=bool(rng.integers(2)),
        odd=block > 5 and bool(rng.integers(2)), window=int(rng.choice([0, rng.integers(1, 80)])),
        softcap=float(rng.choice([0, 3])), kv=str(rng.choice(["f16", "q8_0"])),
        bad=block == 1 and bool(rng.integers(2)), rows=int(rng.integers(40, 70)),
    )  # fmt: skip


def make(folder: Path, name: str, shape: Shape, fuse: bool = True, seed: int = 0) -> Path:
    """The dump of a random model of this shape."""
    path = folder / f"{name}{'' if fuse else '-unfused'}.dump"
    built, types = program(shape)
    write_model(path.with_suffix(".gguf"), built, types, shape.bad, seed)
    with GGUF.open(path.with_suffix(".gguf")) as file:
        native = Native(built, Weights(file), rows=shape.rows, fuse=fuse, kv=shape.kv)
        try:
            dump(native, steps(shape), path)
        finally:
            native.close()
    return path


def zoo(folder: Path) -> Path:
    """The ops that Llama does not need."""
    toy = Zoo(toys.Shape(width=64, heads=4, kv_heads=2, dk=16, dv=16, ff=96, types=("Q8_0",)), np.random.default_rng(0))
    built, path = toy.program(), folder / "zoo.dump"
    write(path.with_suffix(".gguf"), {"general.architecture": "zoo"}, toy.tensors)
    run = Sequences(built.vocab)
    with GGUF.open(path.with_suffix(".gguf")) as file:
        native = Native(built, Weights(file), rows=40)
        try:
            dump(native, [run.step("last", ("a", 37)), run.step("all", ("a", 1), ("b", 3))], path)
        finally:
            native.close()
    return path


def families(folder: Path) -> Iterator[Path]:
    """The dumps of every family's golden, and of the ops that no family may have."""
    yield zoo(folder)
    for i, path in enumerate(sorted(GOLDENS.glob("*.gguf"))):
        with GGUF.open(path) as file:
            yield real(folder / f"{path.stem}.dump", file, "q8_0" if i % 2 else "f16")


def make_all(folder: Path) -> Iterator[Path]:
    """The dumps of every shape, fused and not, of every family, and of the real files where they are."""
    for name, shape in SHAPES.items():
        for fuse in (True, False):
            yield make(folder, name, shape, fuse)
    yield from families(folder)
    for path in sorted(STORIES.glob("*.gguf")):
        with GGUF.open(path) as file:
            yield real(folder / f"{path.stem}.dump", file)


def real(path: Path, file: GGUF, kv: str = "f16") -> Path:
    def floats(name: str) -> np.ndarray:
        info = file.tensors[name]
        values: np.ndarray = info.format.dequantise(file.read(info)).ravel()
        return values

    built = models.build(config.Keys(file.path, file.metadata), models.Tensors(file.path, file.tensors, floats))
    native = Native(built, Weights(file), rows=80, kv=kv)
    run = Sequences(built.vocab)
    listed = [run.step("last", ("a", 70)), run.step("last", ("a", 1), ("b", 12)), run.step("all", ("a", 1), ("b", 3))]
    try:
        dump(native, listed, path)
    finally:
        native.close()
    return path


def small(folder: Path) -> list[Path]:
    """A few dumps, for a quick run."""
    q6 = replace(SHAPES["q6"], layers=1, types=("Q6_K", "Q4_K", "Q5_K"))
    return [make(folder, "tied", SHAPES["tied"]), make(folder, "q6", q6, False), make(folder, "bad", SHAPES["bad"]),
            zoo(folder)]  # fmt: skip
