"""OPT: Zhang et al. (arXiv:2205.01068). llama.cpp has no such architecture: the keys and tensor names are our own,
GPT-2's with `opt` for the prefix, and

opt.norm_before       bool, whether norms stand before attention and MLP and at the end; 350M has them behind, and none
                      at the end
opt.embedding_width   where it is not the width of the layers (350M): `project_in.weight` and `project_out.weight` lead
                      from one to the other
"""

from __future__ import annotations

from .. import config
from ..ops import Value, Weight
from .gpt2 import GPT2
from .tensors import Tensors


class Opt(GPT2):
    ACT = "relu"
    BIASED = False  # there are some without
    OFFSET = 2

    def __init__(self, keys: config.Keys, tensors: Tensors, context: int | None = None) -> None:
        super().__init__(keys, tensors, context)
        self.norm_before = keys.get("norm_before", bool, True)
        self.narrow = keys.count("embedding_width", self.c.width)

    def embedding(self) -> Weight:
        return self.tensors.get("token_embd.weight", self.c.vocab, self.narrow)

    def embedded(self, embedding: Weight) -> Value:
        x = self.b.embed(embedding)
        return self.positioned(x if self.narrow == self.c.width else self.linear(x, "project_in", self.c.width))

    def layer(self, i: int, x: Value) -> Value:
        if self.norm_before:
            return super().layer(i, x)
        x, _, a = self.attention(i, x, x)
        x = self.norm(self.b.add(x, a), f"blk.{i}.attn_norm")
        return self.norm(self.b.add(x, self.feed_forward(i, x)), f"blk.{i}.ffn_norm")

    def end(self, x: Value) -> Value:
        x = super().end(x) if self.norm_before else x
        return x if self.narrow == self.c.width else self.linear(x, "project_out", self.narrow)
