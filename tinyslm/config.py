"""Hyperparameters of a GGUF file: read once, checked, frozen.

Key names and defaults: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, localcontext
from pathlib import Path
from typing import TypeVar

import numpy as np

from .errors import FileError, UnsupportedError

T = TypeVar("T", int, float, str, bool)
# Under these, a key that is not understood changes the arithmetic: it is an error, never skipped.
STRICT = (
    "rope", "attention", "attn", "expert", "experts", "final", "logit", "embedding", "residual", "use", "moe", "ssm",
    "router", "swiglu", "activation", "hidden", "norm", "leading", "interleave", "shared", "clamp", "dense", "nextn",
)  # fmt: skip
# Other names of the same thing, for the one that is asked for.
ALIASES = {
    "attention.layer_norm_rms_epsilon": ("attention.layer_norm_epsilon",),
    "rope.scaling.factor": ("rope.scale_linear",),
    "rope.scaling.attn_factor": ("rope.scaling.yarn_attn_factor",),
}
LIMIT = 1 << 24  # no width, count or context of a real model is larger
MOST_EXPERTS = 1 << 12
LARGEST_HEAD = 1 << 12  # elements; their angles are made one by one
FASTEST = 64.0  # radians per position: LIMIT of them stay within what the sine is made for


class Keys:
    """Typed access to `{arch}.*`, remembering what was read."""

    def __init__(self, path: Path, metadata: Mapping[str, object]) -> None:
        self.path, self.metadata, self.used = path, metadata, set[str]()
        arch = metadata.get("general.architecture")
        if not isinstance(arch, str):
            raise FileError(path, "no architecture is named", where="general.architecture", expected="a string")
        self.arch = arch

    def get(self, name: str, kind: type[T], default: T | None = None) -> T:
        """The value of `{arch}.{name}`.

        Raises FileError where it is missing without a default, of another type, or absurd.
        """
        key = next((k for n in (name, *ALIASES.get(name, ())) if (k := f"{self.arch}.{n}") in self.metadata),
                   f"{self.arch}.{name}")  # fmt: skip
        self.used.add(key)
        value = self.metadata.get(key, default)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()  # a list with one entry a layer, all alike
        if value is None:
            raise FileError(self.path, "a key is missing", where=key, expected=f"a value of type {kind.__name__}")
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not kind:
            raise FileError(self.path, "a key has the wrong type", where=key, expected=kind.__name__, got=_short(value))
        if isinstance(value, float) and not np.isfinite(value):
            raise FileError(self.path, "a key is not finite", where=key, got=value)
        return value

    def count(self, name: str, default: int | None = None, high: int = LIMIT, low: int = 1) -> int:
        """A width or a count: `low` … `high`."""
        value = self.get(name, int, default)
        if not low <= value <= high:
            raise FileError(
                self.path, "a key is absurd", where=f"{self.arch}.{name}", expected=f"{low} to {high}", got=value
            )
        return value

    def windowed(self, layers: int, period: int) -> list[bool]:
        """Which layers see a window: a list says so of each, a number that every so many-th does not."""
        key = f"{self.arch}.attention.sliding_window_pattern"
        value = self.metadata.get(key)
        if not isinstance(value, np.ndarray):
            period = self.count("attention.sliding_window_pattern", period)
            return [(i + 1) % period > 0 for i in range(layers)]
        if value.dtype != bool or len(value) != layers:
            raise FileError(self.path, "a key is absurd", where=key, expected=f"a number or {layers} booleans",
                            got=_short(value))  # fmt: skip
        self.used.add(key)
        return [bool(sees) for sees in value]

    def positive(self, name: str, default: float | None = None) -> float:
        value = self.get(name, float, default)
        if value <= 0:
            raise FileError(self.path, "a key is absurd", where=f"{self.arch}.{name}", expected="above 0", got=value)
        return value

    def informative(self, *names: str) -> None:
        """These say nothing that the arithmetic needs."""
        self.used.update(f"{self.arch}.{name}" for name in names)

    def unread(self) -> tuple[str, ...]:
        return tuple(k for k in self.metadata if k.startswith(self.arch + ".") and k not in self.used)

    def refuse_unread(self) -> None:
        """Raise UnsupportedError for a key under a strict prefix that nothing has read."""
        for key in self.unread():
            if key[len(self.arch) + 1 :].split(".")[0].split("_")[0] in STRICT:
                raise UnsupportedError(self.path, "this key changes the arithmetic and is not understood", where=key,
                                       got=_short(self.metadata[key]))  # fmt: skip


def _short(value: object) -> str:
    text = repr(value[:4]) if isinstance(value, (list, str)) else repr(value)
    return text if len(text) < 80 else text[:80] + "…"


@dataclass(frozen=True)
class Config:
    """What the transformer families share. Widths in elements, context in tokens."""

    arch: str
    layers: int
    width: int
    ff: int
    heads: int
    kv_heads: int
    dk: int
    dv: int
    context: int
    vocab: int
    eps: float
    rope_dim: int
    rope_base: float
    rope_scaling: str  # none, linear, yarn or longrope
    rope_factor: float  # positions are divided by it (by YaRN only for the slow pairs)
    experts: int = 0  # of a layer; 0: an MLP for all tokens
    experts_used: int = 0
    expert_ff: int = 0

    def frequencies(self, path: Path, factors: np.ndarray | None = None) -> tuple[float, ...]:
        """Rotation per position of each pair, in radians (float64): base^(-2i/d) / factor / factors[i].

        Decimal arithmetic, so that every machine gets the same bits (pow of the C libraries differs by CPU).
        Raises FileError where base and factors give no angle, or a wild one; `path` is for its message.
        """
        half = self.rope_dim // 2
        with localcontext() as context:
            context.prec = 40
            log = Decimal(self.rope_base).ln()
            table = [
                float((log * Decimal(-2 * i) / Decimal(self.rope_dim)).exp() / Decimal(self.rope_factor))
                for i in range(half)
            ]
        with np.errstate(all="ignore"):
            turned = np.array(table) if factors is None else np.array(table) / factors.astype(np.float64)
        if not ((turned >= 0) & (turned <= FASTEST)).all():
            raise FileError(path, "the rotations are absurd", where=f"{self.arch}.rope",
                            expected=f"up to {FASTEST:g} radians a position", got=_short(turned))  # fmt: skip
        return tuple(turned.tolist())


def read(keys: Keys, vocab: int) -> Config:
    """The hyperparameters of `keys`; `vocab` is the number of rows of the embedding.

    Raises FileError for a key that is missing or absurd, UnsupportedError for one that asks for what is not built.
    """
    width, heads = keys.count("embedding_length"), keys.count("attention.head_count")
    kv_heads = keys.count("attention.head_count_kv", heads)
    if width % heads and f"{keys.arch}.attention.key_length" not in keys.metadata:
        raise FileError(keys.path, "the width is no multiple of the heads", where=f"{keys.arch}.embedding_length",
                        expected=f"a multiple of {heads}", got=width)  # fmt: skip
    if heads % kv_heads:
        raise FileError(keys.path, "no multiple of the key heads", where=f"{keys.arch}.attention.head_count",
                        expected=f"a multiple of {kv_heads}", got=heads)  # fmt: skip
    dk = keys.count("attention.key_length", width // heads, LARGEST_HEAD)
    dv = keys.count("attention.value_length", width // heads or dk, LARGEST_HEAD)
    rope_dim = keys.count("rope.dimension_count", dk)
    if rope_dim > dk or rope_dim % 2:
        raise FileError(keys.path, "a key is absurd", where=f"{keys.arch}.rope.dimension_count",
                        expected=f"an even number up to {dk}", got=rope_dim)  # fmt: skip
    keys.informative("rope.scaling.finetuned", "rope.scaling.original_context_length", "vocab_size",
                     "tensor_data_layout")  # fmt: skip
    if not keys.get("attention.causal", bool, True):
        raise UnsupportedError(keys.path, "attention to later tokens is not supported",
                               where=f"{keys.arch}.attention.causal")  # fmt: skip
    experts = keys.count("expert_count", 0, MOST_EXPERTS, low=0)
    used = keys.count("expert_used_count", None if experts else 0, experts, low=min(experts, 1))
    ff = keys.count("feed_forward_length")
    scaling, factor = _rope_scaling(keys)
    return Config(
        arch=keys.arch, layers=keys.count("block_count"), width=width, ff=ff,
        heads=heads, kv_heads=kv_heads, dk=dk, dv=dv, context=keys.count("context_length"), vocab=vocab,
        eps=keys.positive("attention.layer_norm_rms_epsilon"), rope_dim=rope_dim,
        rope_base=keys.positive("rope.freq_base", 10000.0), rope_scaling=scaling, rope_factor=factor, experts=experts,
        experts_used=used,
        expert_ff=keys.count("expert_feed_forward_length", ff) if experts else 0,
    )  # fmt: skip


def _rope_scaling(keys: Keys) -> tuple[str, float]:
    """The kind, and by how much positions are divided."""
    kind = keys.get("rope.scaling.type", str, "linear")
    factor = keys.positive("rope.scaling.factor", 1.0)
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise UnsupportedError(
            keys.path, "this RoPE scaling is not supported", where=f"{keys.arch}.rope.scaling.type",
            expected="none, linear, yarn or longrope", got=kind,
        )  # fmt: skip
    return kind, factor if kind != "none" else 1.0
