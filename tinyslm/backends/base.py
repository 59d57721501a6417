"""What the engine asks of a backend, and the weights that it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..gguf import GGUF
from ..ops import Program, Weight

PAGE = 64  # positions in a KV page
MOST_RUNNING = 64  # sequences that are stepped together to draw tokens
KV_TYPES = ("f16", "q8_0")  # of keys and values

# How a backend rounds the activations that meet a weight of each type (design, section 4): the length of the blocks
# that share one int8 scale; types that are not here meet float32 activations.
ACTIVATION_BLOCK = {
    **dict.fromkeys(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4"), 32),
    **dict.fromkeys(("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS",
                     "IQ3_S", "IQ4_XS", "TQ1_0", "TQ2_0"), 256),
    "Q2_0": 64, "Q1_0": 128, "NVFP4": 16,
}  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """The tokens of one step. All arrays are int32.

    `ids`, `positions`, `sequence`: (tokens,); a sequence's tokens stand together, in ascending position, and
    `sequence` says whose they are: an index into `pages`, which lists for each sequence the KV pages that hold
    positions 0–63, 64–127 …, up to the last position of the step. `outputs`: (outputs,), the tokens whose logits are
    wanted, ascending.
    """

    ids: np.ndarray
    positions: np.ndarray
    sequence: np.ndarray
    outputs: np.ndarray
    pages: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Draw:
    """How a sequence's next tokens are drawn: C's slm_draw, of which `native` holds what stays the same."""

    native: dict[str, Any]
    index: int
    recent: Sequence[int]
    ends: Sequence[int]
    logprob: bool


Drawn = list[list[tuple[int, float | None]]]
Burst = Callable[[Batch, np.ndarray, Sequence[Draw], int, np.ndarray], Drawn]


class Backend(Protocol):
    """Runs a program. Only one thread at a time calls `step`; `cancel` may be called from any."""

    name: str
    page_bytes: int
    maxima: np.ndarray | None
    """Of the last step: the largest of each 16 logits, float32 (outputs, vocab / 16 rounded up); None: not found."""

    @property
    def burst(self) -> Burst | None:
        """Takes a batch of one token for each sequence, as `step` does, and more steps after it, each over the tokens
        drawn after the one before: logits, a Draw for each sequence, the most steps, and an int32 (1,), which any
        thread may set: no further step is then begun.

        Returns for each sequence the tokens drawn and their log probabilities; all have as many: fewer than asked after
        a token that ends an answer, or that int32, and before one that cannot be drawn or a step that fails or is
        cancelled: the next step will do so. Raises as `step` does, where that is the first one. None: it only steps.
        """
        ...

    def step(self, batch: Batch, logits: np.ndarray) -> np.ndarray:
        """Run the program: writes float32 (outputs, vocab), and the keys and values of the step into its pages.

        Returns bool (tokens,): True where a value of that token's row was no finite number. Raises CancelledError
        after `cancel`, with the pages' positions of this step undefined.
        """
        ...

    def new_page(self) -> Any: ...
    def free_page(self, page: Any) -> None: ...
    def copy_page(self, target: Any, source: Any) -> None: ...

    def cancel(self) -> None:
        """Make the step that is running return soon, or else the next one: a cancel is never lost."""
        ...

    def close(self) -> None: ...


class Weights:
    """The tensors of an open file as ops read them."""

    def __init__(self, file: GGUF) -> None:
        self.file = file

    def type_name(self, weight: Weight) -> str:
        return self.file.tensors[weight.name].format.name

    def blocks(self, weight: Weight) -> np.ndarray:
        """The rows in the op's order, undecoded: uint8 (n, bytes of a row); one row for a vector, all of it."""
        tensor = self.file.tensors[weight.name]
        if not weight.k:
            return self.file.read(tensor)
        rows = np.empty((weight.n, tensor.row_bytes), np.uint8)
        self.file.read_into(tensor, weight.first, weight.first + weight.n, rows.ravel())
        order = weight.row_order()
        return rows if order is None else rows[order]

    def floats(self, weight: Weight) -> np.ndarray:
        """The weights' values: float32 (n, k), or (n,) for a vector."""
        values = self.file.tensors[weight.name].format.dequantise(self.blocks(weight))
        if weight.k:
            return values
        order, own = weight.row_order(), values.ravel()[weight.first : weight.first + weight.n or None]
        return own if order is None else own[order]


def kv_bytes(program: Program, kv: str) -> int:
    """Bytes of a page of keys and values: f16, or q8_0, int8 and a scale of two bytes for each 16 (filled up to 16)."""
    if kv == "f16":
        return sum(s.kv_heads * PAGE * (s.dk + s.dv) * 2 for s in program.stores)
    return sum(s.kv_heads * PAGE * -(-n // 16) * 18 for s in program.stores for n in (s.dk, s.dv))


def matrix_types(program: Program, weights: Weights) -> dict[str, str]:
    """The type of every matrix of the program, by name."""
    return {w.name: weights.type_name(w) for w in program.weights() if w.k}
