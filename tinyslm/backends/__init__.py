"""Backends that run a program: native (C), numba, reference (NumPy)."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable

from ..errors import BackendError, OptionError
from ..ops import Program
from .base import KV_TYPES, Backend, Weights

NAMES = ("native", "numba", "reference")
REMEDY = "install a C compiler, then: pip install --no-cache-dir --force-reinstall tinyslm"


def has_native() -> bool:
    return importlib.util.find_spec("tinyslm._native") is not None


def choose(name: str | None = None, activations: int | None = None) -> str:
    """`name`, or TINYSLM_BACKEND, or native, or, with a warning, numba where the C core was not built; with
    `activations` numba, which alone can leave them or round them otherwise.

    Raises OptionError for an unknown name, or one that cannot do that; BackendError where native is asked for and not
    there.
    """
    wanted = name or os.environ.get("TINYSLM_BACKEND") or (None if activations is None else "numba")
    if activations is not None and wanted != "numba":
        raise OptionError(f"activations other than the engine's own need the numba backend, not {wanted!r}")
    if wanted is not None and wanted not in NAMES:
        raise OptionError(f"backend {wanted!r}: must be one of {', '.join(NAMES)}")
    if wanted == "native" and not has_native():
        raise BackendError(f"the C core was not built: {REMEDY}")
    if wanted is None and not has_native():
        text = f"the C core was not built, the slower numba backend is used; for the fast one {REMEDY}"
        warnings.warn(text, stacklevel=2)
    return wanted or ("native" if has_native() else "numba")


def make(
    name: str, program: Program, weights: Weights, threads: int, rows: int | None,
    progress: Callable[[float], None] | None, kv: str = "f16", activations: int | None = None,
) -> Backend:  # fmt: skip
    """The backend of that name, its weights loaded; heavy libraries are imported here and not before.

    Raises OptionError for a `kv` that is none of KV_TYPES, and BackendError for one that the backend does not have.
    """
    if kv not in KV_TYPES:
        raise OptionError(f"kv={kv!r}: must be one of {', '.join(KV_TYPES)}")
    if name == "native":
        from .native import Native

        return Native(program, weights, threads, rows, progress=progress, kv=kv)
    if name == "numba":
        if kv != "f16":
            raise BackendError(f"kv={kv!r}: the numba backend has f16 alone; {REMEDY}")
        from .numba import Numba

        return Numba(program, weights, threads, activations)
    from .reference import Reference

    return Reference(program, weights, kv=kv)
