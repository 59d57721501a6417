"""Strings that know which of their characters the template wrote.

A template writes control tokens among texts that come from users and documents. Which is which is settled where they
meet: the template's own strings are `Text`s whose every character is its own, and what methods and operators make of
them remembers, character by character. A plain str is nobody's: what a template was given, and the result of anything
not named here, so that what gets lost is a control token and never the border.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from string import Formatter
from typing import Any, SupportsIndex

OWN, GIVEN = b"\1", b"\0"


class Text(str):
    """A str with one byte for each character in `_own`: 1 where the template wrote it, 0 where it was given."""

    __slots__ = ("_own",)
    _own: bytes

    def __new__(cls, text: str, own: bytes | None = None) -> Text:
        self = super().__new__(cls, text)
        self._own = GIVEN * len(text) if own is None else own
        return self

    def __str__(self) -> str:
        return self

    def __iter__(self) -> Iterator[str]:
        return (Text(char, self._own[i : i + 1]) for i, char in enumerate(str.__iter__(self)))

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        own = self._own[key]
        return Text(super().__getitem__(key), own if isinstance(own, bytes) else bytes([own]))

    def __add__(self, other: str) -> str:
        if not isinstance(other, str):
            return NotImplemented
        return Text(str.__add__(self, other), self._own + owned(other))

    def __radd__(self, other: str) -> str:
        if not isinstance(other, str):
            return NotImplemented
        return Text(str.__add__(other, self), owned(other) + self._own)

    def __mul__(self, n: SupportsIndex) -> str:
        return Text(super().__mul__(n), self._own * n)

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> str:
        """`%s` keeps what it puts in; other conversions make given text."""
        parts = self.split("%s")
        whole = str.__str__(self) % values  # the count and kinds of values are checked there
        if "%" in "".join(parts) or isinstance(values, dict):
            return Text(whole)
        filled = [str(v) for v in (values if isinstance(values, tuple) else (values,))]
        return concat(piece for i, part in enumerate(parts) for piece in (part, *filled[i : i + 1]))

    def _cut(self, part: str, at: int) -> Text:
        return Text(part, self._own[at : at + len(part)])

    def join(self, parts: Iterable[str]) -> str:
        return concat(piece for i, part in enumerate(parts) for piece in ((self, part) if i else (part,)))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._placed(super().split(sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._placed(super().rsplit(sep, maxsplit), sep)

    def _placed(self, parts: list[str], sep: str | None) -> list[str]:
        """The parts of a split; where `sep` is None nothing but white space lies between."""
        found: list[str] = []
        at = 0
        for part in parts:
            at = self.find(part, at) if sep is None else at
            found.append(self._cut(part, at))
            at += len(part) + len(sep or "")
        return found

    def splitlines(self, keepends: bool = False) -> list[str]:
        found, at = [], 0
        for whole, part in zip(super().splitlines(True), super().splitlines(keepends), strict=True):
            found.append(self._cut(part, at))
            at += len(whole)
        return list(found)

    def partition(self, sep: str) -> tuple[str, str, str]:
        return self._three(super().partition(sep))

    def rpartition(self, sep: str) -> tuple[str, str, str]:
        return self._three(super().rpartition(sep))

    def _three(self, parts: tuple[str, str, str]) -> tuple[str, str, str]:
        a, b, c = parts
        return self._cut(a, 0), self._cut(b, len(a)), self._cut(c, len(a) + len(b))

    def lstrip(self, chars: str | None = None) -> str:
        stripped = super().lstrip(chars)
        return self._cut(stripped, len(self) - len(stripped))

    def rstrip(self, chars: str | None = None) -> str:
        return self._cut(super().rstrip(chars), 0)

    def strip(self, chars: str | None = None) -> str:
        return self.lstrip(chars).rstrip(chars)

    def removeprefix(self, prefix: str) -> str:
        return self[len(prefix) :] if prefix and self.startswith(prefix) else self

    def removesuffix(self, suffix: str) -> str:
        return self[: -len(suffix)] if suffix and self.endswith(suffix) else self

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> str:
        if old:
            return concat([new]).join(self.split(old, count))
        return Text(super().replace(old, new, count))

    def _recased(self, text: str) -> str:
        return Text(text, self._own if len(text) == len(self) else None)

    def upper(self) -> str:
        return self._recased(super().upper())

    def lower(self) -> str:
        return self._recased(super().lower())

    def capitalize(self) -> str:
        return self._recased(super().capitalize())

    def title(self) -> str:
        return self._recased(super().title())


def own(text: str) -> Text:
    """A string of the template's."""
    return Text(text, OWN * len(text))


def owned(text: str) -> bytes:
    """For each character whether the template wrote it."""
    return text._own if isinstance(text, Text) else GIVEN * len(text)


def concat(parts: Iterable[str]) -> Text:
    """The parts one after the other. Raises TypeError for what is no str."""
    listed = list(parts)
    return Text("".join(listed), b"".join(map(owned, listed)))


class TextFormatter:
    """`str.format` for a Text: its literal parts stay the template's, and what is put in stays what it was."""

    def __init__(self, formatter: Formatter, text: Text) -> None:
        self._formatter, self._text = formatter, text

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        text, number = self._text, 0
        is_own = GIVEN not in text._own
        pieces: list[str] = []
        for literal, field, spec, conversion in self._formatter.parse(text):
            pieces.append(own(literal) if is_own else literal)
            if field is None:
                continue
            if not field or field[0] in ".[":
                field, number = f"{number}{field}", number + 1
            value = self._formatter.get_field(field, args, kwargs)[0]
            if not spec and conversion in (None, "s"):
                pieces.append(str(value))
            else:
                converted = f"!{conversion}" if conversion else ""
                pieces.append(self._formatter.vformat(f"{{{field}{converted}:{spec}}}", args, kwargs))
        return concat(pieces)
