"""A lowered program: its ops, where their values stand, and when threads wait for each other. What the fields of an op
mean stands in csrc/api.h.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .ops import RopeTable, Value, Weight

NARROW = 8  # SLM_NARROW
PAGE = 64
STEP = 512  # tokens of a step, at most, where nothing else is said
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
    """Where a weight stands in the arena: in panels of 16 rows, in rows as in the file, or as float32.

    step: bytes from a panel to the next, between which one of another weight may stand.
    """

    weight: Weight
    form: Form
    offset: int
    bytes: int
    step: int


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
    act: str = "as_is"
    center: int = 0
    offset: int = 0
    used: int = 0
    experts: int = 0
    part: int = 0
    folded: int = 0
    eps: float = 0.0
    scale: float = 1.0
    softcap: float = 0.0
    x: int = -1
    y: int = -1
    out: int = -1
    w: int = -1
    bias: int = -1
    bias2: int = -1
    norm: int = -1
    norm_bias: int = -1
    kv: int = -1
    act_narrow: int = -1
    act_wide: int = -1
    x_value: Value | None = None
    y_value: Value | None = None
    out_value: Value | None = None
    slot: tuple[int, ...] | None = None  # (value, act_block), and of rows by experts the route
    folds: LoweredOp | None = None  # the folded PREPARE of what a MATMUL makes
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


# ---- where values stand ----

Region = tuple[int, int]  # bytes: from, up to
Key = tuple[str | int, ...]


def _touched(op: LoweredOp) -> tuple[list[Key], list[Key]]:
    """Keys of what an op reads and writes in the workspace, in narrow or wide steps: values and act slots."""
    reads: list[Key] = [("value", v.index, 0) for v in (op.x_value, op.y_value) if v is not None]
    writes: list[Key] = [("value", op.out_value.index, 0)] if op.out_value is not None else []
    if op.slot is not None:
        (writes if op.kind == "PREPARE" else reads).append(("act", *op.slot))
    if op.folds and op.folds.slot:
        writes.append(("act", *op.folds.slot))
    return reads, writes


def layout(ops: list[LoweredOp], kernels: Kernels, rows: int, keep: bool) -> tuple[int, int]:
    """Give every value and act slot its place: first fit among those that live at the same time.

    A place stays taken for one op after its last reader, as that op would have to wait for the reader otherwise.
    """
    first: dict[Key, int] = {}
    last: dict[Key, int] = {}
    size: dict[Key, int] = {}
    narrow_size: dict[Key, int] = {}
    wide_rows = up(rows, TILE)
    folded = {op.x_value.index for op in ops if op.folded and op.x_value}  # wide steps do not make these
    for i, op in enumerate(ops):
        reads, writes = _touched(op)
        for key in reads + writes:
            first.setdefault(key, i)
            last[key] = len(ops) if keep else i + 1
        for v in (op.x_value, op.y_value, op.out_value):
            if v is not None:
                size["value", v.index, 0] = up(4 * up(v.width, 16) * (TILE if v.index in folded else wide_rows))
        if op.slot is not None:
            row_bytes = kernels.act_row_bytes(op.act_block, op.k)
            size[("act", *op.slot)] = up(row_bytes * _slot_rows(op, wide_rows))
            if not op.used:
                narrow_size[("act", *op.slot)] = up(row_bytes * NARROW)
    wide, narrow = _first_fit(first, last, size), _first_fit(first, last, narrow_size)
    for op in ops:
        for name, v in (("x", op.x_value), ("y", op.y_value), ("out", op.out_value)):
            if v is not None:
                setattr(op, name, wide["value", v.index, 0][0])
                setattr(op, "ld" + name, up(v.width, 16))
        if op.slot is not None:
            op.act_wide, op.act_narrow = wide[("act", *op.slot)][0], narrow.get(("act", *op.slot), (-1, -1))[0]
    return max((r[1] for r in wide.values()), default=0), max((r[1] for r in narrow.values()), default=0)


def _slot_rows(op: LoweredOp, rows: int) -> int:
    """Rows of an act slot: by experts as slm_group_rows says, of whose last tiles less than half is empty."""
    return min(2 * op.used * rows, op.used * rows + (TILE // 2 - 1) * op.experts) if op.used else rows


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
    space: str  # "workspace", a KV store, or the groups of rows by experts
    low: int
    high: int
    writes: bool
    owner: str  # accesses of one owner are divided among the threads alike


def _accesses(op: LoweredOp, kernels: Kernels, rows: int, bit: int) -> list[_Access]:
    out: list[_Access] = []

    def workspace(at: int, size: int, writes: bool) -> None:
        out.append(_Access("workspace", at, at + size, writes, ""))

    def act_slot(op: LoweredOp) -> None:
        size = kernels.act_row_bytes(op.act_block, op.k) * _slot_rows(op, up(rows, TILE))
        workspace(op.act_wide, size, op.kind == "PREPARE")

    wide = bit == WAIT_WIDE
    if op.folded and wide:
        return []
    if op.folds and wide:
        act_slot(op.folds)
    for at, ld, writes in ((op.x, op.ldx, False), (op.y, op.ldy, False), (op.out, op.ldout, True)):
        folded = op.folded or (writes and op.folds)
        if at >= 0 and not (wide and folded):
            workspace(at, 4 * ld * (TILE if folded else up(rows, TILE)), writes)
    if op.slot is not None and (wide or op.used):  # in a narrow step a slot is the thread's own
        act_slot(op)
    if op.kind == "GROUP" or (op.slot is not None and op.used):
        out.append(_Access("groups", 0, 1, op.kind == "GROUP", ""))
    if op.store >= 0:  # in a narrow step what is stored is attended to by the thread that stored it
        out.append(_Access(f"kv{op.store}", 0, 1, op.kind == "STORE", "heads" if bit == WAIT_NARROW else ""))
    return out


def _conflict(a: _Access, b: _Access) -> bool:
    apart = a.space != b.space or a.high <= b.low or b.high <= a.low
    return not apart and (a.writes or b.writes) and not (a.owner and a.owner == b.owner)


def barriers(ops: list[LoweredOp], kernels: Kernels, rows: int, bit: int) -> None:
    """Set `bit` on every op that touches what another thread may have written, or still reads, since the last one."""
    since: list[_Access] = []
    for op in ops:
        now = _accesses(op, kernels, rows, bit)
        if any(_conflict(a, b) for a in since for b in now):
            op.barrier |= bit
            since = []
        since += now
