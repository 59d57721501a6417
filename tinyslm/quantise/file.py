"""A file with its matrices in other types; all else of it as it was."""

from __future__ import annotations

import os
import shutil
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..backends.threads import default_threads
from ..errors import FileError, OptionError
from ..formats import TYPE_IDS, TYPES
from ..formats.base import F32, U8
from ..gguf import GGUF, TensorData, TensorInfo, ValueType, write
from ..mixes import MIXES, Model, kept, type_of
from .imatrix import Importance
from .rows import SEARCHED, quantise_rows

SLICE = 1 << 19  # weights that a thread takes at once
ROOM = 1 << 24  # bytes that the disk is to keep free
FLOATS = ("F32", "F16", "BF16")
EXACT = ("F64", "I8", "I16", "I32", "I64")  # what is held in these stays so
VERSION = 2  # of the quantised formats: general.quantization_version, ggml's GGML_QNT_VERSION


@dataclass(frozen=True)
class Result:
    """Bytes of the tensors before and after, weights, and how many tensors there are of each type."""

    before: int
    after: int
    weights: int
    types: Counter[str]


class _Job(NamedTuple):
    """Rows start … stop of a tensor, which become `kind`; `importance`: (k,)."""

    tensor: TensorInfo
    start: int
    stop: int
    kind: str
    importance: F32 | None


def quantise_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    mix: str,
    *,
    requantise: bool = False,
    importance: Importance | None = None,
    threads: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Result:
    """Writes `target`, a model file whose matrices are of the types that `mix`, a key of `mixes.MIXES`, gives them.

    The order of keys and tensors stays, and so does all that is not said here: general.file_type and
    general.quantization_version are set, the keys of a split model go (the target is one file), and with an importance
    matrix quantize.imatrix.* name it. `target` appears under its name when it is whole. Reading, searching and writing
    overlap; what is held in memory is some slices of half a million weights for each thread.

    Raises OptionError for an unknown mix, for a quantised source without `requantise`, and where source and target are
    one file; FileError for a source without weights, with weights that the type cannot hold, an importance matrix of
    another model, and what the disk refuses; BackendError where the C core was not built and is needed.
    """
    source, target = Path(source), Path(target)
    if mix not in MIXES:
        raise OptionError(f"there is no type {mix!r}; there are {', '.join(MIXES)}")
    with GGUF.open(source) as file:
        check_target(file, target)
        types = target_types(file, mix, importance)
        _check_sources(file, types, requantise)
        if importance:
            _check_importance(file, types, importance)
        jobs = {name: list(_jobs(file.tensors[name], kind, importance)) for name, kind in types.items()}
        result = _result(file, types)
        check_room(target, result.after)
        keys, kinds = _metadata(file, mix, importance)
        workers = threads or default_threads()
        with ThreadPoolExecutor(workers) as pool:
            done = _in_order(pool, file, list(chain(*jobs.values())), workers, result.weights, progress)
            tensors = [
                TensorData(t.name, t.shape, TYPE_IDS[types[t.name]], islice(done, len(jobs[t.name])))
                for t in file.tensors.values()
            ]
            try:
                write(target, keys, tensors, types=kinds)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return result


def target_types(file: GGUF, mix: str, importance: Importance | None = None) -> dict[str, str]:
    """The type of each tensor of the file to be. FileError for a file without matrices, or that is no model."""
    matrices = [t for t in file.tensors.values() if not kept(t.name, t.shape)]
    if not matrices:
        what = "weights: it is a vocabulary" if not file.tensors else "matrices of a model"
        raise FileError(file.path, f"there is nothing to quantise: the file holds no {what}")
    model = _model(file)
    types = {t.name: t.type_name for t in file.tensors.values()}
    for t in matrices:
        if t.type_name not in EXACT:
            types[t.name] = type_of(t.name, t.shape, mix, model, importance is not None)
    return types


def _model(file: GGUF) -> Model:
    arch = file.metadata.get("general.architecture")

    def number(key: str, default: int) -> int:
        value = file.metadata.get(f"{arch}.{key}", default)
        first = value[0].item() if isinstance(value, np.ndarray) and value.size else value
        return first if isinstance(first, int) and first > 0 else default

    heads = number("attention.head_count", 1)
    group = heads // number("attention.head_count_kv", heads)
    return Model.of(file.tensors, number("block_count", 1), group, number("expert_count", 0))


def _check_sources(file: GGUF, types: dict[str, str], requantise: bool) -> None:
    """Every tensor that changes can be decoded, and is not quantised unless that is meant."""
    for name, kind in types.items():
        tensor = file.tensors[name]
        if kind == tensor.type_name:
            continue
        _ = tensor.format
        if tensor.type_name not in FLOATS and not requantise:
            raise OptionError(
                f"{file.path}: {name} is quantised already ({tensor.type_name}), and quantising it once more to {kind} "
                "loses more than once from the original would: take an F16, BF16 or F32 file, or --requantize"
            )


def _check_importance(file: GGUF, types: dict[str, str], importance: Importance) -> None:
    """FileError where the matrix is of another model; a warning where it leaves out matrices of the layers."""
    if not any(name in importance.squares for name in types):
        raise FileError(importance.path, f"the importance matrix is of another model: it has no tensor of {file.path}")
    for tensor in file.tensors.values():
        importance.of(tensor)
    searched = [name for name, kind in types.items() if name.startswith("blk.") and kind in SEARCHED]
    absent = [name for name in searched if name not in importance.squares]
    if absent:
        text = f"{importance.path}: {len(absent)} matrices are missing, {absent[0]} first: their columns count alike"
        warnings.warn(text, stacklevel=3)


def _jobs(tensor: TensorInfo, kind: str, importance: Importance | None) -> Iterator[_Job]:
    """A tensor in slices, none of which spans two of its matrices."""
    columns = importance.of(tensor) if importance and kind != tensor.type_name else None
    rows = tensor.shape[1] if len(tensor.shape) > 1 else 1
    step = max(1, SLICE // tensor.shape[0])
    for first in range(0, tensor.rows, rows):
        own = None if columns is None else columns[first // rows]
        for start in range(first, first + rows, step):
            yield _Job(tensor, start, min(start + step, first + rows), kind, own)


def _run(file: GGUF, job: _Job) -> U8:
    tensor = job.tensor
    blocks = np.empty((job.stop - job.start, tensor.row_bytes), np.uint8)
    file.read_into(tensor, job.start, job.stop, blocks)
    if job.kind == tensor.type_name:
        return blocks
    try:
        return quantise_rows(job.kind, tensor.format.dequantise(blocks), job.importance)
    except OptionError as error:
        raise FileError(tensor.path, str(error), where=tensor.name) from error


def _in_order(
    pool: ThreadPoolExecutor, file: GGUF, jobs: list[_Job], threads: int, total: int,
    progress: Callable[[float], None] | None,
) -> Iterator[U8]:  # fmt: skip
    """The jobs' results, in order, a few of them made ahead."""
    waiting: deque[tuple[_Job, Future[U8]]] = deque()
    done = 0

    def first() -> U8:
        nonlocal done
        job, future = waiting.popleft()
        blocks = future.result()
        done += (job.stop - job.start) * job.tensor.shape[0]
        if progress:
            progress(done / total)
        return blocks

    for job in jobs:
        waiting.append((job, pool.submit(_run, file, job)))
        if len(waiting) > 2 * threads:
            yield first()
    while waiting:
        yield first()


def _result(file: GGUF, types: dict[str, str]) -> Result:
    weights = {name: tensor.rows * tensor.shape[0] for name, tensor in file.tensors.items()}
    after = 0
    for name, kind in types.items():
        size = TYPES[TYPE_IDS[kind]]
        after += weights[name] // size.block * size.bytes
    before = sum(tensor.nbytes for tensor in file.tensors.values())
    return Result(before, after, sum(weights.values()), Counter(types.values()))


def check_target(file: GGUF, target: Path) -> None:
    """FileError where the target is a directory, OptionError where it is the file that is read."""
    if target.is_dir():
        raise FileError(target, "this is a directory: name the file to be written")
    if target.exists() and any(os.path.samefile(part, target) for part in file.sizes):
        raise OptionError(f"{target} is the file that is read: name another one to be written")


def check_room(target: Path, size: int) -> None:
    """FileError where there is no folder for the file, or the disk has not that many bytes and some to spare."""
    folder = target.parent
    if not folder.is_dir():
        raise FileError(target, "cannot be written: its folder does not exist")
    free = shutil.disk_usage(folder).free
    if free < size + ROOM:
        raise FileError(target, "the disk has no room for it", expected=f"{size + ROOM} bytes", got=free)


def _metadata(file: GGUF, mix: str, importance: Importance | None) -> tuple[dict[str, object], dict[str, ValueType]]:
    keys = {key: value for key, value in file.metadata.items() if not key.startswith("split.")}
    kinds = {key: kind for key, kind in file.metadata_types.items() if key in keys}
    for key, value in (("general.file_type", MIXES[mix].file_type), ("general.quantization_version", VERSION)):
        keys[key], kinds[key] = value, ValueType.UINT32
    if importance:
        keys["quantize.imatrix.file"] = str(importance.path)
        keys["quantize.imatrix.dataset"] = ", ".join(importance.datasets)
        keys["quantize.imatrix.entries_count"] = len(importance.squares)
        keys["quantize.imatrix.chunks_count"] = importance.chunks
        for key in [key for key in keys if key.startswith("quantize.imatrix.")]:
            kinds.pop(key, None)
    return keys, kinds
