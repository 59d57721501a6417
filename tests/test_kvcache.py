"""Pages are taken as they are used, shared by counting, and all given back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyslm.backends.base import PAGE
from tinyslm.kvcache import Cache, Sequence


class Pages:
    """A backend whose pages are arrays of what stands at each position."""

    name, page_bytes = "pages", PAGE

    def __init__(self) -> None:
        self.live: list[np.ndarray] = []
        self.room = 10**6

    def new_page(self) -> np.ndarray:
        if len(self.live) >= self.room:
            raise MemoryError("no page")
        self.live.append(np.full(PAGE, -1))
        return self.live[-1]

    def free_page(self, page: np.ndarray) -> None:
        self.live.pop(next(i for i, other in enumerate(self.live) if other is page))  # freed twice: StopIteration

    def copy_page(self, target: np.ndarray, source: np.ndarray) -> None:
        target[:] = source


def made() -> tuple[Cache, Pages]:
    backend = Pages()
    return Cache(backend), backend  # type: ignore[arg-type]


def write(cache: Cache, s: Sequence, values: list[int]) -> None:
    """What a step does: room, then the positions from the length on."""
    cache.reserve(s, s.length + len(values))
    for value in values:
        s.pages[s.length // PAGE].memory[s.length % PAGE] = value
        s.length += 1


def content(s: Sequence) -> list[int]:
    return [int(s.pages[i // PAGE].memory[i % PAGE]) for i in range(s.length)]


@pytest.mark.parametrize(("length", "pages"), [(0, 0), (1, 1), (63, 1), (64, 1), (65, 2), (128, 2), (129, 3)])
def test_pages_are_taken_as_they_are_used(length: int, pages: int) -> None:
    cache, backend = made()
    s = Sequence()
    write(cache, s, list(range(length)))
    assert len(s.pages) == len(backend.live) == pages
    cache.reserve(s, length)
    assert len(backend.live) == pages
    cache.free(s)
    assert (s.length, s.pages, backend.live) == (0, [], [])
    cache.free(s)


@pytest.mark.parametrize(("length", "pages"), [(200, 3), (129, 3), (128, 2), (64, 1), (1, 1), (0, 0)])
def test_truncate(length: int, pages: int) -> None:
    cache, backend = made()
    s = Sequence()
    write(cache, s, list(range(130)))
    cache.truncate(s, length)
    assert (len(s.pages), len(backend.live), s.length) == (pages, pages, min(length, 130))
    assert content(s) == list(range(s.length))


def test_a_fork_shares_until_one_writes() -> None:
    cache, backend = made()
    a = Sequence()
    write(cache, a, list(range(100)))
    b = cache.fork(a)
    assert len(backend.live) == 2
    write(cache, b, [7])
    assert len(backend.live) == 3  # only the partial page was copied
    write(cache, a, [8])
    assert len(backend.live) == 3  # the other is alone by now
    assert (content(a)[100:], content(b)[100:]) == ([8], [7])
    cache.free(a)
    assert content(b) == [*range(100), 7]
    cache.free(b)
    assert not backend.live


def test_a_fork_takes_no_page_that_was_only_reserved() -> None:
    cache, backend = made()
    a = Sequence()
    cache.reserve(a, 100)
    b = cache.fork(a)
    assert (b.pages, len(backend.live)) == ([], 2)


def test_no_memory_leaves_a_sequence_as_it_was() -> None:
    cache, backend = made()
    a = Sequence()
    write(cache, a, list(range(70)))
    b = cache.fork(a)
    backend.room = 2
    with pytest.raises(MemoryError):
        cache.reserve(b, 71)
    assert content(a) == content(b) == list(range(70))
    backend.room = 3
    with pytest.raises(MemoryError):
        cache.reserve(b, 500)
    cache.truncate(b, b.length)  # as the engine does
    assert content(b) == list(range(70))
    cache.free(a)
    cache.free(b)
    assert not backend.live


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["write", "fork", "truncate", "free"]), st.integers(0, 9), st.integers(0, 150))
)


@settings(deadline=None, max_examples=100)
@given(ACTIONS)
def test_any_history(actions: list[tuple[str, int, int]]) -> None:
    """Sequences hold what was written to them, whatever became of those they were forked from."""
    cache, backend = made()
    held: list[tuple[Sequence, list[int]]] = [(Sequence(), [])]
    for number, (action, which, n) in enumerate(actions):
        s, values = held[which % len(held)]
        if action == "write":
            new = [1000 * number + i for i in range(n)]
            write(cache, s, new)
            values += new
        elif action == "fork":
            held.append((cache.fork(s), values[:]))
        else:
            n = n if action == "truncate" else 0
            cache.truncate(s, n)
            del values[n:]
    for s, values in held:
        assert content(s) == values
        assert len(s.pages) == -(-len(values) // PAGE)
        cache.free(s)
    assert not backend.live
