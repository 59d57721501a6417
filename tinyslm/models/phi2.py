"""Phi-1, Phi-1.5 and Phi-2 (arXiv:2306.11644)."""

from __future__ import annotations

from ..ops import Value
from .llama import Llama


class Phi2(Llama):
    """LayerNorm; attention and an MLP without a gate side by side; a part of each head turns; biases everywhere."""

    PAIRS = "halves"
    CENTERED = BIASED = True
    GATED = False
    ACT = "gelu"

    def layer(self, i: int, x: Value) -> Value:
        x, y, a = self.attention(i, x, self.norm(x, f"blk.{i}.attn_norm"))
        return self.b.add(self.b.add(x, a), self.feed_forward(i, y))

    def logits(self, x: Value) -> Value:
        self.tensors.get("output.bias", self.c.vocab)  # must be there
        return super().logits(x)
