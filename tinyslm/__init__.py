"""tinyslm: small language models on the CPU, from GGUF files.

model = tinyslm.load("file.gguf")
print(model.generate("Once upon a time"))
"""

from __future__ import annotations

from .errors import (
    BackendError,
    CancelledError,
    ChatTemplateError,
    ClosedError,
    FileError,
    HubError,
    NonFiniteError,
    OptionError,
    PromptTooLongError,
    TinySLMError,
    UnsupportedError,
)

__version__ = "0.1.0"
__all__ = [
    "BackendError", "CancelledError", "ChatTemplateError", "ClosedError", "Conversation", "FileError", "HubError",
    "Model", "NonFiniteError", "OptionError", "Piece", "PromptTooLongError", "Stream", "TinySLMError",
    "UnsupportedError", "load",
]  # fmt: skip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .conversation import Conversation
    from .model import Model, Stream, load
    from .scheduler import Piece


def __getattr__(name: str) -> object:
    """Names that need NumPy come when first used, so that importing the package is quick."""
    if name in ("Model", "Stream", "load"):
        from . import model

        return getattr(model, name)
    if name == "Conversation":
        from .conversation import Conversation

        return Conversation
    if name == "Piece":
        from .scheduler import Piece

        return Piece
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
