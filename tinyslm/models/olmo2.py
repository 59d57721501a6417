"""OLMo 2 (arXiv:2501.00656)."""

from __future__ import annotations

from ..ops import Value
from .llama import Llama


class Olmo2(Llama):
    """Norms stand behind attention and MLP, not before; q and k are normed, all heads together, before they turn."""

    PAIRS = "halves"

    def before(self, x: Value, name: str) -> Value:
        return x

    def after(self, y: Value, name: str) -> Value:
        return self.norm(y, name)

    def of_head(self, i: int, x: Value, name: str, heads: int) -> Value:
        return self.norm(x, f"blk.{i}.attn_{name}_norm")
