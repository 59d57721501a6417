"""The tensors of a file, as families ask for them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from ..config import LIMIT
from ..errors import FileError, UnsupportedError
from ..ops import Weight


class Tensor(Protocol):
    """What a family needs to know of a tensor: shape in the file's order, row length first."""

    @property
    def shape(self) -> tuple[int, ...]: ...


class Tensors:
    """The tensors of a file, as a family asks for them; remembers which were asked for."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor], floats: Callable[[str], np.ndarray]) -> None:
        self.path, self.tensors, self.used, self._floats = path, tensors, set[str](), floats

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def get(self, name: str, n: int, k: int = 0, rope_heads: int = 0, rope_dim: int = 0) -> Weight:
        """The tensor `name` of n rows of k elements (of n elements where k is 0). FileError if there is none such."""
        tensor = self.tensors.get(name)
        if tensor is None:
            raise FileError(self.path, "a tensor is missing", where=name)
        shape: tuple[int, ...] = (k, n) if k else (n,)
        while len(tensor.shape) > len(shape) and tensor.shape[-1] == 1:
            shape += (1,)
        if tensor.shape != shape:
            raise FileError(self.path, "a tensor has the wrong shape", where=name, expected=shape, got=tensor.shape)
        if max(shape) > LIMIT:
            raise FileError(self.path, "a tensor is absurd", where=name, expected=f"sides up to {LIMIT}", got=shape)
        self.used.add(name)
        return Weight(name, n, k, rope_heads, rope_dim)

    def maybe(self, name: str, n: int) -> Weight | None:
        """An optional vector, such as a bias."""
        return self.get(name, n) if name in self.tensors else None

    def experts(self, stem: str, count: int, n: int, k: int) -> tuple[Weight, ...]:
        """The matrices of all experts, (n, k) each: of one tensor `stem`_exps, or in older files of one for each."""
        name = f"{stem}_exps.weight"
        if name not in self.tensors:
            return tuple(self.get(f"{stem}.{i}.weight", n, k) for i in range(count))
        shape = self.tensors[name].shape
        if shape != (k, n, count):
            raise FileError(self.path, "a tensor has the wrong shape", where=name, expected=(k, n, count), got=shape)
        self.used.add(name)
        return tuple(Weight(name, n, k, first=i * n) for i in range(count))

    def floats(self, name: str, n: int) -> np.ndarray:
        """A short vector's values, float32 (n,)."""
        self.get(name, n)
        return self._floats(name)

    def scale(self, stem: str) -> float:
        """What a matrix is multiplied by, as a whole: `stem`.scale, a file's, or 1. FileError where it is no number."""
        name = f"{stem}.scale"
        if name not in self.tensors:
            return 1.0
        scale = float(self.floats(name, 1)[0])
        if not math.isfinite(scale):
            raise FileError(self.path, "a scale is no finite number", where=name, got=scale)
        return scale

    def rows(self, name: str) -> int:
        """The number of rows of a matrix. FileError where it is missing or no matrix."""
        tensor = self.tensors.get(name)
        if tensor is None:
            raise FileError(self.path, "a tensor is missing", where=name)
        if len(tensor.shape) < 2:
            raise FileError(self.path, "a tensor is no matrix", where=name, got=tensor.shape)
        return tensor.shape[1]

    def refuse_unused(self, ignore: tuple[str, ...]) -> None:
        """FileError for a tensor that no op reads and that no pattern in `ignore` names."""
        for name in self.tensors:
            if name.endswith("_exps.scale"):
                what = "experts have scales of their own, which this version does not apply: the logits would be wrong"
                raise UnsupportedError(self.path, what, where=name, expected="a GGUF file of another type, Q4_K_M say")
            if name not in self.used and not any(re.fullmatch(pattern, name) for pattern in ignore):
                raise UnsupportedError(self.path, "the model does not use this tensor", where=name)
