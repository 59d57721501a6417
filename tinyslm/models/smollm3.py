"""SmolLM3: https://huggingface.co/blog/smollm3"""

from __future__ import annotations

from .llama import Llama


class SmolLM3(Llama):
    """No rotation in every fourth layer (Yang et al., arXiv:2501.18795)."""

    UNTURNED = 4  # every so many-th

    def rotation(self, i: int) -> int | None:
        return super().rotation(i) if (i + 1) % self.UNTURNED else None
