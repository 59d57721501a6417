"""StableLM 3B and StableLM 2 (arXiv:2402.17834)."""

from __future__ import annotations

from ..ops import Value, Weight
from .llama import Llama


class StableLM(Llama):
    """LayerNorm; a part of each head turns. 12B has attention and MLP side by side, and a norm for each head."""

    PAIRS = "halves"
    CENTERED = True

    def layer(self, i: int, x: Value) -> Value:
        self.keys.informative("use_parallel_residual")  # llama.cpp's converter says true where a config says nothing
        if f"blk.{i}.ffn_norm.weight" in self.tensors:
            return super().layer(i, x)
        x, y, a = self.attention(i, x, self.norm(x, f"blk.{i}.attn_norm"))
        return self.b.add(self.b.add(x, a), self.feed_forward(i, y))

    def of_head(self, i: int, x: Value, name: str, heads: int) -> Value:
        tensor = f"blk.{i}.attn_{name}_norm.weight"
        if tensor not in self.tensors:
            return x
        self.tensors.get(tensor, heads, self.c.dk)
        return self.b.layernorm(x, Weight(tensor, x.width), None, self.c.eps, heads)
