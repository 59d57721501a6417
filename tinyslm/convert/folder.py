"""A folder of published files to one GGUF file: config.json, safetensors, tokenizer."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from .. import models, tokenizer
from ..config import Keys
from ..errors import FileError, OptionError, TinySLMError
from ..formats import BY_NAME, TYPE_IDS, TYPES
from ..formats.base import F32
from ..gguf import TensorData, write
from ..mixes import MIXES, kept
from ..quantise.file import SLICE, VERSION, Result, check_room
from ..quantise.rows import quantise_rows
from . import families, vocabulary
from .pretokenizer import row_of
from .safetensors import Stored, open_folder, read_json

KINDS = ("auto", "f32", "f16", "bf16", "q8_0")


@dataclass(frozen=True)
class _Plan:
    """A tensor to be: `shape` in ggml's order, and the published ones, or values, that it is made of."""

    name: str
    shape: tuple[int, ...]
    kind: str
    parts: tuple[Stored, ...]
    values: F32 | None = None


def convert_folder(
    folder: str | os.PathLike[str],
    target: str | os.PathLike[str],
    kind: str = "auto",
    *,
    pre: str | None = None,
    progress: Callable[[float], None] | None = None,
) -> Result:
    """Writes `target`, a GGUF file of the model in `folder`, its matrices in the type `kind`, one of `KINDS`.

    auto keeps each matrix as it is stored; norms, vectors and a few small matrices are F32 always. `pre` names the
    pre-tokenizer, a name of `tokenizer.ggml.pre`, where it cannot be recognised. The file appears under its name when
    it is whole; it has been seen to make a program before the first byte is written. One tensor is in memory at a time.

    Raises FileError for a file that is missing, broken or cut short, or a tensor that is missing or has no place,
    UnsupportedError for a model or tokenizer of another kind, OptionError for arguments.
    """
    folder, target = Path(folder), Path(target)
    if kind not in KINDS:
        raise OptionError(f"there is no type {kind!r}; there are {', '.join(KINDS)}; for others, quantise afterwards")
    if pre is not None and row_of(pre) is None:
        raise OptionError(f"there is no pre-tokenizer {pre!r}")
    if not (folder / "config.json").is_file():
        what = "there is no config.json in it" if folder.is_dir() else "this is no folder"
        raise FileError(folder, f"{what}: name a folder that a model was downloaded to from the hub")
    if target.is_dir():
        raise FileError(target, "this is a directory: name the file to be written")
    config = read_json(folder / "config.json")
    plans, keys = _planned(folder, config, kind)
    keys |= vocabulary.read(folder, config, str(keys["general.architecture"]), pre)
    _check(folder, keys, plans)
    sizes = [TYPES[TYPE_IDS[plan.kind]] for plan in plans]
    after = sum(prod(p.shape) // size.block * size.bytes for p, size in zip(plans, sizes, strict=True))
    check_room(target, after)
    total, done = sum(prod(plan.shape) for plan in plans), 0

    def counted(plan: _Plan) -> Iterator[np.ndarray]:
        nonlocal done
        for rows in _rows(config, plan):
            yield _encoded(plan, rows)
            done += rows.size
            if progress:
                progress(done / total)

    write(target, keys, [TensorData(p.name, p.shape, TYPE_IDS[p.kind], counted(p)) for p in plans])
    before = sum(part_bytes(part) for plan in plans for part in plan.parts)
    return Result(before, after, total, Counter(plan.kind for plan in plans))


def part_bytes(part: Stored) -> int:
    return prod(part.shape) * (4 if part.kind == "F32" else 2)


def _planned(folder: Path, config: dict[str, object], kind: str) -> tuple[list[_Plan], dict[str, object]]:
    """The tensors to be, and the keys of the hyperparameters."""
    path = folder / "config.json"
    try:
        metadata, computed = families.metadata(config), families.rope_tensors(config)
    except OptionError as error:
        raise FileError(folder, str(error)) from error
    except KeyError as error:
        raise FileError(path, "a key is missing", where=str(error.args[0])) from error
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise FileError(path, f"a value cannot be understood: {error}") from error
    stored = open_folder(folder)
    try:
        sources = families.sources(config, list(stored))
    except OptionError as error:
        raise FileError(folder, str(error)) from error
    plans = [_Plan(name, values.shape, "F32", (), values) for name, values in computed.items()]
    for source in sources:
        parts = tuple(stored[part] for part in source.parts)
        if len({part.shape for part in parts}) > 1:
            raise FileError(parts[0].path, "the parts of a tensor have different shapes", where=source.name)
        shape = families.shape_of(config, source.name, [part.shape for part in parts])[::-1]
        plans.append(_Plan(source.name, shape, _type(source.name, shape, kind, parts), parts))
    general = {"general.architecture": metadata.pop("general.architecture"), "general.type": "model",
               "general.name": folder.resolve().name, "general.file_type": _file_type(kind, plans),
               "general.quantization_version": VERSION}  # fmt: skip
    return plans, general | metadata


def _type(name: str, shape: tuple[int, ...], kind: str, parts: tuple[Stored, ...]) -> str:
    if kept(name, shape):
        return "F32"
    wanted = parts[0].kind if kind == "auto" else kind.upper()
    return wanted if shape[0] % TYPES[TYPE_IDS[wanted]].block == 0 else "F16"


def _file_type(kind: str, plans: list[_Plan]) -> int:
    """general.file_type: the number of the type that most matrices have."""
    if kind != "auto":
        return MIXES[kind.upper()].file_type
    found = Counter(plan.kind for plan in plans if not kept(plan.name, plan.shape)).most_common(1)
    return MIXES[found[0][0] if found else "F32"].file_type


def _check(folder: Path, keys: dict[str, object], plans: list[_Plan]) -> None:
    """The file to be makes a tokenizer and a program: nothing that they need is missing, and nothing is left over."""
    tokenizer.load(keys, folder)
    values = {plan.name: plan.values for plan in plans if plan.values is not None}
    try:
        models.build(
            Keys(folder, keys), models.Tensors(folder, {plan.name: plan for plan in plans}, values.__getitem__)
        )
    except TinySLMError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(folder, str(error)) from error


def _rows(config: dict[str, object], plan: _Plan) -> Iterator[np.ndarray]:
    """The values in slices of rows; of BF16, the bits, unless the tensor is held in float32."""
    if plan.values is not None:
        yield plan.values.reshape(1, -1)
        return
    parts = [part.read() for part in plan.parts]
    if plan.kind == "F32":
        parts = [_floats(part.kind, values) for part, values in zip(plan.parts, parts, strict=True)]
    whole = families.converted(config, plan.name, parts)
    del parts
    whole = whole.reshape(-1, plan.shape[0])
    step = max(1, SLICE // plan.shape[0])
    for start in range(0, len(whole), step):
        yield whole[start : start + step]


def _floats(kind: str, values: np.ndarray) -> F32:
    if kind == "F32":
        return values
    raw = np.ascontiguousarray(values).view(np.uint8)
    return BY_NAME[kind].dequantise(raw.reshape(-1)).reshape(values.shape)


def _encoded(plan: _Plan, rows: np.ndarray) -> np.ndarray:
    """Rows of blocks; what is in its type already stays to the bit."""
    stored = "F32" if plan.kind == "F32" or not plan.parts else plan.parts[0].kind
    try:
        floats = np.ascontiguousarray(_floats(stored, rows), np.float32)
        return quantise_rows(plan.kind, floats)
    except OptionError as error:
        where = plan.parts[0].path if plan.parts else Path("config.json")
        hint = "; bf16 and f32 hold what f16 does not" if plan.kind in ("F16", "Q8_0") else ""
        raise FileError(where, f"{error}{hint}", where=plan.name) from error
