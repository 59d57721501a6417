"""OLMo 2 (arXiv:2501.00656) and 3 (arXiv:2512.13961)."""

from __future__ import annotations

from ..ops import Value
from . import rope
from .llama import Llama


class Olmo2(Llama):
    """Norms stand behind attention and MLP, not before; q and k are normed, all heads together, before they turn.

    OLMo 3 states a window, which three of four layers see; their rotation is not scaled.
    """

    PAIRS = "halves"
    PERIOD = 4

    def rotations(self) -> list[int]:
        return [*super().rotations(), rope.plain_table(self.b, self.keys, self.c, self.c.rope_base)]

    def rotation(self, i: int) -> int:
        return self.tables[1 if self.window(i) else 0]

    def before(self, x: Value, name: str) -> Value:
        return x

    def after(self, y: Value, name: str) -> Value:
        return self.norm(y, name)

    def of_head(self, i: int, x: Value, name: str, heads: int) -> Value:
        return self.norm(x, f"blk.{i}.attn_{name}_norm")
