"""Phi-3, Phi-3.5 mini (arXiv:2404.14219) and Phi-4 mini (arXiv:2503.01743)."""

from __future__ import annotations

from .llama import Llama


class Phi3(Llama):
    """One tensor holds q, k and v, one gate and up, which Llama takes as it finds them; rotations may be longrope's.

    The window that the file states is kept, as the model was made with it; llama.cpp sees past it.
    """

    PAIRS = "halves"
