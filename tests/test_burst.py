"""Steps that C takes and draws from by itself: the same as one by one, whatever ends them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import break_embedding, tiny_file

import tinyslm
from tinyslm import scheduler
from tinyslm.backends import native

PROMPTS = ["hello", "one two", "a b c d e f", "x" * 70, "hello"]
WILD = {"temperature": 3.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
Answer = tuple[list[scheduler.Piece], str, str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tinyslm.Model]:
    with tinyslm.load(tiny_file(tmp_path_factory.mktemp("burst")), backend="native") as model:
        yield model


class Bursts:
    """Runs requests with bursts of up to `most` steps, whatever they take, and notes how many each took."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch, self.taken, self.works = patch, list[int](), list[int]()

    def of(self, model: tinyslm.Model, most: int) -> None:
        engine = model._scheduler.engine
        burst = type(engine).burst
        self.taken.clear()

        def noted(works: Any, *args: Any) -> Any:
            drawn = burst(engine, works, *args)
            self.taken.append(len(drawn[0]))
            self.works.append(len(works))
            assert all(w.sequence.length <= model.context for w in works)
            return drawn

        self.patch.setattr(scheduler, "PATIENCE", 1e9 if most > 1 else 0)
        self.patch.setattr(scheduler, "MOST_AHEAD", most)
        self.patch.setattr(engine, "burst", noted)


@pytest.fixture
def bursts(monkeypatch: pytest.MonkeyPatch) -> Bursts:
    return Bursts(monkeypatch)


def answers(model: tinyslm.Model, prompts: list[str], **options: Any) -> list[Answer]:
    """What each prompt gives, all running together: pieces, why it ended, and the error."""
    requests = [model._request(model._encoded(p), i, True, {"seed": 5, **options}) for i, p in enumerate(prompts)]
    model._scheduler.submit(*requests)
    out = []
    for request in requests:
        pieces, error = list[scheduler.Piece](), ""
        try:
            pieces.extend(request.results())
        except tinyslm.TinySLMError as raised:
            error = str(raised)
        out.append((pieces, request.finish, error))
    return out


OPTIONS = [
    {"temperature": 0},
    {},
    WILD,
    {**WILD, "repeat_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": 0.25},
    {**WILD, "repeat_penalty": 2.0, "repeat_last_n": 5},
    {**WILD, "logit_bias": {7: 3.0, 9: -np.inf}},
    {"max_tokens": 1},
    {"max_tokens": 2},
    {"max_tokens": 500},
]


@pytest.mark.parametrize("most", [2, 7, 64])
@pytest.mark.parametrize("options", OPTIONS)
def test_bursts_change_nothing(model: tinyslm.Model, bursts: Bursts, options: dict[str, Any], most: int) -> None:
    """max_tokens 500 fills the context; without ignore_eos, random weights end where they like."""
    options = {"max_tokens": 40, **options}
    for ignore_eos in (True, False):
        for prompts in (PROMPTS, PROMPTS[:1]):
            bursts.of(model, 1)
            one_by_one = answers(model, prompts, ignore_eos=ignore_eos, **options)
            assert not bursts.taken
            bursts.of(model, most)
            assert answers(model, prompts, ignore_eos=ignore_eos, **options) == one_by_one
            assert max(bursts.taken, default=0) <= most
            if ignore_eos and len(prompts) == 1:  # the prompt's own step draws the first
                assert sum(bursts.taken) >= len(one_by_one[0][0]) - 2


def test_an_end_token_ends_a_burst(model: tinyslm.Model, bursts: Bursts) -> None:
    bursts.of(model, 64)
    end = next(iter(model.tokenizer.eog))
    ((pieces, finish, _),) = answers(model, ["hello"], **WILD, logit_bias={end: 4.0}, max_tokens=200)
    assert finish == "end"
    assert 0 < bursts.taken[-1] < 63
    assert sum(bursts.taken) <= len(pieces) + 1


def test_a_stop_text_within_a_burst(model: tinyslm.Model, bursts: Bursts) -> None:
    options = {**WILD, "ignore_eos": True, "max_tokens": 60}
    bursts.of(model, 1)
    whole = "".join(p.text for p in answers(model, ["hello"], **options)[0][0])
    for at in (5, len(whole) // 3, len(whole) // 2):
        stop = whole[at : at + 3]
        bursts.of(model, 64)
        ((pieces, finish, _),) = answers(model, ["hello"], **options, stop=stop)
        assert ("".join(p.text for p in pieces), finish) == (whole[: whole.index(stop)], "stop")
        assert max(bursts.taken) > len(pieces)  # it did go past the stop


def test_what_is_kept_after_a_stop_within_a_burst(model: tinyslm.Model, bursts: Bursts) -> None:
    """The tokens past the stop leave the sequence, so that the next turn reads the same past."""

    def talk(most: int) -> list[tuple[list[scheduler.Piece], int, int]]:
        out = []
        kept = model._scheduler.keep()
        history = model.tokenizer.encode("hello")
        for turn in range(3):
            bursts.of(model, most)
            options = {**WILD, "ignore_eos": True, "max_tokens": 50, "seed": turn, "stop": ["e", "t", "a"]}
            request = model.answer_request(history, True, options)
            request.kept, request.sequence = kept, kept.sequence
            model._scheduler.submit(request)
            pieces = list(request.results())
            assert kept.ids == request.history[: kept.sequence.length]
            out.append((pieces, request.reused, kept.sequence.length))
            history = request.history + model.tokenizer.encode(" and", bos=False)
        model._scheduler.discard(kept)
        return out

    assert talk(64) == talk(1)


def test_a_value_that_is_not_finite_within_a_burst(tmp_path: Path, bursts: Bursts) -> None:
    """Prompt 0 draws the broken token itself, in the midst of a burst; the other goes on."""
    path = tiny_file(tmp_path)
    options = {**WILD, "ignore_eos": True, "max_tokens": 40}
    with tinyslm.load(path, backend="native") as model:
        sound = answers(model, PROMPTS[:2], **options)
    drawn, other = ([p.token for p in pieces] for pieces, _, _ in sound)
    at = next(i for i in range(6, 30) if drawn[i] not in other and drawn.index(drawn[i]) == i)
    break_embedding(path, drawn[at])
    with tinyslm.load(path, backend="native") as model:
        assert drawn[at] not in model._encoded(PROMPTS[0]) + model._encoded(PROMPTS[1])
        for most in (1, 64):
            bursts.of(model, most)
            first, second = answers(model, PROMPTS[:2], **options)
            assert [p.token for p in first[0]] == drawn[: at + 1]
            assert first[2] == scheduler.NOT_FINITE
            assert second == sound[1]
    assert bursts.taken[1] == 0  # it gave up before the step that failed, which was then taken by itself


def test_cancelled_within_a_burst(model: tinyslm.Model, bursts: Bursts) -> None:
    options = {**WILD, "ignore_eos": True, "max_tokens": 200}
    bursts.of(model, 1)
    alone = answers(model, ["one two"], **options)[0][0]
    bursts.of(model, 64)
    engine = model._scheduler.engine
    inner, begun, go = engine.burst, threading.Event(), threading.Event()

    def waiting(*args: Any) -> Any:
        begun.set()
        assert go.wait(5)
        return inner(*args)

    bursts.patch.setattr(engine, "burst", waiting)
    leaves = model._request(model._encoded("hello"), 0, True, options)
    stays = model._request(model._encoded("one two"), 0, True, {**options, "seed": 5})
    model._scheduler.submit(leaves, stays)
    assert begun.wait(5)
    model._scheduler.cancel(leaves)
    go.set()
    with pytest.raises(tinyslm.CancelledError):
        list(leaves.results())
    assert list(stays.results()) == alone


def test_how_many_steps_follow_from_how_long_one_takes(model: tinyslm.Model, bursts: Bursts) -> None:
    """Of steps of 3 ms, seven fit into 21 to 23 ms."""
    bursts.of(model, 64)
    bursts.patch.setattr(scheduler, "PATIENCE", 0.022)
    clock = [0.0]
    engine = model._scheduler.engine
    step, burst = engine.step, engine.burst

    def slow_step(*args: Any) -> Any:
        clock[0] += 0.003
        return step(*args)

    def slow_burst(*args: Any) -> Any:
        drawn = burst(*args)
        clock[0] += 0.003 * len(drawn[0])
        return drawn

    bursts.patch.setattr(engine, "step", slow_step)
    bursts.patch.setattr(engine, "burst", slow_burst)
    bursts.patch.setattr(scheduler, "time", type("Clock", (), {"perf_counter": staticmethod(lambda: clock[0])}))
    answers(model, ["hello"], max_tokens=40, ignore_eos=True)
    assert bursts.taken == [7] * 5 + [4]  # after the prompt's step


def test_other_backends_step_one_by_one(tmp_path: Path, bursts: Bursts) -> None:
    with tinyslm.load(tiny_file(tmp_path), backend="reference") as model:
        bursts.of(model, 64)
        assert len(answers(model, ["hello"], max_tokens=3, ignore_eos=True)[0][0]) == 3
        assert not bursts.taken


def test_a_new_request_joins_between_bursts(model: tinyslm.Model, bursts: Bursts) -> None:
    bursts.of(model, 3)
    options = {"max_tokens": 180, "ignore_eos": True, "seed": 5}
    alone = [answers(model, [p], **options)[0][0] for p in PROMPTS[:2]]
    first = model._request(model._encoded(PROMPTS[0]), 0, True, options)
    second = model._request(model._encoded(PROMPTS[1]), 0, True, options)
    model._scheduler.submit(first)
    begun = time.monotonic()
    while not first.drawn:
        assert time.monotonic() - begun < 5
    model._scheduler.submit(second)
    assert [list(r.results()) for r in (first, second)] == alone
    assert 2 in bursts.works


def test_a_cancel_between_two_steps_of_a_burst_keeps_what_was_drawn(model: tinyslm.Model, bursts: Bursts) -> None:
    """The flag is set once the burst has begun to write what it draws; the others' tokens are not stepped again."""
    options = {**WILD, "ignore_eos": True, "max_tokens": 200}
    bursts.of(model, 1)
    alone = answers(model, ["one two"], **options)[0][0]
    bursts.of(model, 64)
    real, cancelled = native.lib, list[int]()

    class Library:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def slm_burst(self, *args: Any) -> int:
            if cancelled:
                return int(real.slm_burst(*args))
            tokens = args[6]
            tokens[20] = -1  # of step 10, as there are two sequences

            def watch() -> None:
                while tokens[20] == -1:
                    pass
                model._scheduler.cancel(leaves)

            watcher = threading.Thread(target=watch)
            watcher.start()
            cancelled.append(int(real.slm_burst(*args)))
            watcher.join()
            return cancelled[0]

    bursts.patch.setattr(native, "lib", Library())
    bursts.patch.setattr(scheduler, "MOST_AHEAD", 190)
    leaves = model._request(model._encoded("hello"), 0, True, options)
    stays = model._request(model._encoded("one two"), 0, True, {**options, "seed": 5})
    model._scheduler.submit(leaves, stays)
    with pytest.raises(tinyslm.CancelledError):
        list(leaves.results())
    assert list(stays.results()) == alone
    assert cancelled[0] >= 10
    assert sum(bursts.taken) <= 200


def test_a_new_request_does_not_wait_for_the_end_of_a_burst(model: tinyslm.Model, bursts: Bursts) -> None:
    """It comes once others have been admitted and before the burst: the worst moment."""
    options = {**WILD, "ignore_eos": True, "max_tokens": 100}
    bursts.of(model, 1)
    alone = [answers(model, [p], **options)[0][0] for p in PROMPTS[:2]]
    bursts.of(model, 64)
    engine = model._scheduler.engine
    inner, late = engine.burst, [model._request(model._encoded(PROMPTS[1]), 0, True, {**options, "seed": 5})]
    first, second = model._request(model._encoded(PROMPTS[0]), 0, True, {**options, "seed": 5}), late[0]

    def meanwhile(*args: Any) -> Any:
        if late:
            model._scheduler.submit(late.pop())
        return inner(*args)

    bursts.patch.setattr(engine, "burst", meanwhile)
    model._scheduler.submit(first)
    assert [list(r.results()) for r in (first, second)] == alone
    assert bursts.taken[0] == 1
    assert max(bursts.taken) > 1


def test_answers_that_nobody_reads_as_they_come_are_drawn_for_longer(model: tinyslm.Model, bursts: Bursts) -> None:
    bursts.of(model, 64)
    bursts.patch.setattr(scheduler, "PATIENCE", 0)
    options: dict[str, Any] = {"max_tokens": 40, "ignore_eos": True, "seed": 5}
    streamed = "".join(p.text for p in model.stream("hello", **options))
    assert model.generate("hello", stop=["no such text"], **options) == streamed
    assert not bursts.taken
    assert model.generate("hello", **options) == streamed
    assert bursts.taken


def test_a_page_that_is_not_to_be_had_ends_nothing_before_it_is_needed(model: tinyslm.Model, bursts: Bursts) -> None:
    options = {**WILD, "ignore_eos": True, "max_tokens": 120}
    counts = []
    for most in (1, 64):
        bursts.of(model, most)
        backend = model._scheduler.engine.backend
        real, pages = backend.new_page, iter([True])

        def scarce(real: Any = real, pages: Iterator[bool] = pages) -> Any:
            if not next(pages, False):
                raise MemoryError("no page")
            return real()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(backend, "new_page", scarce)
            request = model._request(model._encoded("hello"), 0, True, options)
            model._scheduler.submit(request)
            with pytest.raises(MemoryError):
                list(request.results())
            counts.append(request.drawn)
    assert counts[0] == counts[1] > 50


def test_the_first_token_waits_for_no_burst(model: tinyslm.Model, bursts: Bursts) -> None:
    bursts.of(model, 64)
    answers(model, ["hello"], max_tokens=9)
    bursts.of(model, 64)
    request = model.answer_request(
        model.tokenizer.encode("a", bos=False)[:1], False, {"max_tokens": 64, "ignore_eos": True}
    )
    model._scheduler.submit(request)
    assert len(list(request.results())) == 64
    assert bursts.taken[0] == 63


def test_whether_log_probabilities_are_wanted_may_be_anything(model: tinyslm.Model, bursts: Bursts) -> None:
    bursts.of(model, 8)
    for wanted in (None, "yes"):
        pieces = list(model.stream("hello", logprobs=wanted, max_tokens=20, ignore_eos=True))  # type: ignore[arg-type]
        assert {p.logprob is None for p in pieces} == {not wanted}
