"""Requests: queue, admit, step, retire. A thread of the scheduler steps while there is work; callers wait."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from types import NoneType

import numpy as np

from .backends.base import MOST_RUNNING, Draw
from .engine import Engine, Work
from .errors import CancelledError, ClosedError, NonFiniteError
from .kvcache import Sequence
from .sampler import Sampler
from .tokenizer import Decoder

PATIENCE = 1 / 20  # seconds of steps that may pass before a reader is given what was drawn: to the eye it flows
UNREAD_PATIENCE = 1 / 2  # the same where nobody reads before the answer is whole; new requests do not wait for it
MOST_AHEAD = 64  # and the most steps
NOT_FINITE = "a value of the model became infinite or no number: the weights are broken or overflow"


@dataclass(frozen=True)
class Piece:
    """One generated token. `text` is what became printable with it (often its own, sometimes none or more)."""

    text: str
    token: int
    logprob: float | None = None


class Kept:
    """A sequence that outlives its requests, so that the next one steps only what is new; `ids` are what it holds.

    One request at a time may run on it.
    """

    def __init__(self) -> None:
        self.sequence, self.ids = Sequence(), list[int]()


class Request:
    """Something that wants tokens stepped. `ids` are those left; the scheduler's thread owns all but `cancelled`.

    reused: of its ids, how many a kept sequence held already.
    """

    def __init__(self, ids: list[int], kept: Kept | None = None) -> None:
        self.sequence, self.cancelled = kept.sequence if kept else Sequence(), False
        self.kept, self.reused = kept, 0
        self.ids = np.array(ids, np.int32)
        self.events: SimpleQueue[Piece | BaseException | None] = SimpleQueue()

    def outputs(self, taken: int) -> int:
        """Of how many of the next `taken` ids the logits are wanted: the last ones."""
        raise NotImplementedError

    def most_ahead(self) -> int:
        """How many steps may be taken before it is asked again: more than one only by requests that draw."""
        return 1

    def patience(self) -> float:
        """Seconds of steps that may pass before it is given what they found."""
        return PATIENCE

    def accept(self, logits: np.ndarray, maxima: np.ndarray | None) -> bool:
        """Take the logits of a step, float32 (outputs, vocabulary), and the backend's maxima of them; True when the
        request is done."""
        raise NotImplementedError

    def results(self) -> Iterator[Piece]:
        """Pieces as they come. Raises what the request failed with."""
        while (event := self.events.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event


class LogitsRequest(Request):
    """Wants the logits of the last rows of `out`, float32 (last, vocabulary)."""

    def __init__(self, ids: list[int], out: np.ndarray) -> None:
        super().__init__(ids)
        self.out, self.filled = out, 0

    def outputs(self, taken: int) -> int:
        before = len(self.ids) - taken  # ids that a later step takes
        return max(0, min(taken, len(self.out) - self.filled - before))

    def rows(self, n: int) -> np.ndarray:
        """Where the next n rows of logits go."""
        return self.out[self.filled : self.filled + n]

    def accept(self, logits: np.ndarray, maxima: np.ndarray | None) -> bool:
        self.filled += len(logits)
        return self.filled == len(self.out)


class GenerateRequest(Request):
    """Wants tokens drawn until an end token, a stop text, `max_tokens`, or the end of the context.

    unread: nobody reads its pieces before the last one is there.
    """

    def __init__(
        self, ids: list[int], sampler: Sampler, decoder: Decoder, ends: frozenset[int], stop: tuple[str, ...],
        max_tokens: int, context: int, logprob: bool, kept: Kept | None = None,
    ) -> None:  # fmt: skip
        super().__init__(ids, kept)
        self.sampler, self.decoder, self.ends, self.stop = sampler, decoder, ends, stop
        self.history, self.drawn, self.held, self.logprob = list(ids), 0, "", logprob
        self.finish = ""  # why it ended: "end", "stop", "length" or "context"
        self.max_tokens, self.context, self.unread = max_tokens, context, False

    def patience(self) -> float:  # what is drawn past a stop text is drawn for nothing
        return UNREAD_PATIENCE if self.unread and not self.stop else PATIENCE

    def outputs(self, taken: int) -> int:
        return int(taken == len(self.ids))

    def accept(self, logits: np.ndarray, maxima: np.ndarray | None) -> bool:
        first = None if maxima is None else maxima[0]
        return self.take(*self.sampler.draw(logits[0], self.drawn, self.history, self.logprob, first))

    def most_ahead(self) -> int:
        if not self.drawn:  # the prompt's steps; and nobody waits longer than need be for the first token
            return 1
        return min(self.max_tokens - self.drawn, self.context + 1 - len(self.history))

    def ahead(self) -> Draw:
        return self.sampler.ahead(self.drawn, self.history, self.logprob, list(self.ends))

    def take(self, token: int, logprob: float | None) -> bool:
        """Go on with a token that was drawn; True when the request is done."""
        self.history.append(token)
        self.drawn += 1
        if token in self.ends:
            self.finish = "end"
            if rest := self.held + self.decoder.flush():
                self.events.put(Piece(self._before_stop(rest), token, logprob))
            return True
        self.held += self.decoder.push(token)
        if self.drawn == self.max_tokens:
            self.finish = "length"
        elif len(self.history) > self.context:
            self.finish = "context"
        if self.finish:
            self.held += self.decoder.flush()
        text = self._release()
        self.events.put(Piece(text, token, logprob))
        self.ids = np.array([token], np.int32)
        return bool(self.finish)

    def _before_stop(self, text: str) -> str:
        """The text up to the first stop text in it."""
        at = min((i for s in self.stop if (i := text.find(s)) >= 0), default=-1)
        if at < 0:
            return text
        self.finish = "stop"
        return text[:at]

    def _release(self) -> str:
        """Of the held text, what can no longer be part of a stop text."""
        text = self._before_stop(self.held)
        keep = 0
        if not self.finish:
            keep = max((n for s in self.stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]


class Scheduler:
    """Runs requests on an engine, `rows` tokens a step at most. Any thread may submit and cancel."""

    def __init__(self, engine: Engine, rows: int) -> None:
        self.engine, self.rows = engine, rows
        self._logits = np.empty((0, engine.program.vocab), np.float32)
        self._closed, self._halt = False, np.zeros(1, np.int32)
        self._seconds = float("inf")  # that a step took, the last time
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._kept: set[Kept] = set()
        self._discarded: list[Kept] = []
        self.forget()

    def forget(self) -> None:
        """Start with no requests and no thread; after a fork, the parent's stay with the parent."""
        # reentrant: the garbage collector may close a stream or a model while its own thread holds the lock
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        for request in (*self._waiting, *self._running):
            self.engine.cache.free(request.sequence)
            request.events.put(CancelledError("the process forked: the request goes on in the parent"))
        self._waiting.clear()
        self._running.clear()

    def submit(self, *requests: Request) -> None:
        """Queue requests, so that those given together run together. Raises ClosedError."""
        with self._lock:
            if self._closed:
                raise ClosedError("the model is closed")
            self._waiting.extend(requests)
            self._halt[0] = 1  # of a burst that is running
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="tinyslm", daemon=True)
                try:
                    self._thread.start()
                except BaseException:  # no thread to be had, or Ctrl-C: should it run after all, it is not the one
                    self._thread = None
                    raise

    def cancel(self, *requests: Request) -> None:
        """End requests soon; whoever waits for them gets CancelledError."""
        for request in requests:
            request.cancelled = True
        with self._lock:
            self._halt[0] = 1
            if any(r in self._running for r in requests):
                self.engine.cancel()

    def keep(self) -> Kept:
        """An empty sequence that lives until it is discarded, or all is closed. Raises ClosedError."""
        with self._lock:
            if self._closed:
                raise ClosedError("the model is closed")
            kept = Kept()
            self._kept.add(kept)
            return kept

    def discard(self, kept: Kept) -> None:
        """Give back what a kept sequence holds; a request on it has ended, or was cancelled."""
        with self._lock:
            if kept in self._kept:
                self._kept.remove(kept)
                self._discarded.append(kept)
            if self._thread is None:
                self._free_discarded()

    def _free_discarded(self) -> None:
        while self._discarded:
            self.engine.cache.free(self._discarded.pop().sequence)

    def close(self) -> None:
        """Cancel all, wait for the step to end, free the memory. Idempotent."""
        with self._lock:
            already, self._closed, thread = self._closed, True, self._thread
            everything = (*self._waiting, *self._running)
        if already:
            return
        self.cancel(*everything)
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        for kept in (*self._kept, *self._discarded):
            self.engine.cache.free(kept.sequence)
        self.engine.close()

    # ---- the thread ----

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._thread is not threading.current_thread():
                    return
                self._admit()
                if not self._running:
                    self._thread = None
                    return
            try:
                self._step()
            except CancelledError:
                continue  # the cancelled requests leave as the next are admitted
            except BaseException as error:
                for request in list(self._running):
                    self._retire(request, error)

    def _admit(self) -> None:
        for request in [r for r in self._running if r.cancelled]:
            self._retire(request, CancelledError("the request was cancelled"))
        self._free_discarded()
        self._halt[0] = 0
        while self._waiting and len(self._running) < min(MOST_RUNNING, self.rows):
            request = self._waiting.popleft()
            if request.cancelled:
                request.events.put(CancelledError("the request was cancelled"))
            else:
                self._resume(request)
                self._running.append(request)

    def _resume(self, request: Request) -> None:
        """Cut a kept sequence to what the request begins with, less the last id, whose logits are wanted."""
        if request.kept is None:
            return
        held = np.array(request.kept.ids[: request.sequence.length], np.int32)
        most = min(len(held), len(request.ids) - 1)
        differ = np.flatnonzero(held[:most] != request.ids[:most])
        request.reused = int(differ[0]) if len(differ) else most
        self.engine.cache.truncate(request.sequence, request.reused)
        request.kept.ids = request.kept.ids[: request.reused]
        request.ids = request.ids[request.reused :]

    def _retire(self, request: Request, error: BaseException | None = None) -> None:
        with self._lock:
            self._running.remove(request)
        if request.kept is None or not isinstance(error, (CancelledError, NoneType)):
            self.engine.cache.free(request.sequence)
        request.events.put(error)

    def _plan(self) -> list[tuple[Request, Work]]:
        """What the next step takes: one token of all that decode, then of the others' prompts what still fits.

        A request for logits goes by itself, so that they are written straight to where they are wanted.
        """
        alone = next((r for r in self._running if isinstance(r, LogitsRequest)), None)
        left, plan = self.rows, []
        for request in [alone] if alone else sorted(self._running, key=lambda r: len(r.ids) > 1):
            taken = min(left, len(request.ids))
            if taken:
                plan.append((request, Work(request.sequence, request.ids[:taken], request.outputs(taken))))
            left -= taken
        return plan

    def _step(self) -> None:
        plan, begun = self._plan(), time.perf_counter()
        patience = min(request.patience() for request, _ in plan)
        steps = min(MOST_AHEAD, int(patience / max(self._seconds, 1e-6)), *(r.most_ahead() for r, _ in plan))
        done = self._step_ahead(plan, steps) if steps > 1 and self.engine.backend.burst else 0
        if not done:
            self._step_once(plan)
        self._seconds = (time.perf_counter() - begun) / max(done, 1)

    def _step_ahead(self, plan: list[tuple[Request, Work]], steps: int) -> int:
        """Up to so many steps in C, of requests that all decode; returns how many were taken."""
        requests = [request for request, _ in plan if isinstance(request, GenerateRequest)]
        draws = [request.ahead() for request in requests]
        try:
            drawn = self.engine.burst([work for _, work in plan], self._room(len(plan)), draws, steps, self._halt)
        except MemoryError:  # a single step may do with the pages that there are
            return 0
        for request, tokens in zip(requests, drawn, strict=True):
            self._advance(request, partial(self._take, request, tokens))
        return len(drawn[0])

    def _take(self, request: GenerateRequest, tokens: list[tuple[int, float | None]]) -> bool:
        done = any(request.take(token, logprob) for token, logprob in tokens)
        if request.kept is not None:  # what came after its end is forgotten
            self.engine.cache.truncate(request.sequence, len(request.history) - 1)
            request.kept.ids += request.history[len(request.kept.ids) : -1]
        return done

    def _room(self, outputs: int) -> np.ndarray:
        if len(self._logits) < outputs:
            self._logits = np.empty((outputs, self.engine.program.vocab), np.float32)
        return self._logits[:outputs]

    def _step_once(self, plan: list[tuple[Request, Work]]) -> None:
        outputs = sum(work.outputs for _, work in plan)
        first = plan[0][0]
        logits = first.rows(outputs) if isinstance(first, LogitsRequest) else self._room(outputs)
        finite = self.engine.step([work for _, work in plan], logits)
        maxima, at = self.engine.backend.maxima, 0
        for (request, work), good in zip(plan, finite, strict=True):
            request.ids = request.ids[len(work.ids) :]
            if request.kept is not None:
                request.kept.ids += work.ids.tolist()
            mine = slice(at, at + work.outputs)
            at += work.outputs
            largest = None if maxima is None else maxima[mine]
            self._advance(request, partial(self._accept, request, logits[mine], largest, good))

    def _accept(self, request: Request, logits: np.ndarray, maxima: np.ndarray | None, finite: bool) -> bool:
        if not finite:
            raise NonFiniteError(NOT_FINITE)
        return len(logits) > 0 and request.accept(logits, maxima)

    def _advance(self, request: Request, accept: Callable[[], bool]) -> None:
        """Let a request go on with what a step found; one that is done, or fails, is retired."""
        try:
            done = accept()
        except BaseException as error:
            self._retire(request, error)
        else:
            if done:
                self._retire(request)
