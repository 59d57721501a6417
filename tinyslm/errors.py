"""The one tree of errors that this package raises on purpose.

Each message is one line that says what was wrong and, where it helps, what to do next.
"""

from __future__ import annotations

from pathlib import Path


class TinySLMError(Exception):
    """The root: `except tinyslm.TinySLMError` catches all that the package raises on purpose."""


class FileError(TinySLMError):
    """A file cannot be opened, is no GGUF file, or breaks the format.

    `path` is the file, `where` the metadata key or tensor, `offset` the byte position in the file;
    `expected` and `got` say what the format asks for and what stands there. All but `path` may be None.
    """

    def __init__(
        self,
        path: str | Path,
        problem: str,
        *,
        where: str | None = None,
        offset: int | None = None,
        expected: object = None,
        got: object = None,
    ) -> None:
        self.path, self.problem, self.where, self.offset = str(path), problem, where, offset
        self.expected, self.got = expected, got
        text = f"{path}: {problem}"
        if where is not None:
            text += f" ({where!r})"
        if offset is not None:
            text += f" at byte {offset}"
        if expected is not None:
            text += f": expected {expected}"
        if got is not None:
            text += f", got {got}" if expected is not None else f": got {got}"
        super().__init__(" ".join(text.split()))

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_file_error, (
            type(self), self.path, self.problem, self.where, self.offset, self.expected, self.got,
        )  # fmt: skip


def _rebuild_file_error(
    kind: type[FileError], path: str, problem: str, where: str | None, offset: int | None, expected: object, got: object
) -> FileError:
    return kind(path, problem, where=where, offset=offset, expected=expected, got=got)


class UnsupportedError(FileError):
    """The file is sound, but names what this version does not know: an architecture, a tensor type, a tokenizer."""


class PromptTooLongError(TinySLMError):
    """A prompt has more tokens than the context holds; nothing is ever cut silently."""

    def __init__(self, tokens: int, context: int) -> None:
        self.tokens, self.context = tokens, context
        super().__init__(
            f"the prompt has {tokens} tokens, the context holds {context}: shorten it or load with a larger context"
        )

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.tokens, self.context)


class ChatTemplateError(TinySLMError):
    """A chat template is wrong, refuses the messages, or takes more time or memory than a template may.

    `path` is the model's file, `line` the template's line, from 1, or None, and `excerpt` what stands there.
    """

    def __init__(self, path: str | Path, problem: str, line: int | None, excerpt: str) -> None:
        self.path, self.problem, self.line, self.excerpt = str(path), problem, line, excerpt
        where = f", line {line}" if line else ""
        shown = f": {excerpt if len(excerpt) <= 120 else excerpt[:119] + '…'}" if excerpt else ""
        super().__init__(" ".join(f"{path}: the chat template{where}: {problem}{shown}".split()))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.path, self.problem, self.line, self.excerpt)


class OptionError(TinySLMError, ValueError):
    """An argument or environment variable has a value that cannot be used."""


class BackendError(TinySLMError):
    """The backend or instruction set that was asked for cannot run on this machine."""


class NonFiniteError(TinySLMError):
    """The model produced a logit that is no finite number: the weights are broken or overflow in float32."""


class CancelledError(TinySLMError):
    """The request was cancelled before it finished."""


class ClosedError(TinySLMError):
    """The model was closed."""


class HubError(TinySLMError):
    """A model cannot be had from the hub: no such repository, access, file or network, or what came is damaged."""
