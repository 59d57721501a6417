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
        self.scale = keys.positive("attention.scale", self.scale)
        self.residual = keys.positive("residual_scale", 1.0)
        self.embedding_scale = keys.positive("embedding_scale", 1.0)
        self.logit_scale = keys.positive("logit_scale", 1.0)

    def embedded(self, embedding: Weight) -> Value:
        return self.b.scale(super().embedded(embedding), self.embedding_scale)

    def after(self, y: Value, name: str) -> Value:
        return self.b.scale(y, self.residual)

    def logits(self, x: Value) -> Value:
        return self.b.scale(super().logits(x), 1 / self.logit_scale)
