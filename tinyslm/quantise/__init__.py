"""Making quantised files: rows of weights to blocks, whole files, and matrices of importance."""

from __future__ import annotations

from .file import Result, quantise_file
from .imatrix import Importance, read_importance

__all__ = ["Importance", "Result", "quantise_file", "read_importance"]
