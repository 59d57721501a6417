"""Lowering: what is fused, where values stand, and where threads wait, checked from the lowered ops alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from toys import Shape, Toy, Zoo

from tinyslm.lowered import WAIT_NARROW, WAIT_WIDE, Kernels, Lowered, LoweredOp
from tinyslm.ops import Builder, Program, Value, Weight
from tinyslm.program import lower

F32, Q4_0, Q8_0, Q6_K = 0, 2, 8, 14
BLOCK = {F32: 0, Q4_0: 32, Q8_0: 32, Q6_K: 256}


def up(n: int, step: int) -> int:
    return -(-n // step) * step


KERNELS = Kernels(
    panel_bytes=lambda kind, k: up({F32: 64, Q4_0: 18, Q8_0: 34, Q6_K: 14}[kind] * k, 64),
    row_bytes=lambda kind, k: {F32: 4, Q8_0: 2, Q6_K: 1}[kind] * k,
    act_row_bytes=lambda block, k: up(k * (2 if block else 4), 64),
    act_block=lambda kind: BLOCK[kind],
    kv_bytes=lambda kind, n, fill: 128 * (up(n, 16) if fill else n),
)


def lowered(program: Program, kind: int = Q8_0, rows: int = 20, fuse: bool = True, **types: int) -> Lowered:
    names = {w.name: kind for w in program.weights() if w.k}
    return lower(program, {**names, **types}, KERNELS, rows, fuse)


def toy(**shape: object) -> Program:
    program: Program = Toy(Shape(**shape), np.random.default_rng(0)).program()  # type: ignore[arg-type]
    return program


def kinds(program: Lowered) -> list[str]:
    return [op.kind + ("" if op.epilogue == "PLAIN" else "+" + op.epilogue) for op in program.ops]


# ---- what is fused ----

LAYER = ["PREPARE", "MATMUL", "MATMUL", "STORE", "MATMUL", "ATTEND", "PREPARE", "MATMUL+RESIDUAL",
         "PREPARE", "MATMUL+GATED", "PREPARE", "MATMUL+RESIDUAL"]  # fmt: skip


def test_a_llama_layer() -> None:
    program = lowered(toy(layers=3))
    last = [*LAYER]
    last[4:4] = ["GATHER", "PREPARE"]  # what the wanted rows alone need: x itself for the sum, its norm for q
    assert kinds(program) == ["EMBED", *LAYER, *LAYER, *without_order(kinds(program), last), "PREPARE", "MATMUL"]
    for bit in (WAIT_NARROW, WAIT_WIDE):
        waits = sum(bool(op.barrier & bit) for op in program.ops)
        assert waits <= (20 if bit == WAIT_NARROW else 33)


def without_order(found: list[str], expected: list[str]) -> list[str]:
    """The last layer as it was found, if it has the same ops as expected."""
    layer = found[1 + 2 * len(LAYER) : -2]
    assert sorted(layer) == sorted(expected)
    return layer


def test_unfused_has_every_op_and_keeps_every_value() -> None:
    plain = toy(layers=2)
    program = lowered(plain, fuse=False)
    assert not any("+" in kind for kind in kinds(program))
    computed = [op for op in plain.ops if op.kind != "logits"]
    assert len([op for op in program.ops if op.kind != "PREPARE"]) == len(computed)
    places = [(op.out, op.out + 4 * op.ldout * 32) for op in program.ops if op.out >= 0]
    assert all(a[1] <= b[0] or b[1] <= a[0] for i, a in enumerate(places) for b in places[:i])


def vector(name: str, n: int) -> Weight:
    return Weight(name, n)


def ending(b: Builder, x: Value) -> Program:
    b.logits(b.matmul(b.select(x), Weight("output", b.vocab, x.width)))
    return b.build()


def start(width: int = 256) -> tuple[Builder, Value]:
    b = Builder(64, 100)
    return b, b.embed(Weight("embedding", 64, width))


def test_a_norm_that_something_else_reads_is_computed() -> None:
    b, x = start()
    y = b.rmsnorm(x, vector("norm", 256), 1e-5)
    program = lowered(ending(b, b.add(y, b.matmul(y, Weight("w", 256, 256)))))
    assert kinds(program) == ["EMBED", "NORM", "PREPARE", "MATMUL+RESIDUAL", "GATHER", "PREPARE", "MATMUL"]


def test_a_sum_with_what_comes_later_is_no_residual() -> None:
    """The first matmul cannot add what is not there yet; the second can add the first."""
    b, x = start()
    y, z = b.matmul(x, Weight("v", 256, 256)), b.matmul(x, Weight("w", 256, 256))
    program = lowered(ending(b, b.add(y, z)))
    assert kinds(program)[:4] == ["EMBED", "PREPARE", "MATMUL", "MATMUL+RESIDUAL"]


@pytest.mark.parametrize("case", ["twice", "read again", "other input", "other rounding", "double"])
def test_what_must_not_be_fused(case: str) -> None:
    b, x = start()
    other = b.rmsnorm(x, vector("norm", 256), 1e-5)
    y = b.matmul(x, Weight("v", 256, 256))
    z = y if case == "twice" else b.matmul(other if case == "other input" else x, Weight("w", 256, 256))
    if case == "double":
        program = lowered(ending(b, b.add(y, y)))
        assert "ADD" in kinds(program)
        return
    gated = b.glu(y, z, "silu")
    out = b.add(gated, y) if case == "read again" else gated
    program = lowered(ending(b, out), **({"w": Q6_K} if case == "other rounding" else {}))
    assert "GLU" in kinds(program)
    assert "MATMUL+GATED" not in kinds(program)


def test_one_slot_for_each_way_of_rounding() -> None:
    b, x = start()
    parts = [b.matmul(x, Weight(name, 256, 256)) for name in "pqrs"]
    program = lowered(ending(b, b.add(b.add(parts[0], parts[1]), b.add(parts[2], parts[3]))), q=Q6_K, s=F32)
    prepared = [op.act_block for op in program.ops if op.kind == "PREPARE" and not op.output]
    assert prepared == [32, 256, 0]


def test_what_alone_is_rounded_is_folded_into_the_matmul_before() -> None:
    b, x = start()
    y = b.act(b.matmul(x, Weight("v", 512, 256)), "gelu")
    plain = ending(b, b.matmul(y, Weight("w", 256, 512)))
    program = lowered(plain)
    made, prepare = program.ops[2:4]
    assert (made.kind, prepare.kind, prepare.folded) == ("MATMUL", "PREPARE", 1)
    assert made.folds is prepare
    assert [op.folded for op in program.ops if op is not prepare] == [0] * (len(program.ops) - 1)
    assert not prepare.barrier & WAIT_WIDE
    assert not any(op.folded for op in lowered(plain, fuse=False).ops)


@pytest.mark.parametrize("case", ["read again", "two roundings", "float32", "normed", "not the last"])
def test_what_must_not_be_folded(case: str) -> None:
    b, x = start()
    y = b.matmul(x, Weight("v", 256, 256))
    last = b.matmul(x, Weight("t", 256, 256)) if case == "not the last" else x
    read = b.rmsnorm(y, vector("norm", 256), 1e-5) if case == "normed" else y
    z = b.matmul(read, Weight("w", 256, 256))
    if case == "two roundings":
        z = b.add(z, b.matmul(y, Weight("u", 256, 256)))
    if case == "read again":
        z = b.glu(z, y, "silu")
    program = lowered(ending(b, b.glu(z, last, "silu")), w=F32 if case == "float32" else Q8_0, u=Q6_K)
    assert not any(op.folded for op in program.ops)


def test_tied_and_untied_embeddings() -> None:
    tied, untied = lowered(toy(tied=True)), lowered(toy())
    assert (tied.ops[0].kind, untied.ops[0].kind) == ("LOOKUP", "EMBED")
    assert {p.weight.name: p.form for p in tied.placements}["embedding"] == "panels"
    assert {p.weight.name: p.form for p in untied.placements}["embedding"] == "rows"
    assert [p.weight.name for p in tied.placements].count("embedding") == 1


def test_weights_stand_apart_and_aligned() -> None:
    program = lowered(toy(bias=True, layers=3), kind=F32)
    parts = list[tuple[int, int]]()  # of each panel, and of each weight that is not in panels: from, up to
    for place in program.placements:
        count = up(place.weight.n, 16) // 16 if place.form == "panels" else 1
        size = place.bytes // count
        parts += [(at, at + size) for at in (place.offset + i * place.step for i in range(count))]
    parts.sort()
    assert all(low % 64 == 0 for low, _ in parts)
    assert [low for low, _ in parts] + [program.arena] == [0] + [high for _, high in parts]


def test_panels_of_a_gate_stand_in_turn() -> None:
    b, x = start()
    y, z = b.matmul(x, Weight("v", 256, 256)), b.matmul(x, Weight("w", 256, 256))
    program = lowered(ending(b, b.glu(y, z, "silu")), w=Q4_0)
    places = {p.weight.name: p for p in program.placements}
    v, w = places["v"], places["w"]
    sizes = [KERNELS.panel_bytes(kind, 256) for kind in (Q8_0, Q4_0)]
    assert (v.step, w.step, w.offset - v.offset) == (sum(sizes), sum(sizes), sizes[0])
    assert [op.w for op in program.ops if op.epilogue == "GATED"] == [v.offset]


def test_pages_hold_every_layer() -> None:
    program = lowered(toy(layers=3, kv_heads=3, dk=8, dv=24))
    starts = [op.kv for op in program.ops if op.kind == "STORE"]
    size = 3 * 64 * 2 * (8 + 32)
    assert starts == [0, size, 2 * size]
    assert program.page == 3 * size


# ---- layout and barriers: a checker that knows what the C core does, and nothing of how they were made ----


@dataclass(frozen=True)
class Touch:
    """Bytes of `space` that an op reads or writes; `private`: by each thread in its own part, the same in every op."""

    space: str
    low: int
    high: int
    write: bool
    what: object
    private: bool = False


def touches(op: LoweredOp, program: Lowered, narrow: bool) -> Iterator[Touch]:
    rows = up(program.rows, 16)
    if op.folded and not narrow:  # the matmul before it does it
        return
    if op.folds and not narrow:
        yield from touches(replace(op.folds, folded=0, x=-1, x_value=None), program, narrow)
    for at, ld, value, write in (
        (op.x, op.ldx, op.x_value, False), (op.y, op.ldy, op.y_value, False), (op.out, op.ldout, op.out_value, True),
    ):  # fmt: skip
        assert (at >= 0) == (value is not None)
        if value is not None:
            assert ld >= value.width
            assert at % 64 == 0
            few = op.folded or (op.folds and write)
            if narrow or not few:
                yield Touch("workspace", at, at + 4 * ld * (16 if few else rows), write, value.index)
    if op.kind == "GROUP" or (op.used and op.slot):
        yield Touch("groups", 0, 1, op.kind == "GROUP", "groups")
    if op.kind in ("PREPARE", "MATMUL", "EXPERTS"):
        size = KERNELS.act_row_bytes(op.act_block, op.k)
        if narrow and not op.used:
            yield Touch("own", op.act_narrow, op.act_narrow + 8 * size, op.kind == "PREPARE", op.slot, True)
        else:
            wide = rows if not op.used else rows * op.used + min(rows * op.used, 7 * op.experts)
            yield Touch("workspace", op.act_wide, op.act_wide + wide * size, op.kind == "PREPARE", op.slot)
    if op.kind in ("STORE", "ATTEND"):
        yield Touch(f"page {op.kv}", 0, 1, op.kind == "STORE", f"kv {op.kv}", narrow)


def overlap(a: Touch, b: Touch) -> bool:
    return a.space == b.space and a.low < b.high and b.low < a.high


def wrong(program: Lowered, narrow: bool) -> list[str]:
    """What a step could read that is not what was meant: values overwritten, or not yet written by another thread."""
    problems: list[str] = []
    written: list[Touch] = []
    since: list[Touch] = []
    for i, op in enumerate(program.ops):
        if op.barrier & (WAIT_NARROW if narrow else WAIT_WIDE):
            since = []
        now = list(touches(op, program, narrow))
        room = {"workspace": program.workspace, "own": program.scratch}
        problems += [f"{i} beyond the end" for t in now if t.high > room.get(t.space, 1)]
        for t in now:
            if not t.write:
                last = next((w for w in reversed(written) if overlap(w, t)), None)
                if last is None or (last.what, last.low <= t.low, last.high >= t.high) != (t.what, True, True):
                    problems.append(f"{op.kind} {i} reads {t.what}, there stands {last and last.what}")
            for s in since:
                if overlap(s, t) and (s.write or t.write) and not (s.private and t.private):
                    problems.append(f"{op.kind} {i} touches {t.what} too soon")
            if any(overlap(t, o) and t != o and (t.write or o.write) for o in now):
                problems.append(f"{op.kind} {i} overwrites what it reads")
        written += [t for t in now if t.write]
        since += now
    return problems


def programs() -> Iterator[Program]:
    yield Zoo(Shape(width=44, heads=4, kv_heads=2, dk=12, dv=10, ff=37), np.random.default_rng(0)).program()
    yield toy(layers=3)
    yield toy(layers=1, bias=True, tied=True)
    yield toy(layers=2, heads=6, kv_heads=2, dk=16, dv=40, half=3, width=100, ff=300)
    b, x = start()
    y = b.rmsnorm(x, vector("n", 256), 1e-5)
    table = b.table([1.0, 0.5])
    turned = b.rope(y, 4, table)
    a = b.add(b.matmul(y, Weight("p", 256, 256)), turned)  # parallel branches, a rotation that is kept
    b.store(b.rope(a, 4, table), a, 4)
    z = b.attend(b.rope(a, 4, table), 0, 4, 1.0)
    g = b.glu(b.matmul(a, Weight("q", 512, 256)), b.matmul(z, Weight("r", 512, 256)), "silu")
    yield ending(b, b.add(b.add(b.matmul(g, Weight("s", 256, 512)), z), x))


CASES = [(p, fuse, rows) for p in programs() for fuse in (True, False) for rows in (1, 8, 20, 512)]


@pytest.mark.parametrize(("plain", "fuse", "rows"), CASES)
@pytest.mark.parametrize("narrow", [True, False])
def test_nothing_is_overwritten_or_read_too_soon(plain: Program, fuse: bool, rows: int, narrow: bool) -> None:
    for kind in (F32, Q8_0):
        program = lowered(plain, kind=kind, rows=rows, fuse=fuse)
        assert not wrong(program, narrow)


@pytest.mark.parametrize("narrow", [True, False])
def test_a_barrier_left_out_is_noticed(narrow: bool) -> None:
    """Each of them; so none is there in vain either."""
    for plain in programs():
        program = lowered(plain)
        bit = WAIT_NARROW if narrow else WAIT_WIDE
        with_barrier = [i for i, op in enumerate(program.ops) if op.barrier & bit]
        assert with_barrier
        for i in with_barrier:
            ops = list(program.ops)
            ops[i] = replace(ops[i], barrier=ops[i].barrier & ~bit)
            assert wrong(replace(program, ops=tuple(ops)), narrow), (i, ops[i].kind)


def test_values_in_one_place_are_noticed() -> None:
    program = lowered(toy(layers=2))
    for i, op in enumerate(program.ops):
        if op.y >= 0 and op.out >= 0:
            ops = list(program.ops)
            ops[i] = replace(op, out=op.y)
            assert wrong(replace(program, ops=tuple(ops)), False)
