"""Keys and values as the reference backend keeps them: one class for each type of a KV cache."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ..formats import Integers
from ..ops import Store
from .arithmetic import LANES, TINY, block_dots, fma32, round_activations
from .base import PAGE

Held = tuple[np.ndarray, ...]  # of one store in one page


class Cache(Protocol):
    """What is stored rounded, and how queries meet it. Queries are (rows, kv heads, group, dk), scores (…, PAGE)."""

    def new(self, s: Store) -> Held: ...
    def write(self, held: Held, slot: int, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Store keys (kv heads, dk) and values (kv heads, dv); gives back what now stands for them."""
        ...

    def scores(self, held: Held, q: np.ndarray) -> np.ndarray: ...
    def values(self, held: Held) -> np.ndarray:
        """float32 (kv heads, PAGE, dv)"""
        ...


class Halves:
    """float16, to nearest even."""

    def new(self, s: Store) -> Held:
        return np.zeros((s.kv_heads, PAGE, s.dk), np.float16), np.zeros((s.kv_heads, PAGE, s.dv), np.float16)

    def write(self, held: Held, slot: int, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        held[0][:, slot], held[1][:, slot] = k, v
        return held[0][:, slot], held[1][:, slot]

    def scores(self, held: Held, q: np.ndarray) -> np.ndarray:
        keys, scores = held[0].astype(np.float32), np.zeros((*q.shape[:3], PAGE), np.float32)
        for i in range(q.shape[3]):
            scores = fma32(keys[:, None, :, i], q[..., i, None], scores)
        return scores

    def values(self, held: Held) -> np.ndarray:
        return held[1].astype(np.float32)


class Eights:
    """int8, with a scale for each position and 16 elements: csrc/kv.inc says why it is a bfloat16 rounded up.

    Held: the codes of keys (kv heads, PAGE, dk filled up to 16), their scales (…, dk / 16), and those of values.
    """

    def new(self, s: Store) -> Held:
        blocks = [-(-n // LANES) for n in (s.dk, s.dv)]
        return tuple(np.zeros((s.kv_heads, PAGE, n), np.float32) for b in blocks for n in (b * LANES, b))

    def write(self, held: Held, slot: int, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        held[0][:, slot], held[1][:, slot] = round_sixteens(k)
        held[2][:, slot], held[3][:, slot] = round_sixteens(v)
        return widened(held[0], held[1])[:, slot, : k.shape[1]], widened(held[2], held[3])[:, slot, : v.shape[1]]

    def scores(self, held: Held, q: np.ndarray) -> np.ndarray:
        rows, heads, group, _ = q.shape
        scores = np.empty((rows, heads, group, PAGE), np.float32)
        for h in range(heads):
            codes, scale = round_activations(filled(q[:, h].reshape(rows * group, -1)), LANES)
            keys = Integers(held[0][h], held[1][h], None)
            scores[:, h] = block_dots(codes, scale, keys).reshape(rows, group, PAGE)
        return scores

    def values(self, held: Held) -> np.ndarray:
        return widened(held[2], held[3])


def filled(x: np.ndarray) -> np.ndarray:
    """Rows of a multiple of 16, zeros at their ends."""
    return np.pad(x, ((0, 0), (0, -x.shape[1] % LANES)))


def widened(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    product: np.ndarray = codes * np.repeat(scale, LANES, axis=-1)
    return product


def round_sixteens(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows as codes, and their scales; codes are no numbers where one of the 16 is none."""
    blocks = filled(x).reshape(len(x), -1, LANES)
    most = np.abs(blocks).max(axis=2)
    scale = (((most / np.float32(127)).view(np.uint32) + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)).view(np.float32)
    live = ~(most < TINY)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=live)
    codes = np.where(live[..., None], np.rint(blocks * inverse[..., None]), np.float32(0))
    return codes.reshape(len(x), -1), np.where(live, scale, np.float32(0))


CACHES: dict[str, Cache] = {"f16": Halves(), "q8_0": Eights()}
