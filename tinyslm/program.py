"""Lowers a plain program to the flat op list that the C core walks: fusions, buffer layout, barriers.

The result has no pointers: weights are offsets into one arena, values are offsets into one workspace. What the fields
of a lowered op mean stands in csrc/api.h.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from .ops import Op, Program, RopeTable, Value, Weight

NARROW = 8  # SLM_NARROW
PAGE = 64
F16 = 1  # SLM_F16
TILE = 16  # act slots are padded to a multiple of any instruction set's tile
WAIT_NARROW, WAIT_WIDE = 1, 2

Form = Literal["panels", "rows", "floats"]


@dataclass(frozen=True)
class Kernels:
    """What the lowering must know of C: bytes of panels, rows and act slots, and how activations are rounded."""

    panel_bytes: Callable[[int, int], int]  # (type, k)
    row_bytes: Callable[[int, int], int]
    act_row_bytes: Callable[[int, int], int]  # (act_block, k)
    act_block: Callable[[int], int]
    kv_bytes: Callable[[int, int, int], int]  # (type, width of a key or value, whether it is filled up to 16)


@dataclass(frozen=True)
class Placement:
    """Where a weight stands in the arena: in panels of 16 rows, in rows as in the file, or as float32."""

    weight: Weight
    form: Form
    offset: int
    bytes: int


@dataclass
class LoweredOp:
    """The fields of slm_op, by the same names; then the values and slots that layout and barriers follow from."""

    kind: str
    output: int = 0
    gather: int = 0
    barrier: int = 0
    type: int = 0
    type2: int = 0
    n: int = 0
    k: int = 0
    ldx: int = 0
    ldy: int = 0
    ldout: int = 0
    heads: int = 0
    kv_heads: int = 0
    dk: int = 0
    dv: int = 0
    rope: int = -1
    kv_type: int = 0
    window: int = 0
    epilogue: str = "PLAIN"
    act_block: int = 0
    eps: float = 0.0
    scale: float = 1.0
    softcap: float = 0.0
    x: int = -1
    y: int = -1
    out: int = -1
    w: int = -1
    w2: int = -1
    bias: int = -1
    bias2: int = -1
    norm: int = -1
    kv: int = -1
    act_narrow: int = -1
    act_wide: int = -1
    x_value: Value | None = None
    y_value: Value | None = None
    out_value: Value | None = None
    slot: tuple[int, int] | None = None  # (value, act_block)
    store: int = -1


@dataclass(frozen=True)
class Lowered:
    ops: tuple[LoweredOp, ...]
    placements: tuple[Placement, ...]
    tables: tuple[RopeTable, ...]
    vocab: int
    rows: int
    arena: int  # bytes, as are the next three
    workspace: int
    scratch: int
    page: int


def up(n: int, step: int = 64) -> int:
    return (n + step - 1) // step * step


def lower(
    program: Program, types: dict[str, int], kernels: Kernels, rows: int, fuse: bool = True, kv: int = 1
) -> Lowered:
    """Lower `program` for steps of up to `rows` tokens. `types`: the GGUF type of each matrix, by name; `kv`:
    that of keys and values.

    With fuse=False every op of the plain program is one of the lowered program too, and every value stays in the
    workspace until the next step, so that it can be looked at.
    """
    lowering = _Lowering(program, types, kernels, fuse, kv)
    ops = lowering.run()
    workspace, scratch = _layout(ops, kernels, rows, keep=not fuse)
    for bit in (WAIT_NARROW, WAIT_WIDE):
        _barriers(ops, kernels, rows, bit)
    return Lowered(tuple(ops), tuple(lowering.placements.values()), program.tables, program.vocab, rows,
                   lowering.arena, workspace, scratch, lowering.page)  # fmt: skip


@dataclass
class _Norm:
    """An rmsnorm that the activations of the matmuls after it take in; `gather`: of the wanted rows only."""

    x: Value
    weight: Weight
    eps: float
    gather: bool = False


@dataclass
class _Lowering:
    program: Program
    types: dict[str, int]
    kernels: Kernels
    fuse: bool
    kv_type: int
    ops: list[LoweredOp] = field(default_factory=list)
    placements: dict[Weight, Placement] = field(default_factory=dict)
    arena: int = 0
    page: int = 0

    def run(self) -> list[LoweredOp]:
        p = self.program
        self.users: list[list[Op]] = [[op for op in p.ops if v in op.reads] for v in p.values]
        self.made: dict[int, Op] = {op.out.index: op for op in p.ops if op.out is not None}
        self.order = {id(op): i for i, op in enumerate(p.ops)}
        self.norms: dict[int, _Norm] = {}
        self.turned: dict[int, Op] = {}
        self.prepared: set[tuple[int, int]] = set()
        self.matrices = {op.weight for op in p.ops if op.kind == "matmul" and op.weight}
        self.kv: list[int] = []
        for s in p.stores:
            self.kv.append(self.page)
            kv_bytes = self.kernels.kv_bytes
            key = kv_bytes(self.kv_type, s.dk, self.kv_type != F16)
            self.page += up(s.kv_heads * (key + kv_bytes(self.kv_type, s.dv, 1)))
        skip: set[int] = set()
        for op in p.ops:
            if id(op) not in skip:
                skip |= {id(done) for done in getattr(self, "_" + op.kind)(op)}
        return self.ops

    # ---- weights ----

    def place(self, weight: Weight | None, form: Form) -> int:
        if weight is None:
            return -1
        if weight not in self.placements:
            if form == "floats":
                size = up(4 * weight.n)
            elif form == "rows":
                size = up(weight.n * self.kernels.row_bytes(self.types[weight.name], weight.k))
            else:
                size = up(weight.n, 16) // 16 * self.kernels.panel_bytes(self.types[weight.name], weight.k)
            self.placements[weight] = Placement(weight, form, self.arena, size)
            self.arena += size
        return self.placements[weight].offset

    # ---- one method per plain op; each gives back the later ops that it has taken in ----

    def emit(self, kind: str, out: Value | None, **fields: object) -> LoweredOp:
        op = LoweredOp(kind, out_value=out, **fields)  # type: ignore[arg-type]
        op.output = int(out is not None and out.rows == "output")
        self.ops.append(op)
        return op

    def used_by(self, v: Value, *kinds: str) -> bool:
        return self.fuse and all(u.kind in kinds for u in self.users[v.index])

    def _embed(self, op: Op) -> list[Op]:
        assert op.weight and op.out
        tied = op.weight in self.matrices
        w = self.place(op.weight, "panels" if tied else "rows")
        self.emit("LOOKUP" if tied else "EMBED", op.out, w=w, type=self.types[op.weight.name], n=op.out.width)
        return []

    def _rmsnorm(self, op: Op) -> list[Op]:
        assert op.weight and op.out
        selected = [u.out for u in self.users[op.out.index] if u.kind == "select" and u.out]
        if self.used_by(op.out, "matmul", "select") and all(self.used_by(v, "matmul") for v in selected):
            self.norms[op.out.index] = _Norm(op.reads[0], op.weight, op.eps)
        else:
            self.emit("NORM", op.out, x_value=op.reads[0], k=op.out.width, eps=op.eps,
                      norm=self.place(op.weight, "floats"))  # fmt: skip
        return []

    def _select(self, op: Op) -> list[Op]:
        assert op.out
        norm = self.norms.get(op.reads[0].index)
        if norm:
            self.norms[op.out.index] = _Norm(norm.x, norm.weight, norm.eps, gather=True)
        else:
            self.emit("GATHER", op.out, x_value=op.reads[0], n=op.out.width, gather=1)
        return []

    def prepare(self, x: Value, act_block: int) -> tuple[int, int]:
        """The act slot that holds x, rounded to blocks of `act_block`; made where it is first asked for."""
        slot = (x.index, act_block)
        if slot not in self.prepared:
            self.prepared.add(slot)
            norm = self.norms.get(x.index)
            op = self.emit("PREPARE", None, x_value=norm.x if norm else x, k=x.width, act_block=act_block, slot=slot)
            op.output = int(x.rows == "output")
            if norm:
                op.norm, op.eps, op.gather = self.place(norm.weight, "floats"), norm.eps, int(norm.gather)
        return slot

    def _matmul(self, op: Op, out: Value | None = None, **epilogue: object) -> list[Op]:
        assert op.weight and op.out
        users = self.users[op.out.index]
        done: list[Op] = []
        if not epilogue and self.fuse and len(users) == 1:
            user = users[0]
            if user.kind == "glu" and self.gated(user):
                return []
            if user.kind == "add" and user.reads[0] != user.reads[1]:
                other = user.reads[0] if user.reads[1] == op.out else user.reads[1]
                if self.order[id(self.made[other.index])] < self.order[id(op)] and other.index not in self.norms:
                    epilogue, out, done = {"epilogue": "RESIDUAL", "y_value": other}, user.out, [user]
        kind = self.types[op.weight.name]
        slot = self.prepare(op.reads[0], self.kernels.act_block(kind))
        out = out or op.out
        lowered = self.emit("MATMUL", out, w=self.place(op.weight, "panels"), type=kind, n=op.weight.n, k=op.weight.k,
                            bias=self.place(op.bias, "floats"), act_block=slot[1], slot=slot, **epilogue)  # fmt: skip
        if any(u.kind == "logits" for u in self.users[out.index]):
            assert len(self.users[out.index]) == 1, "the logits have no other reader"
            lowered.out_value = None
        return done

    def gated(self, glu: Op) -> bool:
        """Whether both factors are matmuls of one input, for this op alone, whose activations are rounded alike."""
        a, b = (self.made[v.index] for v in glu.reads)
        if a is b or a.kind != "matmul" or b.kind != "matmul" or a.reads != b.reads:
            return False
        assert a.weight and b.weight
        blocks = {self.kernels.act_block(self.types[w.name]) for w in (a.weight, b.weight)}
        return len(blocks) == 1 and all(len(self.users[v.index]) == 1 for v in glu.reads)

    def _glu(self, op: Op) -> list[Op]:
        assert op.out
        if self.fuse and self.gated(op):
            a, b = (self.made[v.index] for v in op.reads)
            assert b.weight
            self._matmul(a, op.out, epilogue="GATED", w2=self.place(b.weight, "panels"),
                         type2=self.types[b.weight.name], bias2=self.place(b.bias, "floats"))  # fmt: skip
        else:
            self.emit("GLU", op.out, x_value=op.reads[0], y_value=op.reads[1], n=op.out.width)
        return []

    def _add(self, op: Op) -> list[Op]:
        assert op.out
        self.emit("ADD", op.out, x_value=op.reads[0], y_value=op.reads[1], n=op.out.width)
        return []

    def _rope(self, op: Op) -> list[Op]:
        assert op.out
        if self.used_by(op.out, "store", "attend"):
            self.turned[op.out.index] = op
        else:
            self.emit("ROPE", op.out, x_value=op.reads[0], heads=op.heads, dk=op.dim, rope=op.table, n=op.out.width)
        return []

    def unturned(self, v: Value) -> tuple[Value, int]:
        """The value before a rotation that its reader takes in, and the table; (v, -1) where there is none."""
        turn = self.turned.get(v.index)
        return (turn.reads[0], turn.table) if turn else (v, -1)

    def _store(self, op: Op) -> list[Op]:
        s, (k, rope) = self.program.stores[op.store], self.unturned(op.reads[0])
        self.emit("STORE", None, x_value=k, y_value=op.reads[1], rope=rope, heads=s.kv_heads, kv_heads=s.kv_heads,
                  dk=s.dk, dv=s.dv, kv_type=self.kv_type, kv=self.kv[op.store], store=op.store)  # fmt: skip
        return []

    def _attend(self, op: Op) -> list[Op]:
        s, (q, rope) = self.program.stores[op.store], self.unturned(op.reads[0])
        self.emit("ATTEND", op.out, x_value=q, rope=rope, heads=op.heads, kv_heads=s.kv_heads, dk=s.dk, dv=s.dv,
                  kv_type=self.kv_type, window=s.window, kv=self.kv[op.store], store=op.store, scale=op.scale,
                  softcap=op.softcap)  # fmt: skip
        return []

    def _logits(self, op: Op) -> list[Op]:
        assert self.made[op.reads[0].index].kind == "matmul", "the last op is a matmul"
        return []


# ---- where values stand ----

Region = tuple[int, int]  # bytes: from, up to
Key = tuple[str, int, int]


def _touched(op: LoweredOp) -> tuple[list[Key], list[Key]]:
    """Keys of what an op reads and writes in the workspace: values and act slots."""
    reads: list[Key] = [("value", v.index, 0) for v in (op.x_value, op.y_value) if v is not None]
    writes: list[Key] = [("value", op.out_value.index, 0)] if op.out_value is not None else []
    if op.slot is not None:
        (writes if op.kind == "PREPARE" else reads).append(("act", *op.slot))
    return reads, writes


def _layout(ops: list[LoweredOp], kernels: Kernels, rows: int, keep: bool) -> tuple[int, int]:
    """Give every value and act slot its place: first fit among those that live at the same time.

    A place stays taken for one op after its last reader, as that op would have to wait for the reader otherwise.
    """
    first: dict[Key, int] = {}
    last: dict[Key, int] = {}
    bytes_per_row: dict[Key, int] = {}
    for i, op in enumerate(ops):
        reads, writes = _touched(op)
        for key in reads + writes:
            first.setdefault(key, i)
            last[key] = len(ops) if keep else i + 1
        for v in (op.x_value, op.y_value, op.out_value):
            if v is not None:
                bytes_per_row["value", v.index, 0] = 4 * up(v.width, 16)
        if op.slot is not None:
            bytes_per_row[("act", *op.slot)] = kernels.act_row_bytes(op.act_block, op.k)
    wide = _first_fit(first, last, {k: up(b * up(rows, TILE)) for k, b in bytes_per_row.items()})
    slots = {k: b for k, b in bytes_per_row.items() if k[0] == "act"}
    narrow = _first_fit(first, last, {k: up(b * NARROW) for k, b in slots.items()})
    for op in ops:
        for name, v in (("x", op.x_value), ("y", op.y_value), ("out", op.out_value)):
            if v is not None:
                setattr(op, name, wide["value", v.index, 0][0])
                setattr(op, "ld" + name, up(v.width, 16))
        if op.slot is not None:
            op.act_wide, op.act_narrow = wide[("act", *op.slot)][0], narrow[("act", *op.slot)][0]
    return max((r[1] for r in wide.values()), default=0), max((r[1] for r in narrow.values()), default=0)


def _first_fit(first: dict[Key, int], last: dict[Key, int], size: dict[Key, int]) -> dict[Key, Region]:
    placed: dict[Key, Region] = {}
    for key in sorted(size, key=lambda k: first[k]):
        taken = sorted(placed[o] for o in placed if first[o] <= last[key] and first[key] <= last[o])
        at = 0
        for low, high in taken:
            if at + size[key] <= low:
                break
            at = max(at, high)
        placed[key] = (at, at + size[key])
    return placed


# ---- when threads wait for each other ----


@dataclass(frozen=True)
class _Access:
    space: str  # "workspace", or a KV store
    low: int
    high: int
    writes: bool
    owner: str  # accesses of one owner are divided among the threads alike


def _accesses(op: LoweredOp, kernels: Kernels, rows: int, bit: int) -> list[_Access]:
    out: list[_Access] = []

    def workspace(at: int, size: int, writes: bool) -> None:
        out.append(_Access("workspace", at, at + size, writes, ""))

    for at, ld, writes in ((op.x, op.ldx, False), (op.y, op.ldy, False), (op.out, op.ldout, True)):
        if at >= 0:
            workspace(at, 4 * ld * up(rows, TILE), writes)
    if op.slot is not None and bit == WAIT_WIDE:  # in a narrow step a slot is the thread's own
        size = kernels.act_row_bytes(op.act_block, op.k) * up(rows, TILE)
        workspace(op.act_wide, size, op.kind == "PREPARE")
    if op.store >= 0:  # in a narrow step what is stored is attended to by the thread that stored it
        out.append(_Access(f"kv{op.store}", 0, 1, op.kind == "STORE", "heads" if bit == WAIT_NARROW else ""))
    return out


def _conflict(a: _Access, b: _Access) -> bool:
    apart = a.space != b.space or a.high <= b.low or b.high <= a.low
    return not apart and (a.writes or b.writes) and not (a.owner and a.owner == b.owner)


def _barriers(ops: list[LoweredOp], kernels: Kernels, rows: int, bit: int) -> None:
    """Set `bit` on every op that touches what another thread may have written, or still reads, since the last one."""
    since: list[_Access] = []
    for op in ops:
        now = _accesses(op, kernels, rows, bit)
        if any(_conflict(a, b) for a in since for b in now):
            op.barrier |= bit
            since = []
        since += now
