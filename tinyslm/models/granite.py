"""Granite 3: https://github.com/ibm-granite/granite-3.0-language-models/blob/main/paper.pdf"""

from __future__ import annotations

from .. import config
from ..ops import Value, Weight
from .llama import Llama
from .tensors import Tensors


class Granite(Llama):
    """Multipliers on embeddings, scores, what layers add, and logits."""

    def __init__(self, keys: config.Keys, tensors: Tensors, context: int | None = None) -> None:
        super().__init__(keys, tensors, context)
        self.scale = self.multiplier("attention.scale", self.scale)
        self.residual = self.multiplier("residual_scale", 1.0)
        self.embedding_scale = self.multiplier("embedding_scale", 1.0)
        self.logit_scale = keys.positive("logit_scale", 1.0)
        self.turns = keys.get("rope.scaling.finetuned", bool, True)  # a switch, in this family

    def multiplier(self, name: str, default: float) -> float:
        """0 stands for the default."""
        return self.keys.positive(name) if self.keys.get(name, float, 0.0) else default

    def rotation(self, i: int) -> int | None:
        return super().rotation(i) if self.turns else None

    def embedded(self, embedding: Weight) -> Value:
        return self.b.scale(super().embedded(embedding), self.embedding_scale)

    def after(self, y: Value, name: str) -> Value:
        return self.b.scale(y, self.residual)

    def logits(self, x: Value) -> Value:
        return self.b.scale(super().logits(x), 1 / self.logit_scale)
