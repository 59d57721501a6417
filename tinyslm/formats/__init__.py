"""The tensor formats: one descriptor a type, in one module a kin, in plain NumPy.

These functions are the oracle that the C kernels are tested against; they share nothing with C. To add a type, add a
row to `FORMATS` of its kin's module (its size already stands in `types.py`).
"""

from __future__ import annotations

from tinyslm.formats import float as float_
from tinyslm.formats import iq, k, legacy, mx, ternary
from tinyslm.formats.base import Format, Integers
from tinyslm.formats.types import REMOVED, TYPE_IDS, TYPE_NAMES, TYPES, TypeSize

_KINS = (float_, legacy, k, iq, ternary, mx)
FORMATS: dict[int, Format] = {descriptor.id: descriptor for kin in _KINS for descriptor in kin.FORMATS}
BY_NAME: dict[str, Format] = {descriptor.name: descriptor for descriptor in FORMATS.values()}

__all__ = ["BY_NAME", "FORMATS", "REMOVED", "TYPES", "TYPE_IDS", "TYPE_NAMES", "Format", "Integers", "TypeSize"]
