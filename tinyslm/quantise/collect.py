"""How large the inputs of a model's matrices are over a text: what an importance matrix is made of."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

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
from ..ops import Value
from ..tokenizer import Tokenizer
from .imatrix import write_importance

if TYPE_CHECKING:
    from ..backends.native import Native

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

    Raises FileError, OptionError for a text that is shorter than a chunk, NonFiniteError, BackendError where the C core
    was not built.
    """
    if not has_native():
        raise BackendError(f"an importance matrix needs the C core, which was not built: {REMEDY}")
    from ..backends.native import Native

    path = Path(path)
    with GGUF.open(path) as file:
        program = models.build(Keys(path, file.metadata), file_tensors(file))
        words = tokenizer.load(file.metadata, path)
        if context > program.context:
            raise OptionError(f"chunks of {context} tokens: {path.name} can have up to {program.context}")
        pieces = _chunks(words, text, context)[:chunks]
        backend = Native(program, Weights(file), threads or default_threads(), ROWS, fuse=False)
    inputs = [(op.weight.name, op.reads[0]) for op in program.ops if op.kind == "matmul" and op.weight]
    inputs = [(name, value) for name, value in inputs if name.startswith("blk.")]
    sums = {name: np.zeros(value.width) for name, value in inputs}
    engine = Engine(program, backend)
    try:
        for i, ids in enumerate(pieces):
            sequence = Sequence()
            for at in range(0, context, ROWS):
                part = ids[at : at + ROWS]
                logits = np.empty((len(part), program.vocab), np.float32)
                if not all(engine.step([Work(sequence, part, len(part))], logits)):
                    raise NonFiniteError(f"{path}: a value of the model is no finite number")
                _add(sums, inputs, backend, len(part))
                if progress:
                    progress((i + min(at + ROWS, context) / context) / len(pieces))
            engine.cache.free(sequence)
    finally:
        engine.close()
    counts = dict.fromkeys(sums, len(pieces) * context)
    write_importance(Path(target), sums, counts, len(pieces), context, dataset)
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


def _add(sums: dict[str, np.ndarray], inputs: Iterable[tuple[str, Value]], backend: Native, rows: int) -> None:
    """The squares of the last step; what enters several matrices is read once."""
    squares: dict[Value, np.ndarray] = {}
    for name, value in inputs:
        if value not in squares:
            squares[value] = np.square(backend.value(value, rows), dtype=np.float64).sum(axis=0)
        sums[name] += squares[value]
