"""What a user calls: load, generate, stream, logits, and the life of a model."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from small import TINY, break_embedding, middle_file, run_python, tiny_file

import tinyslm
from tinyslm import OptionError
from tinyslm.sampling import log_probabilities

PROMPTS = ["hello", "one two", "a b c d e f", "x" * 70, "hello"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_file(tmp_path_factory.mktemp("api"))


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[tinyslm.Model]:
    with tinyslm.load(path) as model:
        yield model


@pytest.fixture(scope="module")
def middle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tinyslm.Model]:
    with tinyslm.load(middle_file(tmp_path_factory.mktemp("middle"))) as model:
        yield model


def idle(model: tinyslm.Model) -> None:
    while model._scheduler._thread is not None:
        time.sleep(0.001)


# ---- text ----


def test_a_str_gives_a_str_and_a_list_a_list(model: tinyslm.Model) -> None:
    assert isinstance(model.generate("hello", max_tokens=4), str)
    assert [type(t) for t in model.generate(["hello", "one"], max_tokens=4)] == [str, str]
    assert model.generate([]) == []
    assert model.generate(("hello",), max_tokens=3, seed=1) == [model.generate("hello", max_tokens=3, seed=1)]


@pytest.mark.parametrize("options", [{"temperature": 0}, {"seed": 7}, {"seed": 7, "repeat_penalty": 1.3, "top_k": 0}])
def test_a_list_equals_one_by_one(model: tinyslm.Model, options: dict[str, float]) -> None:
    seed = int(options.pop("seed", 0))
    together = model.generate(PROMPTS, max_tokens=30, seed=seed, **options)
    assert together == [model.generate(p, max_tokens=30, seed=seed + i, **options) for i, p in enumerate(PROMPTS)]


def test_seeds(model: tinyslm.Model) -> None:
    a, b, c = (model.generate("hello", seed=s, temperature=3.0, top_k=0, top_p=1.0, min_p=0.0) for s in (1, 1, 2))
    assert a == b != c
    assert model.generate("hello", temperature=3.0) != model.generate("hello", temperature=3.0)


def test_eight_threads_get_the_texts_that_they_get_alone(model: tinyslm.Model) -> None:
    alone = [model.generate(p, max_tokens=40, seed=i) for i, p in enumerate(PROMPTS)]
    texts: dict[int, str] = {}

    def client(n: int) -> None:
        for i in range(len(PROMPTS)):
            which = (n + i) % len(PROMPTS)
            texts[n * 10 + which] = model.generate(PROMPTS[which], max_tokens=40, seed=which)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {n * 10 + i: alone[i] for n in range(8) for i in range(len(PROMPTS))}


def test_stream_is_generate_in_pieces(model: tinyslm.Model) -> None:
    stream = model.stream("hello", max_tokens=50, seed=3, ignore_eos=True)
    pieces = list(stream)
    assert "".join(p.text for p in pieces) == model.generate("hello", max_tokens=50, seed=3, ignore_eos=True)
    assert (len(pieces), stream.drawn, stream.finish) == (50, 50, "length")
    assert stream.seed == 3
    assert stream.prompt_tokens == len(model.tokenizer.encode("hello"))
    assert next(stream, None) is None


def test_stream_without_logprobs(model: tinyslm.Model) -> None:
    with_them = list(model.stream("Once", max_tokens=8, seed=1))
    without = list(model.stream("Once", max_tokens=8, seed=1, logprobs=False))
    assert [p.token for p in without] == [p.token for p in with_them]
    assert {p.logprob for p in without} == {None}


def test_logprobs_are_those_of_the_logits(model: tinyslm.Model) -> None:
    ids = model.tokenizer.encode("hello")
    for piece in model.stream("hello", max_tokens=5, seed=3, repeat_penalty=1.2, ignore_eos=True):
        assert piece.logprob == pytest.approx(log_probabilities(model.logits(ids, last=1)[0])[piece.token], abs=1e-6)
        ids.append(piece.token)


def test_greedy_takes_the_most_likely(model: tinyslm.Model) -> None:
    ids = model.tokenizer.encode("hello")
    tokens = [p.token for p in model.stream("hello", max_tokens=8, temperature=0, ignore_eos=True)]
    for token in tokens:
        logits = model.logits(ids, last=1)[0]
        logits[list(model.tokenizer.eog)] = -np.inf
        assert token == logits.argmax()
        ids.append(token)


def test_logit_bias_and_ends(model: tinyslm.Model) -> None:
    (end,) = model.tokenizer.eog
    stream = model.stream("hello", logit_bias={end: 1e9}, max_tokens=9)
    assert (list(stream), stream.finish, stream.drawn) == ([], "end", 1)
    stream = model.stream("hello", logit_bias={end: 1e9}, max_tokens=9, ignore_eos=True)
    assert (end in [p.token for p in stream], stream.finish) == (False, "length")
    assert {p.token for p in model.stream("hello", logit_bias={77: 1e9}, max_tokens=3)} == {77}


def test_stop(model: tinyslm.Model) -> None:
    whole = model.generate("hello", max_tokens=40, seed=5, ignore_eos=True)
    for stop in (whole[10:13], [whole[20:22], whole[9:14]], whole[:1]):
        stops = [stop] if isinstance(stop, str) else stop
        expected = whole[: min(whole.index(s) for s in stops)]
        assert model.generate("hello", max_tokens=40, seed=5, ignore_eos=True, stop=stop) == expected


def test_a_full_context(model: tinyslm.Model) -> None:
    """The last token drawn need not fit: nothing comes after it."""
    ids = model.tokenizer.encode("7" * 400)
    text = "7" * (400 - (len(ids) - model.context))
    assert len(model.tokenizer.encode(text)) == model.context
    stream = model.stream(text, max_tokens=9, ignore_eos=True)
    assert (len(list(stream)), stream.finish) == (1, "context")
    stream = model.stream(text[2:], max_tokens=9, ignore_eos=True)
    assert (len(list(stream)), stream.finish) == (3, "context")
    with pytest.raises(tinyslm.PromptTooLongError) as caught:
        model.generate(text + "7")
    assert (caught.value.tokens, caught.value.context) == (model.context + 1, model.context)
    assert str(model.context + 1) in str(caught.value)


# ---- numbers ----


def test_logits(model: tinyslm.Model) -> None:
    ids = np.arange(200) * 7 % TINY.vocab
    logits = model.logits(ids)
    assert logits.shape == (200, TINY.vocab)
    assert logits.dtype == np.float32
    assert (model.logits(ids.tolist(), last=3) == logits[-3:]).all()
    assert (model.logits(ids[:70]) == logits[:70]).all()


@pytest.mark.parametrize(
    "ids", [[], [-1], [TINY.vocab], [1.5], ["1"], [True], [None], [1, 2**70], list(range(257)), [[1, 2]]]
)
def test_ids_that_cannot_be_used(model: tinyslm.Model, ids: list[int]) -> None:
    with pytest.raises((OptionError, tinyslm.PromptTooLongError)):
        model.logits(ids)


@pytest.mark.parametrize("last", [0, -1, 4, 1.0, "1", True])
def test_last_out_of_range(model: tinyslm.Model, last: int) -> None:
    with pytest.raises(OptionError):
        model.logits([1, 2, 3], last=last)


# ---- options ----


@pytest.mark.parametrize(
    "options",
    [
        {"threads": 0}, {"threads": -1}, {"threads": 1025}, {"threads": 1.0}, {"threads": "2"}, {"threads": True},
        {"context": 0}, {"context": 2**25}, {"chunk": 0}, {"chunk": 2**17}, {"chunk": "8"}, {"backend": "cuda"},
    ],
)  # fmt: skip
def test_load_options_out_of_range(path: Path, options: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        tinyslm.load(path, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 0}, {"max_tokens": 1.5}, {"max_tokens": "3"}, {"temperature": -1}, {"temperature": "hot"},
        {"temperature": float("nan")}, {"top_p": 2}, {"seed": -1}, {"seed": 2**64}, {"seed": "x"}, {"seed": 1.5},
        {"stop": ""}, {"stop": ["a", ""]}, {"stop": [1]}, {"stop": 5}, {"stop": None}, {"logit_bias": {400: 1.0}},
        {"logit_bias": {-1: 1.0}}, {"logit_bias": 5}, {"logit_bias": 5, "ignore_eos": True}, {"temprature": 1.0},
        {"params": 1},
    ],
)  # fmt: skip
def test_generate_options_out_of_range(model: tinyslm.Model, options: dict[str, object]) -> None:
    for call in (model.generate, model.stream):
        with pytest.raises(OptionError):
            call("hello", **options)  # type: ignore[operator]


@pytest.mark.parametrize("prompt", [5, None, [5], ["a", None], b"ab", [["a"]]])
def test_prompts_that_are_no_text(model: tinyslm.Model, prompt: str) -> None:
    with pytest.raises(OptionError):
        model.generate(prompt)


def test_an_empty_prompt(model: tinyslm.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(model.generate("", max_tokens=2), str)  # there is a token that begins a text
    monkeypatch.setattr(model, "tokenizer", type("None_", (), {"encode": lambda self, text: [], "eog": frozenset()})())
    with pytest.raises(OptionError, match="empty"):
        model.generate("")


def test_load_options(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    with tinyslm.load(str(path), threads=3, context=100, chunk=7, progress=shares.append) as model:
        assert (model.threads, model.context) == (3, 100)
        assert shares[-1] == 1
        assert shares == sorted(shares)
        with pytest.raises(tinyslm.PromptTooLongError):
            model.logits(range(101))
    with pytest.warns(UserWarning, match="beyond"), tinyslm.load(path, context=1000) as model:
        assert model.logits(np.arange(300) % 99, last=1).shape == (1, TINY.vocab)
    monkeypatch.setenv("TINYSLM_THREADS", "5")
    with tinyslm.load(path) as model:
        assert model.threads == 5


def test_as_many_threads_run_as_were_asked_for(path: Path) -> None:
    if not Path("/proc/self/task").exists():
        pytest.skip("no /proc")
    script = """
import os, sys, time, tinyslm
for threads in 1, 2, 5, 3:
    with tinyslm.load(sys.argv[1], backend="native", threads=threads):
        time.sleep(0.2)  # the threads that loaded are joined, and soon gone
        print(len(os.listdir("/proc/self/task")))
"""
    assert run_python(script, path, OPENBLAS_NUM_THREADS="1").split() == ["1", "2", "5", "3"]


def test_the_tokenizer_is_built_while_weights_are_packed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tinyslm import backends, tokenizer

    building, packed = threading.Event(), threading.Event()
    real_make, real_load = backends.make, tokenizer.load

    def make(*arguments: object) -> object:
        assert building.wait(5)
        made = real_make(*arguments)  # type: ignore[arg-type]
        packed.set()
        return made

    def load(*arguments: object) -> object:
        building.set()
        assert packed.wait(5)
        return real_load(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(backends, "make", make)
    monkeypatch.setattr(tokenizer, "load", load)
    with tinyslm.load(path) as model:
        assert model.tokenizer.vocab_size == TINY.vocab


# ---- what goes wrong ----


def test_broken_weights_end_those_alone_whose_tokens_they_are(tmp_path: Path) -> None:
    broken = tiny_file(tmp_path)
    with tinyslm.load(broken) as model:
        token = model.tokenizer.encode("z", bos=False)[0]
        prompts = ["hello", "one z", "a b c d e f"]
        sound = model.generate(prompts, max_tokens=9, seed=1, logit_bias={token: -np.inf})
    break_embedding(broken, token)
    with tinyslm.load(broken) as model:
        texts: dict[int, object] = {}

        def client(i: int) -> None:
            try:
                texts[i] = model.generate(prompts[i], max_tokens=9, seed=1 + i, logit_bias={token: -np.inf})
            except tinyslm.NonFiniteError as error:
                texts[i] = error

        threads = [threading.Thread(target=client, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (texts[0], texts[2]) == (sound[0], sound[2])
        assert isinstance(texts[1], tinyslm.NonFiniteError)
        with pytest.raises(tinyslm.NonFiniteError):
            model.logits([1, 2, token])


def test_no_memory_for_pages(model: tinyslm.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def scarce() -> object:
        raise MemoryError("no page")

    expected = model.generate("hello", seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(
            model._scheduler.engine.backend, "new_page", lambda: (_ for _ in ()).throw(MemoryError("no page"))
        )
        with pytest.raises(MemoryError):
            model.generate("hello", seed=1)
    assert model.generate("hello", seed=1) == expected


# ---- stopping ----


def within(seconds: float, since: float) -> None:
    assert time.monotonic() - since < seconds


def test_a_stream_closed_early(model: tinyslm.Model) -> None:
    stream = model.stream("hello", max_tokens=200, ignore_eos=True)
    next(stream)
    stream.close()
    assert list(stream) == []
    idle(model)
    for _ in model.stream("hello", max_tokens=200, ignore_eos=True):
        break
    idle(model)
    unused = model.stream("hello")
    unused.close()
    assert list(unused) == []


@pytest.mark.parametrize("prompt", ["ab " * 700, "ab"])
def test_another_thread_closes_a_stream(middle: tinyslm.Model, prompt: str) -> None:
    best = 9.0
    for _ in range(3):  # others may hold the processors
        stream, caught = middle.stream(prompt, max_tokens=500, ignore_eos=True), list[BaseException]()

        def read(stream: tinyslm.Stream = stream, caught: list[BaseException] = caught) -> None:
            try:
                list(stream)
            except tinyslm.CancelledError as error:
                caught.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        time.sleep(0.3)
        since = time.monotonic()
        stream.close()
        thread.join()
        idle(middle)
        best = min(best, time.monotonic() - since)
        assert caught
    assert best < 0.2


@pytest.mark.parametrize(("prompt", "method"), [("ab " * 700, "generate"), ("ab", "generate"), ("ab " * 700, "logits")])
def test_ctrl_c(middle: tinyslm.Model, prompt: str, method: str) -> None:
    ids = middle.tokenizer.encode(prompt)
    expected = middle.logits(ids[:20], last=1)
    best = 9.0
    for _ in range(3):
        sent: list[float] = []

        def interrupt(sent: list[float] = sent) -> None:
            time.sleep(0.3)
            sent.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)

        def call() -> None:
            threading.Thread(target=interrupt).start()
            if method == "logits":
                middle.logits(ids, last=1)
            else:
                middle.generate(prompt, max_tokens=900, ignore_eos=True)

        with pytest.raises(KeyboardInterrupt):
            call()
        answered = time.monotonic() - sent[0]
        idle(middle)
        best = min(best, max(answered, time.monotonic() - sent[0]))
    assert (middle.logits(ids[:20], last=1) == expected).all()
    assert best < 0.2


# ---- life ----


def test_closing(path: Path) -> None:
    with tinyslm.load(path) as model:
        model.generate("hello", max_tokens=2)
    model.close()
    for call in (lambda: model.generate("hello"), lambda: model.logits([1]), lambda: list(model.stream("hello"))):
        with pytest.raises(tinyslm.ClosedError):
            call()
    assert model.tokenizer.encode("hello")


def test_closing_while_others_generate(path: Path) -> None:
    model = tinyslm.load(path)
    ends: list[str] = []

    def client() -> None:
        try:
            while True:
                model.generate(PROMPTS, max_tokens=100, ignore_eos=True)
        except (tinyslm.CancelledError, tinyslm.ClosedError) as error:
            ends.append(type(error).__name__)

    threads = [threading.Thread(target=client) for _ in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    model.close()
    for thread in threads:
        thread.join(10)
    assert len(ends) == 6


def test_pickle(path: Path) -> None:
    with tinyslm.load(path, threads=1, context=99, chunk=7) as model:
        expected = model.generate("hello", seed=1)
        text = pickle.dumps(model)
    for again in (text, pickle.dumps(model)):  # a closed one comes back open
        with pickle.loads(again) as copy:
            assert (copy.threads, copy.context, copy._scheduler.rows) == (1, 99, 7)
            assert copy.generate("hello", seed=1) == expected


def test_models_that_are_dropped_give_all_back(tmp_path: Path) -> None:
    path = tiny_file(tmp_path, tinyslm.shapes.Shape(4, 512, 8, 4, 1536, 400, 256, True))
    script = """
import gc, os, sys, time, tinyslm
gc.disable()
def used():
    time.sleep(0.2)  # a thread that was joined is soon gone
    rss = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return rss, len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))
for i in range(25):
    model = tinyslm.load(sys.argv[1])
    model.generate("hello", max_tokens=3)
    stream = model.stream("hello", max_tokens=99, ignore_eos=True)
    next(stream)
    if i % 2: model.close()
    del model, stream
    if i == 4: before = used()
after = used()
print(after[0] - before[0], after[1] - before[1], after[2] - before[2])
"""
    if not Path("/proc/self/statm").exists():
        pytest.skip("no /proc")
    memory, threads, files = map(int, run_python(script, path).split())
    assert memory < path.stat().st_size  # of twenty models
    assert (threads, files) == (0, 0)


def test_the_end_of_the_process_while_a_stream_runs(path: Path) -> None:
    script = """
import sys, threading, tinyslm
model = tinyslm.load(sys.argv[1])
stream = model.stream("hello", max_tokens=200, ignore_eos=True)
next(stream)
threading.Thread(target=lambda: [model.generate("hello", max_tokens=200) for _ in range(99)], daemon=True).start()
print("end")
"""
    for _ in range(5):
        assert run_python(script, path, timeout=20) == "end\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_fork(path: Path, backend: str) -> None:
    """While nothing runs, while a generation runs in another thread, and in the midst of an own stream."""
    script = """
import os, sys, threading, time, warnings, tinyslm
warnings.simplefilter("ignore")
model = tinyslm.load(sys.argv[1], backend=sys.argv[2], threads=2)
n = 30 if sys.argv[2] == "native" else 3
expected = model.generate("hello", seed=1, max_tokens=n)
busy = threading.Thread(target=lambda: [model.generate("x " * 40, max_tokens=n) for _ in range(3)])
for case in range(3):
    stream = model.stream("hello", seed=1, max_tokens=5 * n, ignore_eos=True)
    if case == 1:
        busy.start()
        time.sleep(0.01)
    if case == 2: next(stream)
    pid = os.fork()
    if not pid:
        code = 0
        if case == 2:
            try: list(stream); code = 3
            except tinyslm.CancelledError: pass
        if model.generate("hello", seed=1, max_tokens=n) != expected: code = 4
        model.close()
        os._exit(code)
    assert model.generate("hello", seed=1, max_tokens=n) == expected
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), len(list(stream)) == 5 * n - (case == 2))
busy.join()
"""
    assert run_python(script, path, backend) == "0 True\n" * 3


def test_threads_that_start_and_stop_a_lot(model: tinyslm.Model) -> None:
    """The scheduler's thread ends whenever there is nothing to do; nobody may slip in between unseen."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        threads = [
            threading.Thread(target=lambda: [model.logits([1, 2], last=1) for _ in range(200)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
