"""One step of a model over a batch of tokens from any number of sequences."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Items
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from .backends.base import Backend, Batch, Draw, Drawn
from .kvcache import Cache, Sequence
from .ops import Program


@dataclass(frozen=True)
class Work:
    """What a step does for one sequence: the next ids, int32, and the logits of the last `outputs` of them."""

    sequence: Sequence
    ids: np.ndarray
    outputs: int


class Engine:
    """A program on a backend. One thread at a time steps; `cancel` may come from any."""

    def __init__(self, program: Program, backend: Backend) -> None:
        self.program, self.backend, self.cache = program, backend, Cache(backend)

    def step(self, works: Items[Work], logits: np.ndarray) -> list[bool]:
        """Run all works together: logits float32 (sum of outputs, vocabulary), in order.

        Returns for each work whether its values were finite. Raises CancelledError, MemoryError: every sequence is then
        as it was before.
        """
        lengths = [len(w.ids) for w in works]
        with self._room(works, lengths):
            bad = self.backend.step(self._batch(works, lengths), logits)
        for w in works:
            w.sequence.length += len(w.ids)
        if not bad.any():
            return [True] * len(works)
        return [not part.any() for part in np.split(bad, np.cumsum(lengths)[:-1])]

    def burst(self, works: Items[Work], logits: np.ndarray, draws: Items[Draw], steps: int, halt: np.ndarray) -> Drawn:
        """See Backend.burst, which the engine's backend has; each work has one id and wants its logits.

        Of the tokens returned, each sequence's last one is not stepped. Raises as `step`.
        """
        assert self.backend.burst
        with self._room(works, [steps] * len(works)):
            drawn = self.backend.burst(self._batch(works, [1] * len(works)), logits, draws, steps, halt)
        for w, tokens in zip(works, drawn, strict=True):
            w.sequence.length += len(tokens)
        return drawn

    @contextmanager
    def _room(self, works: Items[Work], more: Items[int]) -> Iterator[None]:
        """Pages for so many more positions; an error leaves every sequence as it was."""
        try:
            for w, n in zip(works, more, strict=True):
                self.cache.reserve(w.sequence, w.sequence.length + n)
            yield
        except BaseException:
            for w in works:
                self.cache.truncate(w.sequence, w.sequence.length)
            raise

    def _batch(self, works: Items[Work], lengths: list[int]) -> Batch:
        # most steps are of a few tokens: lists are quicker for them than arrays
        ends = list(accumulate(lengths))
        wanted = [i for w, end in zip(works, ends, strict=True) for i in range(end - w.outputs, end)]
        at = [range(w.sequence.length, w.sequence.length + n) for w, n in zip(works, lengths, strict=True)]
        number = [i for i, n in enumerate(lengths) for _ in range(n)]
        return Batch(
            ids=works[0].ids if len(works) == 1 else np.concatenate([w.ids for w in works]),
            positions=np.array([i for r in at for i in r], np.int32),
            sequence=np.array(number, np.int32),
            outputs=np.array(wanted, np.int32),
            pages=[[page.memory for page in w.sequence.pages] for w in works],
        )

    def cancel(self) -> None:
        """Make a running step return soon, with CancelledError."""
        self.backend.cancel()

    def close(self) -> None:
        self.backend.close()
