"""Gemma (arXiv:2403.08295), Gemma 2 (arXiv:2408.00118) and Gemma 3's text model (arXiv:2503.19786).

A file's norm weights hold the 1 that the models add to theirs.
"""

from __future__ import annotations

import math

from .. import config
from ..ops import Value, Weight
from . import rope
from .llama import Llama
from .tensors import Tensors


class Gemma(Llama):
    PAIRS = "halves"
    ACT = "gelu"

    def embedded(self, embedding: Weight) -> Value:
        return self.b.scale(super().embedded(embedding), math.sqrt(self.c.width))


class Gemma2(Gemma):
    """Norms behind attention and MLP too, caps on scores and logits; layers 0, 2, 4 … see a window."""

    PERIOD, WINDOW = 2, 4096
    CAPS = (50.0, 30.0)  # of scores and of logits, where the file has none; 0: none
    WIDE = 46  # the layers of the one model (27B) whose scores are scaled by its width per head

    def __init__(self, keys: config.Keys, tensors: Tensors, context: int | None = None) -> None:
        super().__init__(keys, tensors, context)
        if self.c.layers == self.WIDE:
            self.scale = math.sqrt(self.c.heads / self.c.width)
        self.score_cap = keys.get("attn_logit_softcapping", float, self.CAPS[0])
        self.logit_cap = keys.get("final_logit_softcapping", float, self.CAPS[1])

    def after(self, y: Value, name: str) -> Value:
        return self.norm(y, name)

    def attend(self, q: Value, store: int) -> Value:
        return self.b.attend(q, store, self.c.heads, self.scale, self.score_cap)

    def logits(self, x: Value) -> Value:
        return self.b.softcap(super().logits(x), self.logit_cap)


class Gemma3(Gemma2):
    """Heads of q and k are normed; five of six layers see a window, and turn by a base of their own."""

    PERIOD, WINDOW, WIDE = 6, 0, 62
    CAPS = (0.0, 0.0)

    def rotations(self) -> list[int]:
        near = rope.plain_table(self.b, self.keys, self.c, self.keys.positive("rope.freq_base_swa", 10000.0))
        return [*super().rotations(), near]

    def rotation(self, i: int) -> int:
        return self.tables[1 if self.window(i) else 0]

    def of_head(self, i: int, x: Value, name: str, heads: int) -> Value:
        return self.norm(x, f"blk.{i}.attn_{name}_norm", heads)
