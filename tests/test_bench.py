"""The bench: what is measured and counted, the files that it makes, and the verb."""

from __future__ import annotations

import collections
import csv
import importlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import ROOT, STORIES, TINY, break_embedding, is_writing, tiny_file

from tinyslm import OptionError, bench, shapes
from tinyslm.backends import has_native
from tinyslm.engine import Work
from tinyslm.errors import FileError, NonFiniteError
from tinyslm.formats import BY_NAME
from tinyslm.gguf import GGUF
from tinyslm.kvcache import Sequence

needs_native = pytest.mark.skipif(not has_native(), reason="the C core was not built")
SMALL = 1 << 20  # bytes that the probe reads


# ---- what is measured ----


def test_cases_are_named_as_in_llama_bench() -> None:
    cases = bench.cases([128, 512], [128], [0, 4096], [1, 4])
    assert [c.name for c in cases] == [
        "pp128", "pp512", "tg128", "tg128 x4",
        "pp128 @ d4096", "pp512 @ d4096", "tg128 @ d4096", "tg128 x4 @ d4096",
    ]  # fmt: skip
    assert [c.tokens for c in cases[:4]] == [128, 512, 128, 512]


def test_zero_leaves_a_kind_out() -> None:
    assert [c.name for c in bench.cases([0], [8], [0], [1])] == ["tg8"]
    assert [c.name for c in bench.cases([16], [0], [0], [1, 4])] == ["pp16"]


def test_the_share_is_the_median_of_paired_ratios() -> None:
    probes = [bench.Probe(10e9, 100e9), bench.Probe(40e9, 200e9), bench.Probe(20e9, 400e9)]
    result = bench.Result(bench.Case(0, 2, 0, 4), [10**9, 5 * 10**8, 2 * 10**9], probes, 8e9)
    assert result.rates == [8e9, 16e9, 4e9]
    assert result.share == 0.4  # of 0.8, 0.4 and 0.2; the medians' ratio is another
    assert result.speeds == [8, 16, 4]
    record = result.record()
    assert (record["avg_ts"], record["stddev_ts"]) == (statistics.fmean([8, 16, 4]), statistics.stdev([8, 16, 4]))
    assert (record["gbps"], record["gops"]) == (8, None)
    assert (record["probe_gbps"], record["probe_gops"]) == (20, 200)
    assert (record["samples_ns"], record["samples_ts"]) == ([10**9, 5 * 10**8, 2 * 10**9], [8, 16, 4])


def test_a_prompt_is_held_against_the_integer_rate() -> None:
    result = bench.Result(bench.Case(16, 0), [10**9], [bench.Probe(1e9, 100e9)], 25e9)
    assert (result.share, result.record()["gops"], result.record()["gbps"]) == (0.25, 25, None)


Steps = list[list[tuple[Sequence, int, int, int]]]


def watched(b: bench.Bench, monkeypatch: pytest.MonkeyPatch) -> Steps:
    """The steps that the engine takes: of each work the sequence, its length before, tokens and outputs."""
    steps: Steps = []
    step, burst = b._engine.step, b._engine.burst

    def record(works: list[Work], logits: np.ndarray) -> list[bool]:
        steps.append([(w.sequence, w.sequence.length, len(w.ids), w.outputs) for w in works])
        assert len(logits) == sum(w.outputs for w in works)
        return step(works, logits)

    def record_burst(works: list[Work], *args: Any) -> Any:
        first = [(w.sequence, w.sequence.length, len(w.ids), w.outputs) for w in works]
        drawn = burst(works, *args)
        steps.extend([(s, at + i, n, out) for s, at, n, out in first] for i in range(len(drawn[0])))
        return drawn

    monkeypatch.setattr(b._engine, "step", record)
    monkeypatch.setattr(b._engine, "burst", record_burst)
    return steps


@needs_native
def test_steps_of_a_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = shapes.Shape(1, 64, 4, 2, 96, 400, 2048, False)
    with bench.Bench(tiny_file(tmp_path, shape), 1, limits=SMALL) as b:
        steps = watched(b, monkeypatch)
        result = b.run(bench.Case(600, 0, 70), 2)
    assert [(at, n, out) for [(_, at, n, out)] in steps] == [(0, 70, 1), *[(70, 512, 0), (582, 88, 1)] * 3]
    assert len(result.nanoseconds) == len(result.probes) == 2
    assert result.work == 2 * 600 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64)


@needs_native
def test_steps_of_sequences_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_file(tmp_path)
    with bench.Bench(path, 1, limits=SMALL) as b:
        steps = watched(b, monkeypatch)
        result = b.run(bench.Case(0, 3, 5, 2), 2)
        held = [s.pages[0].memory for s in b._sequences]
        assert len(set(held)) == 2, "sequences that share pages read less memory"
        b.run(bench.Case(0, 1, 5, 1), 1)
        later = steps[2 + 2 + 2 * 3 :]
    assert [[(at, n) for _, at, n, _ in step] for step in steps[:2]] == [[(0, 5)], [(0, 5)]]
    assert [[at for _, at, _, _ in step] for step in steps[2:10]] == [[5 + i] * 2 for i in (0, 1, 0, 1, 2, 0, 1, 2)]
    assert all(n == out == 1 for step in steps[2:] for _, _, n, out in step)
    assert [[at for _, at, _, _ in step] for step in later] == [[5], [5]], "the depth is there already"
    with GGUF.open(path) as file:
        read = sum(t.nbytes for t in file.tensors.values()) - file.tensors["token_embd.weight"].nbytes
    assert result.work == 3 * read
    assert result.rates[0] == result.work * 1e9 / result.nanoseconds[0]


@needs_native
@pytest.mark.parametrize("burst", [True, False])
def test_each_next_token_is_the_likeliest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, burst: bool) -> None:
    with bench.Bench(tiny_file(tmp_path), 1, limits=SMALL) as b:
        if not burst:
            monkeypatch.setattr(type(b._engine.backend), "burst", None)
        chains = np.array([[7], [8]], np.int32)
        for _ in range(11):
            likeliest = [b.model.logits(ids, last=1)[0].argmax() for ids in chains.tolist()]
            chains = np.column_stack([chains, likeliest])
        monkeypatch.setattr(b, "_ids", lambda *shape: chains[: shape[0], 0].astype(np.int32))
        fed = dict[int, list[int]]()
        for name in ("step", "burst"):
            real = getattr(b._engine, name)

            def spy(works: list[Work], *args: Any, real: Any = real) -> Any:
                fed[works[0].sequence.length] = [int(ids) for w in works for ids in w.ids]
                return real(works, *args)

            monkeypatch.setattr(b._engine, name, spy)
        b.repeat(bench.Case(0, 12, 0, 2))
    assert len(np.unique(chains)) > 4
    assert len(fed) == 2 if burst else len(fed) == 12, "the first step alone, to learn how long it takes"
    assert fed == {at: chains[:, at].tolist() for at in fed}


@needs_native
@pytest.mark.parametrize("case", [bench.Case(4, 0), bench.Case(0, 4)])
def test_a_broken_model_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: bench.Case) -> None:
    path = tiny_file(tmp_path)
    break_embedding(path, 5)
    with bench.Bench(path, 1, limits=SMALL) as b:
        monkeypatch.setattr(b, "_ids", lambda *shape: np.full(shape, 5, np.int32))
        with pytest.raises(NonFiniteError, match=re.escape(f"{path}: a value is no finite number")):
            b.run(case, 1)


@needs_native
def test_each_depth_is_filled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with bench.Bench(tiny_file(tmp_path), 1, limits=SMALL) as b:
        steps = watched(b, monkeypatch)
        for depth in (80, 10, 90):
            b.run(bench.Case(7, 0, depth), 1)
    assert [(at, n) for [(_, at, n, _)] in steps] == [
        pair for depth in (80, 10, 90) for pair in ((0, depth), (depth, 7), (depth, 7))
    ]


@needs_native
def test_probes_stand_on_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with bench.Bench(tiny_file(tmp_path), 1, limits=SMALL) as b:
        told = iter([bench.Probe(1, 10), bench.Probe(3, 20), bench.Probe(7, 40)])
        monkeypatch.setattr(b.limits, "run", lambda: next(told))
        assert b.run(bench.Case(4, 0), 2).probes == [bench.Probe(2, 15), bench.Probe(5, 30)]


@needs_native
def test_all_memory_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench.Bench(tiny_file(tmp_path), 1, limits=SMALL)
    backend, live = b._engine.backend, collections.Counter[int]()
    new, free = backend.new_page, backend.free_page
    monkeypatch.setattr(backend, "new_page", lambda: [page := new(), live.update([page])][0])
    monkeypatch.setattr(backend, "free_page", lambda page: (live.subtract([page]), free(page)))
    for case in bench.cases([70], [3], [0, 80, 10], [1, 3]):
        b.run(case, 1)
    b.close()
    assert sum(live.values()) == 0
    b.close()


@needs_native
def test_what_the_context_cannot_hold(tmp_path: Path) -> None:
    with bench.Bench(tiny_file(tmp_path), 1, limits=SMALL) as b:
        b.check(bench.Case(0, 56, 200))
        with pytest.raises(OptionError, match=r"tg57 @ d200: tiny-Q8_0.gguf has a context of 256 tokens"):
            b.run(bench.Case(0, 57, 200), 1)


@needs_native
def test_limits_are_of_this_world() -> None:
    with bench.Limits(None, 1, 1 << 22) as limits:
        probe = limits.run()
    assert 1e8 < probe.bytes_per_second < 1e12
    assert 1e8 < probe.ops_per_second < 1e13


def test_layer_weights_leave_the_output_out(tmp_path: Path) -> None:
    from tinyslm import load

    per_layer = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64
    with load(tiny_file(tmp_path), backend="reference") as model:
        assert bench.layer_weights(model._scheduler.engine.program) == TINY.layers * per_layer


# ---- files of real shapes ----


def types(shape: str, mix: str) -> dict[str, str]:
    made = shapes.Mixed(shape, mix)
    return {t.name.removesuffix(".weight"): shapes.TYPES[t.type].name for t in made._tensors if len(t.shape) > 1}


@pytest.mark.skipif(not STORIES.is_dir(), reason="the real model is not here")
@pytest.mark.parametrize("mix", ["F16", "Q8_0", "Q4_0", "Q5_1"])
def test_types_are_those_of_a_real_file(mix: str) -> None:
    with GGUF.open(STORIES / f"stories260K-{mix}.gguf") as file:
        real = {t.name.removesuffix(".weight"): t.format.name for t in file.tensors.values() if len(t.shape) > 1}
    assert types("stories260k", mix) == real


def layers(found: dict[str, str], matrix: str, kind: str) -> list[int]:
    return [int(name.split(".")[1]) for name, k in found.items() if name.endswith(matrix) and k == kind]


def test_the_medium_mix_of_a_model_that_256_divides() -> None:
    found = types("Llama-3.2-1B", "Q4_K_M")
    more = [0, 1, 4, 7, 10, 13, 14, 15]
    assert layers(found, "attn_v", "Q6_K") == layers(found, "ffn_down", "Q6_K") == more
    assert found["token_embd"] == "Q6_K"
    assert collections.Counter(found.values()) == {"Q4_K": 7 * 16 - 16, "Q6_K": 17}


def test_an_untied_model_has_its_embedding_in_the_main_type() -> None:
    found = types("tinyllama-1.1b", "q5_k_m")
    assert (found["token_embd"], found["output"]) == ("Q5_K", "Q6_K")


def test_the_small_mix() -> None:
    found = types("llama-3.2-1b", "q4_k_s")
    assert layers(found, "attn_v", "Q5_K") == [0, 1, 2, 3]
    assert layers(found, "ffn_down", "Q5_K") == [0, 1]
    assert collections.Counter(types("llama-3.2-1b", "q5_k_s").values()) == {"Q5_K": 7 * 16, "Q6_K": 1}


def test_rows_that_256_does_not_divide_fall_back() -> None:
    four, five = types("smollm2-135m", "q4_k_m"), types("smollm2-135m", "q5_k_m")
    assert (four["blk.0.attn_q"], four["blk.0.attn_v"], four["token_embd"]) == ("Q5_0", "Q8_0", "Q8_0")
    assert (four["blk.0.ffn_down"], four["blk.4.ffn_down"], five["blk.4.ffn_down"]) == ("Q6_K", "Q4_K", "Q5_K")
    assert five["blk.0.attn_q"] == "Q5_1"
    assert types("smollm2-135m", "q4_0")["token_embd"] == "Q8_0"
    assert types("llama-3.2-1b", "q4_0")["token_embd"] == "Q6_K"
    assert types("smollm2-135m", "q6_k")["blk.0.attn_q"] == "Q8_0"


def test_unknown_names_are_told_what_there_is() -> None:
    with pytest.raises(OptionError, match=r"there is no shape 'llama'; there are stories260k, smollm2-135m, "):
        shapes.Mixed("llama", "q4_0")
    with pytest.raises(OptionError, match=r"there is no type 'q4'; there are f32, f16, bf16, q8_0, "):
        shapes.Mixed("stories260k", "q4")


def test_sizes_are_those_of_the_real_files() -> None:
    sizes = {"q4_0": 763097088, "q8_0": 1313251328, "q4_k_m": 799862784}
    assert {mix: shapes.Mixed("llama-3.2-1b", mix).bytes for mix in sizes} == sizes


@pytest.mark.parametrize("kind", list(shapes.MAKERS))
def test_random_weights_have_the_right_spread(kind: str) -> None:
    k = 1024
    rows = shapes.MAKERS[kind](np.random.default_rng(1), 8 * k // BY_NAME[kind].block, k)
    values = BY_NAME[kind].dequantise(np.frombuffer(rows.tobytes(), np.uint8).reshape(8, -1))
    assert values.shape == (8, k)
    assert abs(values.mean()) * k**0.5 < 0.2
    assert 0.8 < values.std() * k**0.5 < 1.25


def test_a_file_of_random_weights(tmp_path: Path) -> None:
    made, shown = shapes.Mixed("stories260k", "q4_k_m"), list[float]()
    made.write(tmp_path / made.name, shown.append)
    assert made.name == "stories260k-q4_k_m.gguf"
    assert shown == sorted(shown)
    assert shown[-1] == 1
    with GGUF.open(tmp_path / made.name) as file:
        assert sum(t.nbytes for t in file.tensors.values()) == made.bytes


def test_a_full_disk_is_told_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = shapes.Mixed("stories260k", "q8_0")
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shapes.shutil, "disk_usage", lambda _: usage(0, 0, made.bytes))
    with pytest.raises(FileError, match="the disk has no room for it") as caught:
        made.write(tmp_path / "x.gguf")
    assert caught.value.got == made.bytes
    assert list(tmp_path.iterdir()) == []


def test_where_files_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", os.path.join("a", "b"))
    assert shapes.cache_folder() == Path("a", "b", "tinyslm")
    monkeypatch.delenv("XDG_CACHE_HOME")
    for platform, folder in (("linux", ".cache/tinyslm"), ("darwin", "Library/Caches/tinyslm")):
        monkeypatch.setattr(shapes.sys, "platform", platform)
        assert shapes.cache_folder() == Path.home() / folder
    monkeypatch.setattr(shapes.sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "local")
    assert shapes.cache_folder() == Path("local") / "tinyslm" / "cache"


# ---- the verb ----

COMMAND = [sys.executable, "-m", "tinyslm", "bench"]


def environment(cache: Path) -> dict[str, str]:
    """Of our own: PYTHONUNBUFFERED, say, hides a flush that is missing."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "TINYSLM"))}
    return {**own, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache)}


@contextmanager
def started(cache: Path, *args: object) -> Iterator[subprocess.Popen[bytes]]:
    """The verb in a process of its own, half a minute long; Ctrl-C reaches it in the background too."""
    command, pipe = [*COMMAND, *map(str, args)], subprocess.PIPE
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, env=environment(cache), stdout=pipe, stderr=pipe, bufsize=0)
    finally:
        signal.signal(signal.SIGINT, before)
    timer = threading.Timer(30, process.kill)
    timer.start()
    with process:
        try:
            yield process
        finally:
            timer.cancel()
            process.kill()


def verb(cache: Path, *args: object, code: int = 0) -> tuple[str, str]:
    """stdout and stderr of the verb."""
    command = [*COMMAND, *map(str, args)]
    done = subprocess.run(
        command, env=environment(cache), capture_output=True, text=True, encoding="utf-8", timeout=60, check=False
    )
    assert done.returncode == code, done
    return done.stdout, done.stderr


QUICK = ("-p", 8, "-n", 2, "-r", 2, "-t", 1)


@needs_native
def test_a_shape_is_made_once_and_measured(tmp_path: Path) -> None:
    args = ("--shape", "stories260k", "--type", "q4_0", *QUICK)
    out, said = verb(tmp_path, *args, "-o", "json", "-b", "1,2")
    path = tmp_path / "tinyslm" / "stories260k-q4_0.gguf"
    assert said == f"tinyslm: making {path}, 262.62 kB of random weights; it is kept there\n"
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    rows: list[dict[str, Any]] = json.loads(out)
    assert [r["test"] for r in rows] == ["pp8", "tg2", "tg2 x2"]
    assert [(r["n_prompt"], r["n_gen"], r["n_depth"], r["n_sequences"]) for r in rows] == [
        (8, 0, 0, 1), (0, 2, 0, 1), (0, 2, 0, 2),
    ]  # fmt: skip
    for r in rows:
        assert (r["model_filename"], r["model_size"], r["n_threads"]) == (str(path), 262624, 1)
        assert len(r["samples_ts"]) == len(r["samples_ns"]) == 2
        assert r["avg_ts"] == pytest.approx(statistics.fmean(r["samples_ts"]))
        assert r["avg_ts"] > 0
        assert 0 < r["limit_share"] < 2
        assert r["probe_gbps"] > 0
        assert r["probe_gops"] > 0
    before = path.stat()
    out, said = verb(tmp_path, *args, "-o", "csv")
    assert said == ""
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    table = list(csv.DictReader(out.splitlines()))
    assert [r["test"] for r in table] == ["pp8", "tg2"]
    assert set(table[0]) == set(rows[0]) - {"samples_ns", "samples_ts"}


@needs_native
def test_a_table_of_files(tmp_path: Path) -> None:
    a, b = tiny_file(tmp_path), tiny_file(tmp_path, kind="Q4_0")
    out, said = verb(tmp_path, "-m", a, b, *QUICK, "-d", "0,4")
    assert said == ""
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in out.splitlines()]
    assert rows[0] == ["model", "size", "threads", "test", "t/s", "rate", "limit", "share"]
    assert all(re.fullmatch("-+:?", cell) for cell in rows[1])
    tests = ["pp8", "tg2", "pp8 @ d4", "tg2 @ d4"]
    assert [(r[0], r[3]) for r in rows[2:]] == [(p.name, t) for p in (a, b) for t in tests]
    assert all(re.fullmatch(r"[\d.]+ ± [\d.]+", r[4]) and re.fullmatch(r"\d+%", r[7]) for r in rows[2:])
    assert [(r[5].split()[1], r[6].split()[1]) for r in rows[2:4]] == [("GOPS", "GOPS"), ("GB/s", "GB/s")]


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (("--shape", "what"), 1, "there is no shape 'what'; there are stories260k"),
        (("--shape", "stories260k,what"), 1, "there is no shape 'what'"),
        (("--shape", "stories260k", "--type", "q9"), 1, "there is no type 'q9'; there are f32, f16, bf16, q8_0"),
        (("-m", "a.gguf", "--shape", "stories260k"), 2, "-m and --shape: one of the two"),
        (("-m", "a.gguf", "--type", "q4_0"), 2, "--type is of --shape"),
        (("-m", "a.gguf", "-p", "0", "-n", "0"), 2, "leaves nothing to measure"),
        (("-m", "a.gguf", "-p", "5,x"), 2, "'5,x' is no list of whole numbers"),
        (("-m", "a.gguf", "-b", "513"), 2, "must be numbers from 1 to 512"),
        (("-m", "a.gguf", "-r", "0"), 2, "must be numbers from 1 to"),
        (("-m", "a.gguf", "-t", "1,2"), 2, "must be one number"),
    ],
)
def test_wrong_use(tmp_path: Path, args: tuple[str, ...], code: int, told: str) -> None:
    out, said = verb(tmp_path, *args, code=code)
    assert out == ""
    assert told in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == [], "names are checked before anything is made"


@needs_native
@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
@pytest.mark.parametrize(("kind", "first"), [("json", b"[\n"), ("md", b"| model"), ("csv", b"cpu_info")])
def test_ctrl_c_leaves_what_is_there(tmp_path: Path, kind: str, first: bytes) -> None:
    path = tmp_path / "long.gguf"
    shapes.make(path, shapes.Shape(2, 64, 4, 2, 96, 400, 1 << 20, True), "Q8_0")
    long = ("-m", path, "-p", 0, "-n", "1,1000000", "-r", 1, "-t", 1, "-o", kind)
    with started(tmp_path, *long) as process:
        assert process.stdout
        start = process.stdout.readline()
        assert start.startswith(first)
        if kind != "json":
            rows = [process.stdout.readline() for _ in range(2 if kind == "md" else 1)]
            assert b"tg1" in rows[-1]
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        begin = time.monotonic()
        rest, said = process.communicate(timeout=20)
        assert time.monotonic() - begin < 2
    assert (process.returncode, said) == (130, b"")
    if kind == "json":
        [row] = json.loads(start + rest)
        assert row["test"] == "tg1"
    else:
        assert rest == b""


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
def test_ctrl_c_leaves_no_part_of_a_file(tmp_path: Path) -> None:
    with started(tmp_path, "--shape", "llama-3.2-1b", "--type", "f16") as process:
        deadline = time.monotonic() + 40
        while not is_writing(process.pid, tmp_path / "tinyslm"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 130
    assert list((tmp_path / "tinyslm").iterdir()) == []


# ---- beside llama.cpp ----


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("tinyslm._native", reason="the C core was not built")  # around.py uses it
    monkeypatch.syspath_prepend(ROOT / "bench")
    return importlib.import_module("compare")


def test_logits_that_agree_and_that_do_not(compare: Any) -> None:
    rng = np.random.default_rng(0)
    ours = rng.standard_normal(1000).astype(np.float32)
    assert compare.agree(compare.agreement(ours, ours + 0.02 * rng.standard_normal(1000).astype(np.float32)))
    assert not compare.agree(compare.agreement(ours, rng.permutation(ours)))
    assert not compare.agree(compare.agreement(ours, ours + 0.3 * rng.standard_normal(1000).astype(np.float32)))
    other = ours.copy()
    other[ours.argsort()[-50]] = ours.max() + 0.1
    assert not compare.agree(compare.agreement(ours, other)), "another token is the likeliest"


def test_a_row_of_the_comparison(compare: Any) -> None:
    def result(*seconds: int) -> bench.Result:
        probes = [bench.Probe(10e9, 100e9)] * len(seconds)
        return bench.Result(bench.Case(0, 8), [s * 10**9 for s in seconds], probes, 8e9)

    row = compare.row(Path("a.gguf"), {"tinyslm": result(1, 2, 4), "slow": result(16, 16, 16), "fast": result(2, 8, 4)})
    assert (row["ours"], row["best"], row["best_variant"], row["ratio"]) == (4, 2, "fast", 2)
    assert (row["share"], row["best_share"], row["limit"], row["probe"]) == (0.4, 0.2, 10, 10)
    about = {"cpu": "", "threads": 1, "rounds": 3, "date": "", "tinyslm": "", "isa": ""}
    table = compare.markdown(about, [row]).splitlines()
    assert table[-1] == "| a.gguf | tg8 | 4.0 | 2.0 | 2.00 | 40% | 20% | 10.0 GB/s | fast |"
    assert len({line.count("|") for line in table[2:]}) == 1


def test_goals_are_picked_by_words(compare: Any) -> None:
    names = [g.name for g in compare.goals.chosen(None)]
    assert len(names) == len(set(names)) == len(compare.goals.GOALS)
    picked = [g.name for g in compare.goals.chosen(["1b q4_0 tg128", "135m q8_0 pp512"])]
    assert picked == [
        "llama-3.2-1b q4_0 tg128", "llama-3.2-1b q4_0 tg128 x4", "llama-3.2-1b q4_0 tg128 @ d4096",
        "smollm2-135m q8_0 pp512",
    ]  # fmt: skip
    assert compare.goals.chosen(["start"]) == []
    assert [compare.goals.starts(only) for only in (None, ["start"], ["1b"])] == [True, True, False]


def test_a_goal_is_met_where_all_of_it_is(compare: Any) -> None:
    def judged(goal: Any, share: float, ratio: float, ours: float = 90) -> dict[str, Any]:
        one = {"model": "a", "test": "tg128", "ours": 30.0}
        row = {"model": "a", "test": goal.case.name, "share": share, "ratio": ratio, "ours": ours}
        found: dict[str, Any] = compare.goals.judged(goal, row, [one])
        assert compare.goals.table([found], None).splitlines()[-1].endswith("| yes |" if found["met"] else "| no |")
        return found

    goal = compare.goals.Goal("a", "q4_0", bench.Case(512, 0), 0.6, 2.0)
    assert [judged(goal, s, r)["met"] for s, r in [(0.6, 2), (0.59, 9), (0.9, 1.9)]] == [True, False, False]
    four = compare.goals.Goal("a", "q4_0", bench.Case(0, 128, 0, 4), others=3.0)
    assert [judged(four, 0, 0, ours)["met"] for ours in (90, 89)] == [True, False]
    assert judged(four, 0, 0)["times_one"] == 3


class Rival:
    """In place of llama.cpp: what each variant takes, and Ctrl-C in place of the answer after the last."""

    def __init__(self, taken: dict[str, int], answers: int) -> None:
        self.variants, self.taken, self.left, self.ended = list(taken), taken, answers, False

    def repeat(self, variant: str, case: bench.Case, warm: bool = False) -> int:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return self.taken[variant]


@needs_native
def test_ctrl_c_keeps_the_rounds_that_are_done(compare: Any, tmp_path: Path) -> None:
    with bench.Bench(tiny_file(tmp_path), 1, limits=SMALL) as b:
        rival = Rival({"fast": 100, "near": 110, "slow": 120}, 3 + 2 * 2 + 1)
        found = compare.measure(b, rival, bench.Case(4, 0), 9, slow=1.15)
        assert rival.ended
        assert {name: len(r.nanoseconds) for name, r in found.items()} == {"tinyslm": 2, "fast": 2, "near": 2}
        assert all(len(r.probes) == 2 for r in found.values())
        with pytest.raises(KeyboardInterrupt):
            compare.measure(b, Rival({"fast": 100}, 1), bench.Case(4, 0), 9)
