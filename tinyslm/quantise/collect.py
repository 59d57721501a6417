"""How large the inputs of a model's matrices are over a text: what an importance matrix is made of."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from .. import models, tokenizer
from ..backends import REMEDY, has_native
from ..backends.base import Weights
from ..backends.threads import default_threads
from ..config import Keys
from ..engine import Engine, Work
from ..errors import BackendError, NonFiniteError, OptionError
from ..gguf import GGUF
from ..kvcache import Sequence
from ..model import file_tensors
from ..ops import Op, Program, Value
from ..tokenizer import Tokenizer
from .file import check_room, check_target
from .imatrix import write_importance

ROWS = 64  # tokens in a step: every value of it stays in memory


def collect_importance(
    path: str | os.PathLike[str],
    text: str,
    target: str | os.PathLike[str],
    *,
    context: int = 512,
    chunks: int | None = None,
    dataset: str = "",
    threads: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> int:
    """Runs a model over a text and writes the sums of squares of what enters each matrix of its layers.

    As in llama.cpp, the text is cut into chunks of `context` tokens, each read by itself, its first token replaced by
    BOS where the model puts BOS before a text; what is left over is not used. The program is run as the family wrote
    it, no ops fused, so that each value can be looked at: that takes more memory and time than `load`. Gives back the
    number of chunks.

    Raises FileError, OptionError for a text that is shorter than a chunk and where model and target are one file,
    NonFiniteError, BackendError where the C core was not built.
    """
    if not has_native():
        raise BackendError(f"an importance matrix needs the C core, which was not built: {REMEDY}")
    from ..backends.native import Native

    path, target = Path(path), Path(target)
    with GGUF.open(path) as file:
        check_target(file, target)
        program = models.build(Keys(path, file.metadata), file_tensors(file))
        words = tokenizer.load(file.metadata, path)
        if context > program.context:
            raise OptionError(f"chunks of {context} tokens: {path.name} can have up to {program.context}")
        pieces = _chunks(words, text, context)[:chunks]
        backend = Native(program, Weights(file), threads or default_threads(), ROWS, fuse=False)
    sums = Sums(program)
    check_room(target, sum(squares.nbytes for squares in sums.squares.values()))
    engine = Engine(program, backend)
    try:
        for i, ids in enumerate(pieces):
            sequence = Sequence()
            for at in range(0, context, ROWS):
                part = ids[at : at + ROWS]
                logits = np.empty((len(part), program.vocab), np.float32)
                if not all(engine.step([Work(sequence, part, len(part))], logits)):
                    raise NonFiniteError(f"{path}: a value of the model is no finite number")
                sums.add(partial(backend.value, rows=len(part)))
                if progress:
                    progress((i + min(at + ROWS, context) / context) / len(pieces))
            engine.cache.free(sequence)
    finally:
        engine.close()
    write_importance(target, sums.squares, sums.counts, len(pieces), context, dataset)
    return len(pieces)


def _chunks(words: Tokenizer, text: str, context: int) -> list[np.ndarray]:
    begin = [words.bos] if words.add_bos and words.bos is not None else []
    ids = np.array(begin + words.encode(text, bos=False), np.int32)
    if len(ids) < context:
        raise OptionError(f"the text has {len(ids)} tokens, a chunk needs {context}: a longer text, or smaller chunks")
    pieces = ids[: len(ids) // context * context].reshape(-1, context)
    if begin:
        pieces[:, 0] = begin
    return list(pieces)


class Sums:
    """Of what enters each matrix of the layers: the squares, and how many vectors they are of. A tensor of experts is
    several matrices, each of which sees the tokens that are sent to it."""

    def __init__(self, program: Program) -> None:
        layers = [(op, op.experts or (op.weight,)) for op in program.ops if op.kind in ("matmul", "experts")]
        self._ops: dict[str, Op] = {}  # by the tensor, of which several ops may take rows
        for op, weights in layers:
            for w in weights:
                if w and w.name.startswith("blk."):
                    self._ops.setdefault(w.name, op)
        self.squares: dict[str, np.ndarray] = {}
        self.counts: dict[str, np.ndarray] = {}
        for name, op in self._ops.items():
            own = [w for w in op.experts or (op.weight,) if w and w.name == name]
            self.squares[name], self.counts[name] = np.zeros((len(own), own[0].k)), np.zeros(len(own))

    def add(self, value: Callable[[Value], np.ndarray]) -> None:
        """A step; `value` gives each of its values, float32 (rows, width)."""
        squares: dict[Value, np.ndarray] = {}  # what enters several matrices is read once
        for name, op in self._ops.items():
            x = op.reads[0]
            if x not in squares:
                squares[x] = np.square(value(x), dtype=np.float64)
            if not op.experts:
                self.squares[name][0] += squares[x].sum(axis=0)
                self.counts[name][0] += len(squares[x])
                continue
            sent = value(op.reads[1])[:, op.used :]  # (rows, used): the numbers of the experts
            # a vector for all that are used, or one for each
            of_each = squares[x].reshape(len(sent), -1, op.experts[0].k)
            of_each = np.broadcast_to(of_each, (len(sent), op.used, of_each.shape[2]))
            own = [number for number, w in enumerate(op.experts) if w.name == name]
            for i, number in enumerate(own):
                self.squares[name][i] += of_each[sent == number].sum(axis=0)
                self.counts[name][i] += np.count_nonzero(sent == number)
