"""Requests and the scheduler, on a backend that counts: token t is followed by t + 1."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tinyslm import scheduler
from tinyslm.backends.base import Batch
from tinyslm.engine import Engine, Work
from tinyslm.errors import CancelledError, ClosedError, NonFiniteError
from tinyslm.kvcache import Sequence
from tinyslm.ops import Program
from tinyslm.scheduler import GenerateRequest, LogitsRequest, Request, Scheduler

VOCAB, POISON = 100, 99  # a step that takes the token POISON finds it not finite
PROGRAM = Program((), (), (), (), VOCAB, 1000)


class Counting:
    """A backend that notes what it is asked for; `before` is called at the start of each step."""

    name, page_bytes, maxima, burst = "counting", 64, None, None

    def __init__(self, before: Callable[[Batch], None] = lambda batch: None) -> None:
        self.before, self.batches, self.pages, self.closed = before, list[Batch](), set[object](), 0
        self.cancelled = threading.Event()

    def step(self, batch: Batch, logits: np.ndarray) -> np.ndarray:
        self.batches.append(batch)
        self.before(batch)
        if self.cancelled.is_set():
            self.cancelled.clear()
            raise CancelledError("the step was cancelled")
        logits[...] = -(np.abs(np.arange(VOCAB) - batch.ids[batch.outputs, None] - 1) % VOCAB)
        return batch.ids == POISON

    def new_page(self) -> object:
        page = object()
        self.pages.add(page)
        return page

    def free_page(self, page: object) -> None:
        self.pages.remove(page)

    def copy_page(self, target: object, source: object) -> None: ...

    def cancel(self) -> None:
        self.cancelled.set()

    def close(self) -> None:
        self.closed += 1


class Greedy:
    seed = 0

    def draw(
        self, logits: np.ndarray, index: int, recent: object, logprob: bool, maxima: None
    ) -> tuple[int, float | None]:
        return int(logits.argmax()), -1.0 if logprob else None


class Scripted:
    """Draws given tokens, whatever the logits."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens

    def draw(
        self, logits: np.ndarray, index: int, recent: object, logprob: bool, maxima: None
    ) -> tuple[int, float | None]:
        return self.tokens[index], None


class Texts:
    """A decoder whose token i stands for texts[i]."""

    def __init__(self, texts: list[str] | None = None, rest: str = "") -> None:
        self.texts, self.rest = texts or [f"{i} " for i in range(VOCAB)], rest

    def push(self, token: int) -> str:
        return self.texts[token]

    def flush(self) -> str:
        return self.rest


def counting(
    first: int, n: int = 5, prompt: int = 1, stop: tuple[str, ...] = (), ends: tuple[int, ...] = (), context: int = 1000
) -> GenerateRequest:
    ids = [first] * prompt
    return GenerateRequest(ids, Greedy(), Texts(), frozenset(ends), stop, n, context, False)  # type: ignore[arg-type]


def text(request: Request) -> str:
    return "".join(piece.text for piece in request.results())


def made(rows: int = 16, before: Callable[[Batch], None] = lambda batch: None) -> tuple[Scheduler, Counting]:
    backend = Counting(before)
    return Scheduler(Engine(PROGRAM, backend), rows), backend


def idle(s: Scheduler) -> None:
    """Wait until the thread has gone."""
    end = time.monotonic() + 5
    while s._thread is not None:
        assert time.monotonic() < end
        time.sleep(0.001)


def left(request: Request) -> list[Any]:
    out = []
    while not request.events.empty():
        out.append(request.events.get())
    return out


# ---- stop texts ----


def answer(texts: list[str], stop: tuple[str, ...], rest: str = "", end: bool = False) -> tuple[list[str], str]:
    """The pieces and the finish of an answer whose tokens have these texts."""
    n = len(texts)
    request = GenerateRequest(
        [0], Scripted(list(range(n + end))), Texts(texts, rest), frozenset({n}), stop, n + end, 1000, False
    )  # type: ignore[arg-type]
    while not request.accept(np.zeros((1, 1), np.float32), None):
        pass
    return [piece.text for piece in left(request)], request.finish


@pytest.mark.parametrize(
    ("texts", "stop", "expected", "finish"),
    [
        (["ab", "cd", "ef"], ("xyz",), "abcdef", "length"),
        (["ab", "cd", "ef"], ("bc",), "a", "stop"),  # across a border
        (["a", "b", "c", "d"], ("bcd",), "a", "stop"),  # across three
        (["ab", "cd"], ("a",), "", "stop"),
        (["ab", "ab", "ac"], ("abac",), "ab", "stop"),  # the first start is a false one
        (["a", "a", "a", "b"], ("aab",), "a", "stop"),
        (["abc", "d"], ("cd", "b"), "a", "stop"),  # the first in the text, whatever the order
        (["abcd"], ("cd", "b"), "a", "stop"),
        (["ab", "c"], ("abc", "b"), "a", "stop"),  # a longer one has begun, a shorter is complete
        (["x", "€", "ü"], ("€ü",), "x", "stop"),
        (["x", "€", "u"], ("€ü",), "x€u", "length"),  # what was held comes out
        (["a", "b"], ("bc",), "ab", "length"),  # the end comes first
        (["one\n", "\n", "two"], ("\n\n",), "one", "stop"),
    ],
)
def test_stop(texts: list[str], stop: tuple[str, ...], expected: str, finish: str) -> None:
    pieces, why = answer(texts, stop)
    assert ("".join(pieces), why) == (expected, finish)


def test_what_may_become_a_stop_text_is_held_and_no_more() -> None:
    assert answer(["xab", "c", "y"], ("abz",))[0] == ["x", "abc", "y"]


def test_an_end_token_lets_out_what_was_held() -> None:
    assert answer(["ab"], ("bc",), end=True) == (["a", "b"], "end")
    assert answer(["ab"], ("b�",), rest="�", end=True) == (["a", ""], "stop")


def test_a_character_that_is_never_completed_comes_out_at_the_end() -> None:
    assert answer(["a"], (), rest="�") == (["a�"], "length")


# ---- how it ends ----


def test_ends() -> None:
    s, _ = made()
    for request, expected, finish in [
        (counting(3, 4), "4 5 6 7 ", "length"),
        (counting(3, 9, ends=(6,)), "4 5 ", "end"),
        (counting(3, 9, stop=("5 6",)), "4 ", "stop"),
        (counting(3, 9, prompt=7, context=9), "4 5 6 ", "context"),  # the last one drawn has no place in the context
        (counting(3, 9, prompt=9, context=9), "4 ", "context"),
    ]:
        s.submit(request)
        assert (text(request), request.finish) == (expected, finish)
    s.close()


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 64])
def test_many_at_once_of_any_chunk(rows: int) -> None:
    s, backend = made(rows)
    requests = [counting(i, 5, prompt=1 + i % 4 * 5) for i in range(90)]
    s.submit(*requests)
    for i, request in enumerate(requests):
        expected = [min(i + 1 + n, VOCAB - 1) for n in range(5)]
        assert text(request) == "".join(f"{t} " for t in expected)
    idle(s)
    assert not backend.pages
    assert max(len(b.ids) for b in backend.batches) <= rows
    assert max(len(b.pages) for b in backend.batches) > min(rows, scheduler.MOST_RUNNING) // 2  # together


def test_logits_rows_come_in_order() -> None:
    for n, last, rows in [(10, 10, 3), (10, 4, 3), (10, 1, 3), (3, 3, 16), (7, 7, 1)]:
        s, backend = made(rows)
        out = np.full((last, VOCAB), np.nan, np.float32)
        request = LogitsRequest(list(range(n)), out)
        s.submit(request)
        assert list(request.results()) == []
        assert out.argmax(1).tolist() == [i + 1 for i in range(n)][-last:]
        s.close()
        assert not backend.pages


# ---- what goes wrong ----


def test_a_value_that_is_not_finite_ends_its_own_sequence_alone() -> None:
    s, backend = made()
    bad, good = counting(POISON, 3), [counting(i, 3) for i in (1, 2)]
    s.submit(good[0], bad, good[1])
    with pytest.raises(NonFiniteError):
        text(bad)
    assert [text(r) for r in good] == ["2 3 4 ", "3 4 5 "]
    idle(s)
    assert not backend.pages


def test_no_memory_for_a_page() -> None:
    s, backend = made()
    pages = iter([True, True, False])
    real = backend.new_page

    def scarce() -> object:
        if not next(pages, True):
            raise MemoryError("no page")
        return real()

    backend.new_page = scarce  # type: ignore[method-assign]
    requests = [counting(1, 3), counting(2, 3), counting(3, 3)]
    s.submit(*requests)
    for request in requests:
        with pytest.raises(MemoryError):
            text(request)
    idle(s)
    assert not backend.pages
    again = counting(1, 3)
    s.submit(again)
    assert text(again) == "2 3 4 "


def test_a_step_that_fails_leaves_sequences_as_they_were() -> None:
    s, backend = made()
    sequence = Sequence()
    s.engine.step([Work(sequence, np.zeros(60, np.int32), 0)], np.empty((0, VOCAB), np.float32))
    backend.cancel()
    with pytest.raises(CancelledError):
        s.engine.step([Work(sequence, np.zeros(200, np.int32), 0)], np.empty((0, VOCAB), np.float32))
    assert (sequence.length, len(sequence.pages), len(backend.pages)) == (60, 1, 1)


def test_a_step_that_fails_ends_all_of_its_requests_and_no_later_one() -> None:
    failures = iter([ValueError("broken")])

    def before(batch: Batch) -> None:
        for error in failures:
            raise error

    s, backend = made(before=before)
    requests = [counting(i, 3) for i in range(3)]
    s.submit(*requests)
    for request in requests:
        with pytest.raises(ValueError, match="broken"):
            text(request)
    idle(s)
    assert not backend.pages
    last = counting(4, 2)
    s.submit(last)
    assert text(last) == "5 6 "


def test_a_draw_that_fails_ends_its_own_request_alone() -> None:
    s, _ = made()
    broken, good = counting(1, 3), counting(2, 3)
    broken.decoder.texts = []  # type: ignore[attr-defined]
    s.submit(broken, good)
    with pytest.raises(IndexError):
        text(broken)
    assert text(good) == "3 4 5 "


def test_no_thread_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    s, _ = made()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda self: (_ for _ in ()).throw(RuntimeError("no thread")))
        lost = counting(1, 3)
        with pytest.raises(RuntimeError):
            s.submit(lost)
    s.cancel(lost)
    later = counting(2, 3)
    s.submit(later)
    assert text(later) == "3 4 5 "


# ---- cancelling and closing ----


def blocked() -> tuple[Scheduler, Counting, threading.Event, threading.Event]:
    """A scheduler whose step waits for a cancel or for `go`, and an event that tells when one has begun."""
    begun, go = threading.Event(), threading.Event()

    def before(batch: Batch) -> None:
        begun.set()
        while not go.wait(0.001) and not backend.cancelled.is_set():
            pass

    s, backend = made(before=before)
    return s, backend, begun, go


def test_cancel_ends_one_and_the_others_go_on() -> None:
    s, backend, begun, go = blocked()
    one, other = counting(1, 3), counting(2, 3)
    s.submit(one, other)
    assert begun.wait(5)
    s.cancel(one)
    with pytest.raises(CancelledError):
        text(one)
    go.set()
    assert text(other) == "3 4 5 "
    idle(s)
    assert not backend.pages
    assert not left(one)


def test_cancel_before_submitting_and_after_the_end() -> None:
    s, _ = made()
    early = counting(1, 3)
    s.cancel(early)
    s.submit(early)
    with pytest.raises(CancelledError):
        text(early)
    late = counting(1, 3)
    s.submit(late)
    assert text(late) == "2 3 4 "
    s.cancel(late)
    idle(s)
    assert not left(late)
    s.close()


def test_close_ends_running_and_waiting_and_is_idempotent() -> None:
    s, backend, begun, _ = blocked()
    requests = [counting(1, 3) for _ in range(scheduler.MOST_RUNNING + 9)]
    s.submit(*requests)
    assert begun.wait(5)
    threads = [threading.Thread(target=s.close) for _ in range(3)]
    for thread in threads:
        thread.start()
    for request in requests:
        with pytest.raises(CancelledError):
            text(request)
    for thread in threads:
        thread.join(5)
    s.close()
    assert backend.closed == 1
    assert not backend.pages
    with pytest.raises(ClosedError):
        s.submit(counting(1))


def test_closing_within_the_thread_itself() -> None:
    """As the garbage collector may do, in the midst of whatever holds the lock."""
    s, backend = made()
    request, waiting = counting(1, 3), counting(2, 9)
    real = s.engine.cache.free

    def free(sequence: Any) -> None:
        real(sequence)
        with s._lock:
            s.cancel(waiting)
            s.close()

    s.engine.cache.free = free  # type: ignore[method-assign]
    s.submit(request, waiting)
    assert text(request) == "2 3 4 "
    with pytest.raises(CancelledError):
        text(waiting)
    assert backend.closed == 1


def test_every_request_gets_exactly_one_end() -> None:
    """Eight threads submit, cancel and close as they like while steps fail at random."""
    rng = np.random.default_rng(0)

    def before(batch: Batch) -> None:
        if rng.random() < 0.1:
            raise [MemoryError("no"), ValueError("no"), CancelledError("no")][rng.integers(3)]

    s, backend = made(rows=6, before=before)
    ends: list[int] = []

    def client(seed: int) -> None:
        own = np.random.default_rng(seed)
        for _ in range(40):
            request = counting(int(own.integers(0, VOCAB)), int(own.integers(1, 6)), prompt=int(own.integers(1, 20)))
            s.submit(request)
            if own.random() < 0.3:
                s.cancel(request)
            while isinstance(event := request.events.get(timeout=10), scheduler.Piece):
                pass
            assert event is None or isinstance(event, Exception)
            assert not left(request)
            ends.append(seed)

    threads = [threading.Thread(target=client, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(ends) == 8 * 40
    idle(s)
    assert not backend.pages
