"""Qwen 2, 2.5 (arXiv:2412.15115) and 3 with its mixture of experts (arXiv:2505.09388)."""

from __future__ import annotations

from ..ops import Value
from .llama import Llama


class Qwen2(Llama):
    """Biases on q, k and v, which Llama takes where they are; RoPE turns the halves of a head."""

    PAIRS = "halves"


class Qwen3(Qwen2):
    """Each head of q and k is normed before it is turned."""

    def of_head(self, i: int, x: Value, name: str, heads: int) -> Value:
        return self.norm(x, f"blk.{i}.attn_{name}_norm", heads)
