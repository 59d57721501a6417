"""The KV cache: pages of 64 positions, allocated as they are used, shared by counting."""

from __future__ import annotations

from typing import Any

from .backends.base import PAGE, Backend


class Page:
    """Memory of the backend for 64 positions of all layers, and how many sequences hold it."""

    __slots__ = ("holders", "memory")

    def __init__(self, memory: Any) -> None:
        self.memory, self.holders = memory, 1


class Sequence:
    """The pages of one sequence; positions 0 … length - 1 are written."""

    __slots__ = ("length", "pages")

    def __init__(self) -> None:
        self.length, self.pages = 0, list[Page]()


class Cache:
    """Makes, grows, cuts, copies and frees sequences. Not thread-safe: one thread steps."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def reserve(self, s: Sequence, length: int) -> None:
        """Have pages for positions up to `length`, none to be written shared. MemoryError: `s` holds the same."""
        if s.length % PAGE and s.length < length and s.pages[s.length // PAGE].holders > 1:
            self._own(s, s.length // PAGE)
        while len(s.pages) * PAGE < length:
            s.pages.append(Page(self.backend.new_page()))

    def _own(self, s: Sequence, i: int) -> None:
        """Replace page i, which others hold too, by a copy."""
        copy = Page(self.backend.new_page())
        self.backend.copy_page(copy.memory, s.pages[i].memory)
        self._release(s.pages[i])
        s.pages[i] = copy

    def _release(self, page: Page) -> None:
        page.holders -= 1
        if not page.holders:
            self.backend.free_page(page.memory)

    def truncate(self, s: Sequence, length: int) -> None:
        """Forget all positions from `length` on, and give back the pages that only they used."""
        s.length = min(s.length, length)
        while (len(s.pages) - 1) * PAGE >= s.length and s.pages:
            self._release(s.pages.pop())

    def fork(self, s: Sequence) -> Sequence:
        """A sequence with the same past; the pages are shared until one of the two writes."""
        copy = Sequence()
        copy.length, copy.pages = s.length, s.pages[: -(-s.length // PAGE)]
        for page in copy.pages:
            page.holders += 1
        return copy

    def free(self, s: Sequence) -> None:
        self.truncate(s, 0)
