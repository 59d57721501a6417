"""Where the model that comes with the package lies."""

from __future__ import annotations

from pathlib import Path

from .errors import FileError

NAME = "tales-q8_0.gguf"


def path() -> Path:
    """The GGUF file of the built-in model.

    Raises FileError where it is not there: an install that left it out, a checkout without it.
    """
    package = Path(__file__).resolve().parent
    installed, checkout = package / "weights" / NAME, package.parent / "weights" / NAME
    for file in (installed, checkout):
        if file.is_file():
            return file
    raise FileError(installed, "the built-in model is missing: name a model, or install tinyslm again")
