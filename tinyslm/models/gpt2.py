"""GPT-2: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019)."""

from __future__ import annotations

from ..errors import OptionError
from ..ops import Value, Weight
from .llama import Llama


class GPT2(Llama):
    """LayerNorm, learned positions, an MLP without a gate."""

    IGNORED = (*Llama.IGNORED, r"blk\.\d+\.attn_bias")
    PAIRS = None
    CENTERED = BIASED = True
    GATED = False
    ACT = "gelu"
    OFFSET = 0  # rows of the table before position 0

    def positioned(self, x: Value) -> Value:
        """x and its learned positions. OptionError where the context asked for has more than there are."""
        most = self.tensors.rows("position_embd.weight") - self.OFFSET
        if self.context > most:
            raise OptionError(f"context {self.context}: {self.keys.path.name} has learned positions for {most} tokens")
        table = self.tensors.get("position_embd.weight", most + self.OFFSET, x.width)
        return self.b.add(x, self.b.position(table, self.OFFSET))

    def embedded(self, embedding: Weight) -> Value:
        return self.positioned(super().embedded(embedding))
