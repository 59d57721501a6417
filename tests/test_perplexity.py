"""Perplexity and comparison: against a plain definition, llama.cpp's numbers, and as a user meets the verb."""

from __future__ import annotations

import json
import math
import os
import pty
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import ROOT, STORIES, TINY, break_embedding, tiny_file

from tinyslm import FileError, NonFiniteError, OptionError, perplexity, shapes
from tinyslm.formats import BY_NAME
from tinyslm.gguf import GGUF, TensorInfo
from tinyslm.gguf_writer import TensorData, write
from tinyslm.perplexity import Scorer, Scores, measure, score, score_beside, windows

needs_stories = pytest.mark.skipif(not STORIES.is_dir(), reason="the real model is not here")
TEXT = "Some words, and numbers such as 12 or 345; then a new line\nand so on. " * 5


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same random model in two types, and so with other probabilities."""
    first = tiny_file(tmp_path_factory.mktemp("perplexity"), kind="F16")
    second = first.with_name("tiny-Q4_0.gguf")
    with GGUF.open(first) as file:
        write(second, file.metadata, [rounded(file, tensor) for tensor in file.tensors.values()])
    return first, second


def rounded(file: GGUF, tensor: TensorInfo) -> TensorData:
    """Matrices in Q4_0."""
    blocks, kind = file.read(tensor), BY_NAME["Q4_0" if len(tensor.shape) > 1 else tensor.format.name]
    return TensorData(tensor.name, tensor.shape, kind.id, kind.quantise(tensor.format.dequantise(blocks)))


@pytest.fixture(scope="module")
def both(files: tuple[Path, Path]) -> Iterator[tuple[Scorer, Scorer]]:
    with Scorer(files[0], threads=1) as a, Scorer(files[1], threads=2) as b:
        yield a, b


def log_softmax(row: np.ndarray) -> list[float]:
    total = math.log(math.fsum(math.exp(x) for x in row.tolist()))
    return [x - total for x in row.tolist()]


def mean(values: list[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.pstdev(values) / math.sqrt(len(values) - 1)


def plainly(model: Scorer, text: str, c: int) -> tuple[list[list[float]], list[int]]:
    """Log-probabilities of all tokens at each scored position, and the tokens that came."""
    tokenizer, rows, came = model.tokenizer, list[list[float]](), list[int]()
    ids = tokenizer.encode(text)
    for start in range(0, len(ids) - c + 1, c):
        window = [tokenizer.bos, *ids[start + 1 : start + c]]
        logits = model.model.logits(window)
        for at in range(c // 2, c - 1):
            rows.append(log_softmax(logits[at]))
            came.append(window[at + 1])
    return rows, came


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("c", "block", "piece"), [(64, 16 << 20, 1 << 16), (33, 4 * 400 * 5, 400 * 2), (8, 1, 1)])
def test_as_defined(
    files: tuple[Path, Path], both: tuple[Scorer, Scorer], monkeypatch: pytest.MonkeyPatch, c: int, block: int,
    piece: int, turned: bool,
) -> None:  # fmt: skip
    if turned:
        files, both = files[::-1], both[::-1]
    monkeypatch.setattr(perplexity, "BLOCK_BYTES", block)
    monkeypatch.setattr(perplexity, "PIECE", piece)
    rows, came = plainly(both[0], TEXT, c)
    base_rows, _ = plainly(both[1], TEXT, c)
    with Scorer(files[0], threads=2, batch=20) as model, Scorer(files[1], threads=1, batch=20) as base:
        found = measure(model, windows(model, TEXT, c), base=base)
    nll, base_nll = ([-row[t] for row, t in zip(of, came, strict=True)] for of in (rows, base_rows))
    m, e = mean(nll)
    assert len(nll) == found.tokens == found.windows * (c - 1 - c // 2) > 20
    assert found.nll == pytest.approx((m, e), rel=1e-9)
    assert found.perplexity == pytest.approx((math.exp(m), math.exp(m) * e), rel=1e-9)
    other = found.comparison
    assert other
    base_m, base_e = mean(base_nll)
    assert other.base_perplexity == pytest.approx((math.exp(base_m), math.exp(base_m) * base_e), rel=1e-9)
    assert other.log_ratio == pytest.approx(mean([a - b for a, b in zip(nll, base_nll, strict=True)]), rel=1e-6)
    ratio, error = math.exp(m - base_m), other.log_ratio.error
    assert other.ratio == pytest.approx((ratio, ratio * error), rel=1e-9)
    assert other.correlation == pytest.approx(statistics.correlation(nll, base_nll), rel=1e-9)
    covariance = other.correlation * e * base_e
    p, q = math.exp(m), math.exp(base_m)
    error = math.sqrt((p * e) ** 2 + (q * base_e) ** 2 - 2 * p * q * covariance)
    assert other.difference == pytest.approx((p - q, error), rel=1e-6)
    kl = [
        math.fsum(math.exp(b) * (b - a) for a, b in zip(*pair, strict=True))
        for pair in zip(rows, base_rows, strict=True)
    ]
    assert other.kl == pytest.approx(mean(kl), rel=1e-6)
    tails = [other.kl_median, other.kl_99, other.kl_999, other.kl_max]
    assert tails == pytest.approx([*np.quantile(kl, [0.5, 0.99, 0.999]), max(kl)], rel=1e-6)
    same = [float(a.index(max(a)) == b.index(max(b))) for a, b in zip(rows, base_rows, strict=True)]
    assert 0 < other.same_top.value < 1
    assert other.same_top == pytest.approx(mean(same), rel=1e-9)
    change = [math.exp(-a) - math.exp(-b) for a, b in zip(nll, base_nll, strict=True)]
    assert other.mean_probability_difference == pytest.approx(mean(change), rel=1e-6)
    square, error = mean([x * x for x in change])
    assert other.rms_probability_difference == pytest.approx((square**0.5, error / 2 / square**0.5), rel=1e-6)
    assert other.max_probability_difference == pytest.approx(max(map(abs, change)), rel=1e-6)


# llama.cpp (llama-cpp-python 0.3.36), its logits summed as its perplexity tool does: tokens, perplexity, its error.
LLAMA = {64: (93, 1.91269, 0.13918), 33: (96, 2.38904, 0.26316)}
# Q5_1 beside F32, windows of 64: perplexity, KL divergence, its error, RMS of the probabilities' differences
LLAMA_Q5_1 = (1.96087, 0.010410, 0.0013045, 0.046073)


@needs_stories
def test_llama_cpps_numbers() -> None:
    text = json.loads((STORIES / "stories260K-f32.golden.json").read_text())["greedy_text"]
    with Scorer(STORIES / "stories260K-f32.gguf") as base, Scorer(STORIES / "stories260K-Q5_1.gguf") as model:
        for c, expected in LLAMA.items():
            found = measure(base, windows(base, text, c))
            assert (found.tokens, *found.perplexity) == pytest.approx(expected, rel=4e-4)  # it rounds q to f16, say
        found = measure(model, windows(model, text, 64), base=base)
        assert found.comparison
        got = (found.perplexity.value, *found.comparison.kl, found.comparison.rms_probability_difference.value)
        assert got == pytest.approx(LLAMA_Q5_1, rel=0.04)  # activations are rounded otherwise
        assert got[0] == pytest.approx(LLAMA_Q5_1[0], rel=1e-3)


def test_the_same_model_is_not_apart(both: tuple[Scorer, Scorer]) -> None:
    model = both[0]
    found = measure(model, windows(model, TEXT, 40), base=model).comparison
    assert found
    assert (found.kl, found.kl_max, found.same_top, found.ratio) == ((0, 0), 0, (1, 0), (1, 0))
    assert (found.rms_probability_difference, found.difference) == ((0, 0), (0, 0))


def test_logits_far_out() -> None:
    """Neither far from 0 nor far from one another do they overflow, and small divergences keep their digits."""
    x = np.array([[3e4, 3e4 - 1, -3e4], [-5e3, -5e3, -5e3]], np.float32)
    found = score(x, np.array([1, 2]))
    assert found == pytest.approx(np.array([[1 + math.log1p(math.exp(-1)), math.log(3)]]), rel=1e-12)
    base = np.zeros((1, 2), np.float32)
    near = np.array([[1e-4, 0]], np.float32)
    kl = score_beside(near, base, np.array([0]))[2, 0]
    delta = float(near[0, 0])
    assert kl == pytest.approx(delta**2 / 8, rel=1e-6)  # ln cosh(δ / 2), the series' first term


def test_logits_come_in_bounded_blocks(both: tuple[Scorer, Scorer], monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.arange(3, 103, dtype=np.int32)
    monkeypatch.setattr(perplexity, "BLOCK_BYTES", 4 * TINY.vocab * 7)
    with Scorer(both[0].model.path, batch=16) as model:
        for first in (0, 1, 50, 99):
            blocks = [block.copy() for block in model.logits(ids, first)]
            assert max(map(len, blocks)) <= 7
            np.testing.assert_array_equal(np.concatenate(blocks), both[0].model.logits(ids.tolist(), 100 - first))


def test_windows(both: tuple[Scorer, Scorer]) -> None:
    model = both[0]
    ids = model.tokenizer.encode(TEXT)
    cut = windows(model, TEXT, 50)
    assert len(cut) == len(ids) // 50
    for i, window in enumerate(cut):
        assert window.tolist() == [model.tokenizer.bos, *ids[50 * i + 1 : 50 * i + 50]]
    assert len(windows(model, TEXT)[0]) == model.model.context == 256
    assert len(windows(model, model.tokenizer.decode(ids[:9]), 9)) == 1


def test_what_windows_cannot_be(both: tuple[Scorer, Scorer]) -> None:
    model = both[0]
    with pytest.raises(OptionError, match=r"a window of 257 tokens: tiny-F16\.gguf can have 8 to 256"):
        windows(model, TEXT, 257)
    with pytest.raises(OptionError, match="a window of 7 tokens"):
        windows(model, TEXT, 7)
    n = len(model.tokenizer.encode("some words"))
    with pytest.raises(OptionError, match=rf"the text has {n} tokens, a window needs 99: .* at most {n}$"):
        windows(model, "some words", 99)
    with pytest.raises(OptionError, match=r"the text has 1 tokens, a window needs 256: a longer text is wanted$"):
        windows(model, "")


def test_running_estimate_is_that_of_the_windows_so_far(both: tuple[Scorer, Scorer]) -> None:
    seen: list[tuple[Any, Any]] = []
    measure(
        both[0], windows(both[0], TEXT, 30), progress=lambda s: seen.append((s.perplexity(), s.result().perplexity))
    )
    assert len(seen) > 3
    for running, exact in seen:
        assert running == pytest.approx(exact, rel=1e-9)
    assert len({exact for _, exact in seen}) == len(seen)


def test_one_scored_token_has_no_error() -> None:
    scores = Scores()
    scores.add(np.array([[2.0]]))
    assert scores.perplexity().value == pytest.approx(math.exp(2))
    assert math.isnan(scores.result().nll.error)


def test_other_vocabulary(both: tuple[Scorer, Scorer], tmp_path: Path) -> None:
    shapes.make(tmp_path / "other.gguf", shapes.Shape(1, 64, 4, 2, 96, 401, 64, False), "F16")
    with (
        Scorer(tmp_path / "other.gguf") as other,
        pytest.raises(OptionError, match="different vocabularies: 400 and 401 tokens"),
    ):
        measure(both[0], windows(both[0], TEXT, 30), base=other)
    with GGUF.open(both[0].model.path) as file:
        tokens = list(file.metadata["tokenizer.ggml.tokens"])
        tokens[300:302] = tokens[301], tokens[300]
        tensors = [TensorData(t.name, t.shape, t.type, file.read(t)) for t in file.tensors.values()]
        write(tmp_path / "other.gguf", {**file.metadata, "tokenizer.ggml.tokens": tokens}, tensors)
    with Scorer(tmp_path / "other.gguf") as other, pytest.raises(OptionError, match=r"token 300 is '.*' and '.*'$"):
        measure(both[0], windows(both[0], TEXT, 30), base=other)


def test_pages_are_given_back(both: tuple[Scorer, Scorer], monkeypatch: pytest.MonkeyPatch) -> None:
    backend, held = both[0]._engine.backend, list[Any]()
    new, free = backend.new_page, backend.free_page
    monkeypatch.setattr(backend, "new_page", lambda: held.append(page := new()) or page)
    monkeypatch.setattr(backend, "free_page", lambda page: (held.remove(page), free(page)))
    most = 0
    for _ in both[0].logits(np.arange(3, 203, dtype=np.int32), 150):
        most = len(held)
    assert (most, held) == (4, [])
    next(both[0].logits(np.arange(3, 203, dtype=np.int32), 150))
    assert held == []


def test_a_broken_model_is_told(tmp_path: Path) -> None:
    path = tiny_file(tmp_path)
    with Scorer(path) as model:
        token = int(windows(model, TEXT, 30)[0][2])
    break_embedding(path, token)
    with Scorer(path) as model, pytest.raises(NonFiniteError, match="no finite number"):
        measure(model, windows(model, TEXT, 30))


def test_a_missing_file() -> None:
    with pytest.raises(FileError, match="no such file"):
        Scorer("nowhere.gguf")


# ---- the verb ----

COMMAND = [sys.executable, "-m", "tinyslm", "perplexity"]
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "TINYSLM"))}
ENVIRONMENT |= {"PYTHONPATH": str(ROOT), "TERM": "xterm"}


def verb(*args: object, stdin: bytes = b"", code: int = 0) -> tuple[str, str]:
    """stdout and stderr of the verb."""
    done = subprocess.run(
        [*COMMAND, *map(str, args)], input=stdin, env=ENVIRONMENT, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == code, done
    return done.stdout.decode(), done.stderr.decode()


def test_the_verb(files: tuple[Path, Path], both: tuple[Scorer, Scorer], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT + "\n")
    expected = measure(both[0], windows(both[0], TEXT, 48), base=both[1])
    args = ("-m", files[0], "--base", files[1], "-c", 48)
    out, said = verb(*args, "-f", text)
    assert said == ""
    p, other = expected.perplexity, expected.comparison
    assert other
    assert out.startswith(f"perplexity            {p.value:.4f} ± {p.error:.4f}")
    assert f"{expected.tokens} tokens in windows of 48: {expected.windows}\n" in out
    assert f"KL divergence         {other.kl.value:.6f} ± {other.kl.error:.6f}" in out
    assert f"same likeliest token  {100 * other.same_top.value:.2f} ± {100 * other.same_top.error:.2f}%\n" in out
    out, said = verb(*args, "-f", "-", "--json", stdin=TEXT.encode())
    found = json.loads(out)
    assert said == ""
    assert (found["model"], found["base"], found["text"]) == (str(files[0]), str(files[1]), "-")
    assert (found["windows"], found["windows_of_text"], found["context"]) == (expected.windows, expected.windows, 48)
    assert (found["perplexity"], found["perplexity_error"]) == p
    assert (found["kl"], found["kl_error"], found["kl_99"]) == (*other.kl, other.kl_99)
    assert (found["same_top"], found["same_top_error"]) == other.same_top
    out, _ = verb("-m", files[0], "-f", text)
    assert out.count("\n") == 1


def test_activations(both: tuple[Scorer, Scorer]) -> None:
    """Rounding them costs less in short blocks than in long ones; without, only the arithmetic differs."""
    path, found = both[1].model.path, dict[int, float]()
    for block in (0, 32):
        with Scorer(path, activations=block) as model, Scorer(path, activations=0) as base:
            found[block] = measure(model, windows(model, TEXT, 60), base=base).comparison.kl.value  # type: ignore[union-attr]
    assert found[0] == 0 < found[32] < 1e-3
    with Scorer(path, activations=0) as base:
        engine = measure(both[1], windows(base, TEXT, 60), base=base).comparison
    assert engine
    assert found[32] / 2 < engine.kl.value < found[32] * 2


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (("-f", "short.txt", "--activations", "f16"), 2, "'f16' is no whole number"),
        (("-f", "short.txt", "--activations", "33"), 1, "activations=33: must be a multiple of"),
        (("-f", "short.txt", "--activations", "f32", "--backend", "native"), 1, "need the numba backend, not 'native'"),
        (("-f", "short.txt", "--base-activations", "f32"), 2, "--base-activations is of --base"),
        (("-f", "none.txt"), 1, r"none\.txt: No such file or directory"),
        (("-f", "latin.txt"), 1, r"latin\.txt: the text is not UTF-8 at byte 3"),
        (("-f", "short.txt"), 1, r"the text has \d+ tokens, a window needs 256: "),
        (("-f", "short.txt", "-c", "300"), 1, "a window of 300 tokens: .* can have 8 to 256"),
        (("-f", "short.txt", "-c", "0"), 2, "must be a number from 1 to"),
        (("-f", "short.txt", "-c", "x"), 2, "'x' is no whole number"),
        (("-f", "short.txt", "--base", "none.gguf"), 1, r"none\.gguf: no such file"),
        ((), 2, "the following arguments are required: -f/--file"),
    ],
)
def test_wrong_use(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], code: int,
    told: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    Path("short.txt").write_text("a short text")
    out, said = verb("-m", files[0], *args, code=code)
    assert (out, said.count("\n")) == ("", 1)
    assert re.search(told, said), said


@pytest.mark.skipif(sys.platform == "win32", reason="signals and terminals are POSIX's")
def test_ctrl_c_prints_what_there_is(tmp_path: Path) -> None:
    shapes.make(tmp_path / "slow.gguf", shapes.Shape(8, 512, 8, 8, 2048, 2000, 512, True), "Q8_0")
    (tmp_path / "long.txt").write_text(TEXT * 2000)
    master, slave = pty.openpty()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it reaches one in the background too
    try:
        process = subprocess.Popen([*COMMAND, "-m", tmp_path / "slow.gguf", "-f", tmp_path / "long.txt", "--json"],
                                   env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=slave)  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)
    os.close(slave)
    shown = b""
    with process:
        while not re.search(rb"perplexity [\d.]+ \xc2\xb1 [\d.]+  window \d+/\d+, \d+ s left  \[#* +\] \d+%", shown):
            shown += os.read(master, 4096)
        process.send_signal(signal.SIGINT)
        begin = time.monotonic()
        out, _ = process.communicate(timeout=20)
        assert time.monotonic() - begin < 1
    os.close(master)
    found = json.loads(out)
    assert process.returncode == 130
    assert 0 < found["windows"] < found["windows_of_text"]
    assert found["tokens"] == 255 * found["windows"]
