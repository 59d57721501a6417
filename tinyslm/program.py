"""Lowers a plain program to the flat op list that the C core walks: fusions, buffer layout, barriers.

The result has no pointers: weights are offsets into one arena, values are offsets into one workspace. What the fields
of a lowered op mean stands in csrc/api.h.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from .lowered import (
    F16,
    STEP,
    WAIT_NARROW,
    WAIT_WIDE,
    Form,
    Kernels,
    Lowered,
    LoweredOp,
    Placement,
    barriers,
    layout,
    up,
)
from .ops import Op, Program, Value, Weight

LEAST_STEP = 64
ROOM = 52 << 20  # bytes of workspace; all that is neither weights nor keys and values has 64 MB


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
    workspace, scratch = layout(ops, kernels, rows, keep=not fuse)
    for bit in (WAIT_NARROW, WAIT_WIDE):
        barriers(ops, kernels, rows, bit)
    return Lowered(tuple(ops), tuple(lowering.placements), program.tables, program.vocab, rows,
                   lowering.arena, workspace, scratch, lowering.page)  # fmt: skip


def lower_to_fit(program: Program, types: dict[str, int], kernels: Kernels, fuse: bool = True, kv: int = 1) -> Lowered:
    """`lower` for steps of STEP tokens, or of so many fewer that the workspace is within ROOM."""
    rows = STEP
    while (lowered := lower(program, types, kernels, rows, fuse, kv)).workspace > ROOM and rows > LEAST_STEP:
        rows //= 2
    return lowered


@dataclass
class _Norm:
    """A norm that the activations of the matmuls after it take in; `gather`: of the wanted rows only."""

    op: Op
    gather: bool = False

    @property
    def x(self) -> Value:
        return self.op.reads[0]


@dataclass
class _Lowering:
    program: Program
    types: dict[str, int]
    kernels: Kernels
    fuse: bool
    kv_type: int
    ops: list[LoweredOp] = field(default_factory=list)
    placements: list[Placement] = field(default_factory=list)
    places: dict[tuple[Weight, ...], int] = field(default_factory=dict)
    arena: int = 0
    page: int = 0

    def run(self) -> list[LoweredOp]:
        p = self.program
        self.users: list[list[Op]] = [[op for op in p.ops if v in op.reads] for v in p.values]
        self.made: dict[int, Op] = {op.out.index: op for op in p.ops if op.out is not None}
        self.order = {id(op): i for i, op in enumerate(p.ops)}
        self.norms: dict[int, _Norm] = {}
        self.turned: dict[int, Op] = {}
        self.prepared: set[tuple[int, ...]] = set()
        self.grouped = -1
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
        """Where a weight stands; it gets its place when first asked for."""
        if weight is None:
            return -1
        if form == "panels":
            return self.place_panels(weight)
        if (weight,) not in self.places:
            row = 4 if form == "floats" else self.kernels.row_bytes(self.types[weight.name], weight.k)
            self.places[weight,] = self.arena
            self.placements.append(Placement(weight, form, self.arena, up(weight.n * row), 0))
            self.arena += up(weight.n * row)
        return self.places[weight,]

    def place_panels(self, *weights: Weight) -> int:
        """The same in panels; of several matrices of one shape in turn, a panel of each."""
        if weights not in self.places:
            self.places[weights] = self.arena
            sizes = [self.kernels.panel_bytes(self.types[w.name], w.k) for w in weights]
            panels = up(weights[0].n, 16) // 16
            for w, before, size in zip(weights, accumulate(sizes, initial=0), sizes, strict=False):
                self.placements.append(Placement(w, "panels", self.arena + before, panels * size, sum(sizes)))
            self.arena += panels * sum(sizes)
        return self.places[weights]

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
        scale, done = self.only_user(op.out, "scale"), list[Op]()
        lowered = self.emit("LOOKUP" if tied else "EMBED", op.out, w=w, type=self.types[op.weight.name], n=op.out.width)
        if scale:
            lowered.scale, lowered.out_value, done = scale.scale, scale.out, [scale]
        return done

    def _position(self, op: Op) -> list[Op]:
        assert op.weight and op.out
        self.emit("POSITION", op.out, w=self.place(op.weight, "rows"), type=self.types[op.weight.name],
                  n=op.out.width, k=op.weight.n, offset=op.offset)  # fmt: skip
        return []

    def _rmsnorm(self, op: Op) -> list[Op]:
        assert op.weight and op.out
        selected = [u.out for u in self.users[op.out.index] if u.kind == "select" and u.out]
        fed = self.used_by(op.out, "matmul", "experts", "select") and all(self.used_by(v, "matmul") for v in selected)
        if fed and op.heads == 1:
            self.norms[op.out.index] = _Norm(op)
            return []
        lowered = self.emit("NORM", op.out, x_value=op.reads[0], k=op.dim, heads=op.heads,
                            part=op.dim if op.weight.n > op.dim else 0)  # fmt: skip
        self.norm_by(lowered, op)
        if added := self.residual(op, op.out):
            lowered.y_value, add = added
            lowered.out_value = add.out
            return [add]
        return []

    _layernorm = _rmsnorm

    def norm_by(self, lowered: LoweredOp, op: Op) -> None:
        """Give the lowered op the norm that a plain one makes."""
        lowered.norm, lowered.eps = self.place(op.weight, "floats"), op.eps
        lowered.norm_bias, lowered.center = self.place(op.bias, "floats"), int(op.kind == "layernorm")

    def _select(self, op: Op) -> list[Op]:
        assert op.out
        norm = self.norms.get(op.reads[0].index)
        if norm:
            self.norms[op.out.index] = _Norm(norm.op, gather=True)
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
                self.norm_by(op, norm.op)
                op.gather = int(norm.gather)
            elif self.foldable(x, act_block):
                self.ops[-2].folds, op.folded = op, 1
        return slot

    def foldable(self, x: Value, act_block: int) -> bool:
        """Whether the last op but one is a matmul that makes x for nothing but the PREPARE after it."""
        made = self.ops[-2] if len(self.ops) > 1 else None
        if not made or made.kind != "MATMUL" or made.out_value != x or not act_block or not self.used_by(x, "matmul"):
            return False
        types = {self.types[u.weight.name] for u in self.users[x.index] if u.weight}
        return all(self.kernels.act_block(t) == act_block for t in types)

    def only_user(self, v: Value, *kinds: str) -> Op | None:
        """The op that alone reads v, if it may be fused and is of these kinds."""
        users = self.users[v.index]
        return users[0] if self.fuse and len(users) == 1 and users[0].kind in kinds else None

    def residual(self, op: Op, v: Value) -> tuple[Value, Op] | None:
        """What is added to v, the last of what `op` makes, and the sum, where op can make it."""
        add = self.only_user(v, "add")
        if add is None or add.reads[0] == add.reads[1]:
            return None
        other = add.reads[0] if add.reads[1] == v else add.reads[1]
        there = self.order[id(self.made[other.index])] < self.order[id(op)] and other.index not in self.norms
        return (other, add) if there else None

    def epilogue(self, op: Op, v: Value) -> tuple[dict[str, object], Value, list[Op]]:
        """What a matmul does besides, the value that it then makes, and the ops that this does away with."""
        fields: dict[str, object] = {}
        done: list[Op] = []
        for kind in ("scale", "softcap", "act"):
            if (user := self.only_user(v, kind)) and user.out:
                fields[kind], v = getattr(user, kind), user.out
                done.append(user)
        if "act" not in fields and (added := self.residual(op, v)) and added[1].out:
            fields |= {"epilogue": "RESIDUAL", "y_value": added[0]}
            v, done = added[1].out, [*done, added[1]]
        return fields, v, done

    def _matmul(self, op: Op, out: Value | None = None, second: Weight | None = None, **epilogue: object) -> list[Op]:
        assert op.weight and op.out
        done: list[Op] = []
        if not epilogue:
            if (user := self.only_user(op.out, "glu")) and self.gated(user):
                return []
            epilogue, out, done = self.epilogue(op, op.out)
        kind = self.types[op.weight.name]
        slot = self.prepare(op.reads[0], self.kernels.act_block(kind))
        out, weights = out or op.out, (op.weight, second) if second else (op.weight,)
        self.emit("MATMUL", out, w=self.place_panels(*weights), type=kind, n=op.weight.n, k=op.weight.k,
                  bias=self.place(op.bias, "floats"), act_block=slot[1], slot=slot, **epilogue)  # fmt: skip
        return done

    def gated(self, glu: Op) -> bool:
        """Whether both factors are matmuls of one input, for this op alone, whose activations are rounded alike."""
        a, b = (self.made[v.index] for v in glu.reads)
        if a is b or a.kind != b.kind or a.kind not in ("matmul", "experts") or a.reads != b.reads:
            return False
        blocks = {self.kernels.act_block(self.types[w.name]) for op in (a, b) for w in op.weights() if w.k}
        return len(blocks) == 1 and all(len(self.users[v.index]) == 1 for v in glu.reads)

    def _glu(self, op: Op) -> list[Op]:
        assert op.out
        if self.fuse and self.gated(op):
            a, b = (self.made[v.index] for v in op.reads)
            if a.kind == "experts":
                return self._experts(a, op.out, b.experts, epilogue="GATED", act=op.act, type2=self.type_of(b.experts))
            assert b.weight
            self._matmul(a, op.out, b.weight, epilogue="GATED", act=op.act, type2=self.types[b.weight.name],
                         bias2=self.place(b.bias, "floats"))  # fmt: skip
        else:
            self.emit("GLU", op.out, x_value=op.reads[0], y_value=op.reads[1], n=op.out.width, act=op.act)
        return []

    def _map(self, op: Op) -> list[Op]:
        assert op.out
        fields = {op.kind: getattr(op, op.kind)}
        self.emit("MAP", op.out, x_value=op.reads[0], n=op.out.width, **fields)
        return []

    _act = _scale = _softcap = _map

    # ---- experts ----

    def place_experts(self, *matrices: tuple[Weight, ...]) -> int:
        """Each expert's panels after those of the one before; where the first's stand."""
        places = [self.place_panels(*weights) for weights in zip(*matrices, strict=True)]
        assert len({b - a for a, b in pairwise(places)}) <= 1, matrices
        return places[0]

    def type_of(self, weights: tuple[Weight, ...]) -> int:
        kinds = {self.types[w.name] for w in weights}
        assert len(kinds) == 1, weights
        return kinds.pop()

    def _route(self, op: Op) -> list[Op]:
        assert op.out
        self.emit("ROUTE", op.out, x_value=op.reads[0], k=op.reads[0].width, n=op.out.width, used=op.used)
        return []

    def _experts(
        self, op: Op, out: Value | None = None, second: tuple[Weight, ...] = (), **epilogue: object
    ) -> list[Op]:  # fmt: skip
        (x, route), w, kind = op.reads, op.experts[0], self.type_of(op.experts)
        if not epilogue and (user := self.only_user(op.out, "glu") if op.out else None) and self.gated(user):
            return []
        counts = {"used": op.used, "experts": len(op.experts)}
        if self.grouped != route.index:
            self.grouped, self.prepared = route.index, {slot for slot in self.prepared if len(slot) == 2}
            self.emit("GROUP", None, x_value=route, **counts).output = int(route.rows == "output")
        slot = (x.index, self.kernels.act_block(kind), route.index)
        if slot not in self.prepared:
            self.prepared.add(slot)
            norm = self.norms.get(x.index)
            prepare = self.emit("PREPARE", None, x_value=norm.x if norm else x, k=w.k, act_block=slot[1], slot=slot,
                                part=w.k if x.width > w.k else 0, **counts)  # fmt: skip
            prepare.output = int(x.rows == "output")
            if norm:
                self.norm_by(prepare, norm.op)
                prepare.gather = int(norm.gather)
        place = self.place_experts(op.experts, second) if second else self.place_experts(op.experts)
        self.emit("EXPERTS", out or op.out, w=place, type=kind, n=w.n, k=w.k, act_block=slot[1],
                  slot=slot, **counts, **epilogue)  # fmt: skip
        return []

    def _mix(self, op: Op) -> list[Op]:
        assert op.out
        self.emit("MIX", op.out, x_value=op.reads[0], y_value=op.reads[1], n=op.out.width, used=op.used)
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
        last = self.ops[-1]
        assert last.out_value == op.reads[0] and last.kind in ("MATMUL", "MAP"), "a product ends the program"
        assert self.users[op.reads[0].index] == [op], "the logits have no other reader"
        last.out_value = None
        return []
