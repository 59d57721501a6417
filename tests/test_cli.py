"""The command line, as a user meets it: each test runs the program in a process of its own."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import ggufs
import numpy as np
import pytest

import tinyslm
from tinyslm import gguf, shapes
from tinyslm.sampling import Sampling

STORIES = ggufs.SHARED / "stories260K"
GOLDEN = pytest.mark.skipif(not STORIES.is_dir(), reason="the real model is not here")
ANSWER_TIME = 0.2  # seconds from Ctrl-C to the end
TINYSLM = [sys.executable, "-m", "tinyslm"]
# of our own: PYTHONUNBUFFERED, say, hides a flush that is missing
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
ENVIRONMENT |= {"PYTHONWARNINGS": "default", "PYTHONPATH": str(Path(tinyslm.__file__).parents[1])}


def tinyslm_(*args: object, stdin: bytes = b"", **more: str) -> subprocess.CompletedProcess[bytes]:
    command = [*TINYSLM, *map(str, args)]
    return subprocess.run(
        command, input=stdin, capture_output=True, env={**ENVIRONMENT, **more}, timeout=60, check=False
    )


def refused(*args: object, code: int = 1, **more: str) -> str:
    """The one line on stderr of a command that fails."""
    done = tinyslm_(*args, **more)
    assert (done.returncode, done.stdout) == (code, b""), done
    line = done.stderr.decode()
    assert line.startswith("tinyslm: "), line
    assert line.count("\n") == 1, line
    assert line.endswith("\n")
    return line


def written(*args: object, **more: object) -> str:
    """stdout of a command that succeeds and has nothing to say beside."""
    done = tinyslm_(*args, **more)  # type: ignore[arg-type]
    assert (done.returncode, done.stderr) == (0, b""), done
    return done.stdout.decode()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights and a context of 256 tokens."""
    path = tmp_path_factory.mktemp("cli") / "small.gguf"
    shapes.make(path, shapes.Shape(2, 64, 4, 2, 128, 300, 256, True), "Q8_0", seed=3)
    return path


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes a while over a long prompt, and never ends a text soon."""
    path = tmp_path_factory.mktemp("cli") / "slow.gguf"
    shapes.make(path, shapes.Shape(8, 512, 8, 8, 2048, 2000, 1 << 16, True), "Q8_0", seed=3)
    return path


def altered(path: Path, out: Path, **metadata: object) -> Path:
    """A copy of a model, other metadata in it: `llama__context_length` is the key llama.context_length."""
    with gguf.GGUF.open(path) as file:
        keys = {**file.metadata, **{key.replace("__", "."): value for key, value in metadata.items()}}
        tensors = [gguf.TensorData(t.name, t.shape, t.type, file.read(t)) for t in file.tensors.values()]
        gguf.write(out, keys, tensors)
    return out


# ---- run ----


@GOLDEN
@pytest.mark.parametrize("kind", ["f32", "F16"])
def test_golden_text(kind: str) -> None:
    golden = json.loads((STORIES / f"stories260K-{kind}.golden.json").read_text())
    out = written("run", "-m", STORIES / f"stories260K-{kind}.gguf", "-p", "Once upon a time", "--temp", 0, "-n", 200)
    assert out == golden["greedy_text"]


def test_prompt_sources_agree(model: Path, tmp_path: Path) -> None:
    text, run = "the prompt: é", ("run", "-m", model, "-n", 12, "-s", 5)
    wanted = written(*run, text)
    assert wanted
    file = tmp_path / "prompt.txt"
    file.write_bytes(text.encode() + b"\n")
    assert written(*run, "-p", text) == wanted
    assert written(*run, "-f", file) == wanted
    assert written(*run, stdin=text.encode()) == wanted
    assert written(*run, "-f", "-", stdin=text.encode() + b"\r\n") == wanted
    assert written(*run, stdin=text.encode() + b"\n\n") != wanted
    assert written(*run, text, stdin=b"not read") == wanted


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["-p", "a", "b"], "more than once"),
        (["-p", "a", "-f", "b"], "more than once"),
        (["a", "b"], "put it in quotes"),
        (["a", "-n", "0"], "at least 1, or -1, not 0"),
        (["a", "-t", "0"], "at least 1"),
        (["a", "-s", "x"], "no whole number"),
        (["a", "--backend", "gpu"], "invalid choice: 'gpu'"),
        (["a", "--temperatur", "1"], "unrecognized arguments: --temperatur"),
    ],
)
def test_wrong_usage(args: list[str], said: str) -> None:
    assert said in refused("run", "-m", "model.gguf", *args, code=2)


def test_verbs_are_suggested() -> None:
    assert "did you mean 'tokenize'?" in refused("tokenise", "x", code=2)
    assert "run, chat, pull, models, show, tokenize, bench, perplexity, quantize, imatrix" in refused("xyz", code=2)


def test_prompts_that_are_no_utf8(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "latin1.txt"
    file.write_bytes(b"caf\xe9 au lait")
    assert "latin1.txt: the text is not UTF-8 at byte 3" in refused("run", "-m", model, "-f", file)
    assert "not UTF-8" in refused("run", "-m", model, "-p", os.fsdecode(b"caf\xe9"))
    assert "No such file" in refused("run", "-m", model, "-f", tmp_path / "none.txt")


@pytest.mark.parametrize("verb", ["run", "tokenize"])
def test_files_that_are_no_model(verb: str, model: Path, tmp_path: Path) -> None:
    def said(path: Path) -> str:
        return refused(verb, "-m", path, "text")

    for name, data in [("text.md", b"# A title\n"), ("cut.gguf", model.read_bytes()[:700]), ("empty.gguf", b"")]:
        (tmp_path / name).write_bytes(data)
        assert name in said(tmp_path / name)
    assert "directory" in said(tmp_path)
    assert "no such file" in said(tmp_path / "none.gguf")
    assert "\\x1b[2J" in said(tmp_path / "\x1b[2J.gguf")


def test_models_that_cannot_run(model: Path, tmp_path: Path) -> None:
    other = altered(model, tmp_path / "other.gguf", general__architecture="mamba")
    assert "architecture" in refused("run", "-m", other, "x")
    data = ggufs.gguf([ggufs.text("general.architecture", "llama")], [ggufs.tensor("t", (32,), 99, 0)], bytes(64))
    (tmp_path / "type.gguf").write_bytes(data)
    assert "unknown tensor type" in refused("run", "-m", tmp_path / "type.gguf", "x")
    strange = altered(model, tmp_path / "strange.gguf", llama__attention__sinks=1)
    assert "llama.attention.sinks" in refused("run", "-m", strange, "x")


def test_wrong_options_are_said_before_the_file_is_read(tmp_path: Path) -> None:
    assert "temperature" in refused("run", "-m", tmp_path / "none.gguf", "--temp", -1, "x")


def test_a_prompt_that_is_too_long(model: Path) -> None:
    said = refused("run", "-m", model, "-c", 8, "one two three four five")
    assert re.search(r"prompt has \d+ tokens, the context holds 8", said)


def test_json(model: Path) -> None:
    report = json.loads(written("run", "-m", model, "-n", 9, "-s", 11, "--json", "é text"))
    assert report["text"] == written("run", "-m", model, "-n", 9, "-s", 11, "é text")
    assert (report["finish"], report["seed"], len(report["tokens"])) == ("length", 11, 9)
    with tinyslm.load(model) as loaded:
        assert report["prompt_tokens"] == len(loaded.tokenizer.encode("é text"))
        assert report["backend"] == loaded.backend
        assert report["weight_bytes_per_token"] == loaded.step_bytes < loaded.file_bytes
    assert report["load_seconds"] > 0
    assert report["prompt_tokens_per_second"] > 0
    assert (
        report["generation_tokens_per_second"] * report["weight_bytes_per_token"] == report["weight_bytes_per_second"]
    )
    assert 10e6 < report["peak_memory_bytes"] < 1e9


@pytest.mark.parametrize("tied", [True, False])
def test_bytes_that_a_token_needs(tied: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    shapes.make(path, shapes.Shape(1, 64, 4, 2, 128, 300, 256, tied), "Q8_0")
    with tinyslm.load(path) as model, gguf.GGUF.open(path) as file:
        unread = 0 if tied else file.tensors["token_embd.weight"].nbytes
        assert model.step_bytes == sum(t.nbytes for t in file.tensors.values()) - unread


def test_a_random_seed_repeats_its_text(model: Path) -> None:
    first = json.loads(written("run", "-m", model, "-n", 20, "--json", "text"))
    again = json.loads(written("run", "-m", model, "-n", 20, "--json", "-s", first["seed"], "text"))
    assert again["text"] == first["text"]
    assert json.loads(written("run", "-m", model, "-n", 1, "-s", -1, "--json", "text"))["seed"] != first["seed"]


def test_stats_go_to_stderr(model: Path) -> None:
    done = tinyslm_("run", "-m", model, "-n", 9, "-s", 1, "--stats", "text")
    assert done.stdout.decode() == written("run", "-m", model, "-n", 9, "-s", 1, "text")
    lines = done.stderr.decode().splitlines()
    assert [line.split()[0] for line in lines] == ["load", "prompt", "generation", "memory", "seed"]
    assert re.search(r"8 tokens after the first, [\d.]+ tokens/s, [\d.]+ GB/s", lines[2])


def test_stop_and_ends(model: Path) -> None:
    whole = written("run", "-m", model, "-n", 30, "-s", 4, "text")
    stop = whole[7:9]
    cut = written("run", "-m", model, "-n", 30, "-s", 4, "--stop", "never said", "--stop", stop, "text")
    assert cut == whole[: whole.index(stop)]


OPTIONS = {"temp": 0, "top_k": 2, "top_p": 0.2, "min_p": 0.9, "typical_p": 0.2, "repeat_penalty": 9.0,
           "frequency_penalty": 9.0, "presence_penalty": 9.0}  # fmt: skip


def test_options_reach_the_engine(model: Path) -> None:
    with tinyslm.load(model) as loaded:
        plain = loaded.generate("text", max_tokens=60, seed=9)
        for name, value in OPTIONS.items():
            wanted = loaded.generate("text", max_tokens=60, seed=9, **{name.replace("temp", "temperature"): value})
            flag = f"--{name.replace('_', '-')}"
            assert written("run", "-m", model, "-n", 60, "-s", 9, flag, value, "text") == wanted != plain, name


def test_a_full_context_is_said(model: Path) -> None:
    done = tinyslm_("run", "-m", model, "-c", 32, "--ignore-eos", "text")
    assert done.returncode == 0
    assert done.stdout
    assert done.stderr == b"tinyslm: the context of 32 tokens is full\n"


def test_warnings_are_one_line(model: Path) -> None:
    done = tinyslm_("run", "-m", model, "-c", 300, "-n", 1, "text")
    assert done.stderr.decode().startswith("tinyslm: warning: context 300 is beyond the 256 tokens")
    assert done.stderr.count(b"\n") == 1


def test_without_the_c_core(model: Path) -> None:
    """Where it was not built, one line says so and what to do; the text is written all the same."""
    hidden = (
        "import importlib.util as u, sys; f = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'tinyslm._native' else f(name, *a)\n"
        "from tinyslm.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", hidden, "run", "-m", str(model), "-n", "3", "--temp", "0", "text"]
    done = subprocess.run(command, capture_output=True, env=ENVIRONMENT, timeout=300, check=False)
    assert done.returncode == 0
    assert done.stdout
    assert done.stderr.count(b"\n") == 1
    assert b"tinyslm: warning: " in done.stderr
    assert b"numba" in done.stderr
    assert b"--no-cache-dir --force-reinstall" in done.stderr


def test_environment_is_heeded_and_checked(model: Path) -> None:
    assert json.loads(written("run", "-m", model, "-n", 1, "--json", "x", TINYSLM_THREADS="1"))["threads"] == 1
    for name in ("TINYSLM_THREADS", "TINYSLM_BACKEND", "TINYSLM_ISA"):
        assert "'nonsense'" in refused("run", "-m", model, "x", **{name: "nonsense"})


def test_help_shows_the_real_defaults() -> None:
    text = " ".join(written("run", "-h").split())
    defaults = Sampling()
    for name, value in [("--temperature X", defaults.temperature), ("--top-k N", defaults.top_k),
                        ("--top-p X", defaults.top_p), ("--min-p X", defaults.min_p)]:  # fmt: skip
        assert re.search(rf"{name} [^()]*\({value}\)", text), name


def test_help_is_quick_and_version_says_what_runs() -> None:
    best = min(_seconds(lambda: written("--help")) for _ in range(3))
    assert best < 0.2 + min(_seconds(lambda: subprocess.run([sys.executable, "-c", ""], check=True)) for _ in range(3))
    with tinyslm.load(STORIES / "stories260K-f32.gguf") if STORIES.is_dir() else _nothing() as loaded:
        runs = f"native, {loaded.isa}" if loaded and loaded.isa else ""
    assert written("--version").startswith(f"tinyslm {tinyslm.__version__} ({runs}")


class _nothing:  # noqa: N801 - stands where a function would
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


# ---- pipes, terminals, Ctrl-C ----


def start(args: Sequence[object], **streams: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*TINYSLM, *map(str, args)], env=ENVIRONMENT, **streams)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("verb", [("run", "--ignore-eos", "-c", 60_000), ("tokenize",)])
def test_a_reader_that_leaves(verb: tuple[str], slow: Path, tmp_path: Path) -> None:
    (tmp_path / "long").write_text("word " * (1 if verb[0] == "run" else 50_000))
    process = start([*verb, "-m", slow, "-f", tmp_path / "long"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    assert process.stderr
    assert len(process.stdout.read(10)) == 10
    process.stdout.close()
    left = time.perf_counter()
    assert process.wait(10) == 0
    assert time.perf_counter() - left < 1
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_and_no_stdout(model: Path) -> None:
    for redirection in (">/dev/full", ">&-"):
        command = f'"$@" {redirection}'
        args = ["sh", "-c", command, "sh", *TINYSLM, "run", "-m", str(model), "-n", "3", "x"]
        done = subprocess.run(args, capture_output=True, env=ENVIRONMENT, timeout=60, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith(b"tinyslm: ")
        assert done.stderr.count(b"\n") == 1


def interrupted(process: subprocess.Popen[bytes]) -> float:
    """Seconds from Ctrl-C to the end."""
    sent = time.perf_counter()
    process.send_signal(signal.SIGINT)
    code = process.wait(10)
    took = time.perf_counter() - sent
    assert code == 130
    return took


def listens(process: subprocess.Popen[bytes]) -> None:
    """Wait until the program minds Ctrl-C itself: it then blocks the signal, to take it when it comes."""
    status = Path(f"/proc/{process.pid}/status")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        mask = re.search(r"SigBlk:\s*(\w+)", status.read_text())
        if mask and int(mask[1], 16) >> (signal.SIGINT - 1) & 1:
            return
        time.sleep(0.005)
    raise TimeoutError


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")
@pytest.mark.parametrize("after", [0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.2])
def test_ctrl_c_while_loading_and_reading(after: float, slow: Path, tmp_path: Path) -> None:
    (tmp_path / "long").write_text("word " * 10_000)
    process = start(["run", "-m", slow, "-f", tmp_path / "long"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    listens(process)
    time.sleep(after)
    assert interrupted(process) < ANSWER_TIME
    assert process.communicate() == (b"", b"")


def test_ctrl_c_while_writing(slow: Path) -> None:
    process = start(["run", "-m", slow, "--ignore-eos", "text"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    assert 0 < len(os.read(process.stdout.fileno(), 4096)) < 500  # it comes piece by piece
    assert interrupted(process) < ANSWER_TIME
    assert process.communicate()[1] == b""


def on_terminal(
    command: Sequence[object], ctrl_c: bytes = b"", stdin: int | None = subprocess.DEVNULL
) -> tuple[int, str]:
    """Exit code, and all that a terminal showed. Ctrl-C is typed when `ctrl_c` has come."""
    master, slave = pty.openpty()

    def take_terminal() -> None:
        os.setsid()
        import fcntl
        import termios

        fcntl.ioctl(1, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [*map(str, command)], stdin=slave if stdin is None else stdin, stdout=slave, stderr=slave,
        env={**ENVIRONMENT, "TERM": "xterm"}, preexec_fn=take_terminal,
    )  # fmt: skip
    os.close(slave)
    shown = b""
    while True:
        try:
            data = os.read(master, 4096)
        except OSError:  # the other side is closed
            break
        if not data:
            break
        shown += data
        if ctrl_c and ctrl_c in shown:
            os.write(master, b"\x03")
            ctrl_c = b""
    os.close(master)
    return process.wait(10), shown.decode()


def test_a_terminal_gets_a_newline_at_the_end(model: Path) -> None:
    args = ["run", "-m", model, "-n", 8, "-s", 2, "text"]
    plain = written(*args)
    code, shown = on_terminal([*TINYSLM, *args])
    assert code == 0
    assert "\x1b" not in shown
    safe = "".join(c if c >= " " or c in "\n\t" else f"\\x{ord(c):02x}" for c in plain)
    assert shown.replace("\r\n", "\n") == safe.rstrip("\n") + "\n"


def test_no_text_on_a_terminal_is_wrong_usage(model: Path) -> None:
    code, shown = on_terminal([*TINYSLM, "run", "-m", model], stdin=None)
    assert code == 2
    assert "no text" in shown


def test_control_characters_do_not_reach_a_terminal() -> None:
    script = "from tinyslm.cli.terminal import Output; o = Output(); "
    script += "o.write('a\\x1b]0;t\\x07\\tb\\n'); o.write('c\\x9b'); o.end()"
    assert on_terminal([sys.executable, "-c", script]) == (0, "a\\x1b]0;t\\x07\tb\r\nc\\x9b\r\n")


STATUS = """
import time
from tinyslm.cli.interrupt import exit_on_interrupt
from tinyslm.cli.terminal import Status, say
exit_on_interrupt()
with Status("quick") as status: status.share = 0.2
with Status("loading") as status:
    status.share = 0.43
    time.sleep(1.25)
    say("a line")
    time.sleep({more})
"""


def test_the_status_line_comes_after_a_second_and_goes() -> None:
    code, shown = on_terminal([sys.executable, "-c", STATUS.format(more=0)])
    assert code == 0
    assert "quick" not in shown
    assert re.fullmatch(
        r"(\r\x1b\[Kloading 43%)+\r\x1b\[Ktinyslm: a line\r\n((\r\x1b\[Kloading 43%)+\r\x1b\[K)?", shown
    )


def test_ctrl_c_on_a_terminal_leaves_a_clean_line(slow: Path) -> None:
    code, shown = on_terminal([sys.executable, "-c", STATUS.format(more=30)], ctrl_c=b"43%")
    assert code == 130
    assert shown.endswith("\r\x1b[K")
    command = [*TINYSLM, "run", "-m", slow, "--ignore-eos", "-s", "1", "text"]
    code, shown = on_terminal(command, ctrl_c=written("run", "-m", slow, "-n", 3, "-s", 1, "text").encode()[:3])
    assert code == 130
    assert shown.endswith("\n")
    assert "Traceback" not in shown


def test_no_text_follows_the_line_that_ctrl_c_ended() -> None:
    script = "import os, time; from tinyslm.cli import interrupt; from tinyslm.cli.terminal import Output; "
    script += "end = os._exit; os._exit = lambda code: (time.sleep(0.05), end(code)); "  # time to write more
    script += "interrupt.exit_on_interrupt(); o = Output()\nwhile True: o.write('text')"
    code, shown = on_terminal([sys.executable, "-c", script], ctrl_c=b"texttext")
    assert code == 130
    assert shown.endswith("\r\n")


# ---- show and tokenize ----


def test_show(model: Path) -> None:
    text = written("show", model)
    for part in ("architecture    llama", "Q8_0 ", "context         256", "layers          2", "gpt2 (byte-level BPE)",
                 "pre llama-bpe", "vocabulary      300 tokens", "298 <|begin|>", "(300 entries)"):  # fmt: skip
        assert part in text
    assert "cannot run" not in text
    assert "blk.0" not in text
    assert re.search(r"blk\.0\.ffn_down\.weight +Q8_0 +128 x 64 +8,704 bytes", written("show", model, "--tensors"))


def test_show_json(model: Path) -> None:
    found = json.loads(written("show", model, "--json", "--tensors"))
    with gguf.GGUF.open(model) as file:
        assert found["bytes"] == file.size
        assert found["parameters"] == sum(int(np.prod(t.shape)) for t in file.tensors.values())
        assert {t["name"]: t["bytes"] for t in found["tensors"]} == {t.name: t.nbytes for t in file.tensors.values()}
    assert found["types"]["Q8_0"]["bytes"] + found["types"]["F32"]["bytes"] == sum(t["bytes"] for t in found["tensors"])
    assert found["tokenizer"]["special"]["bos"] == {"id": 298, "text": "<|begin|>"}
    assert found["metadata"]["tokenizer.ggml.tokens"]["length"] == 300
    assert (found["problems"], found["warnings"]) == ([], [])
    assert "tensors" not in json.loads(written("show", model, "--json"))


def test_show_says_what_is_not_understood(model: Path, tmp_path: Path) -> None:
    keys = {"llama__novelty": 1, "stranger__key": float("nan"), "llama__rope__novelty": 2}
    path = altered(model, tmp_path / "strange.gguf", **keys)
    found = json.loads(written("show", path, "--json"))
    assert len(found["problems"]) == 1
    assert "llama.rope.novelty" in found["problems"][0]
    assert [w.rsplit(" ", 1)[1] for w in found["warnings"]] == ["stranger.key", "llama.novelty"]
    assert found["metadata"]["stranger.key"] == "nan"
    text = written("show", path)
    assert "this version cannot run it\n  this key changes the arithmetic" in text
    assert "\nwarnings\n  this key is not understood: stranger.key\n" in text


def test_show_warns_of_keys_that_do_no_harm(model: Path, tmp_path: Path) -> None:
    found = json.loads(written("show", altered(model, tmp_path / "new.gguf", llama__novelty=1), "--json"))
    assert found["problems"] == []
    assert found["warnings"] == ["this key is not understood: llama.novelty"]


def test_show_what_cannot_run(model: Path, tmp_path: Path) -> None:
    other = altered(model, tmp_path / "other.gguf", general__architecture="mamba", mamba__context_length=77)
    text = written("show", other)
    assert "architecture    mamba" in text
    assert "context         77" in text
    assert "cannot run" in text
    with gguf.GGUF.open(model) as file:
        copied = [  # Q8_1, which only copies of activations have
            gguf.TensorData(t.name, t.shape, 9, np.zeros(t.shape[0] // 32 * 36, np.uint8)) if len(t.shape) == 1 else
            gguf.TensorData(t.name, t.shape, t.type, file.read(t))
            for t in file.tensors.values()
        ]  # fmt: skip
        gguf.write(tmp_path / "copied.gguf", file.metadata, copied)
    assert "tensor type Q8_1 is not supported" in written("show", tmp_path / "copied.gguf")
    nothing = tmp_path / "nothing.gguf"
    nothing.write_bytes(ggufs.gguf())
    assert "none is named" in written("show", nothing)
    every = tmp_path / "every.gguf"
    every.write_bytes(ggufs.small_file())
    for args in ([], ["--json"], ["--tensors"]):
        assert written("show", every, *args)


def test_show_cannot_be_made_to_harm_a_terminal(tmp_path: Path) -> None:
    evil = "\x1b[2J\x07\u202e\n"
    path = tmp_path / "evil.gguf"
    keys = [ggufs.text("general.architecture", evil), ggufs.text(evil, evil)]
    keys.append(ggufs.key("tokenizer.ggml.model", ggufs.STRING, ggufs.string("\x9b")))
    path.write_bytes(ggufs.gguf(keys, [ggufs.tensor(evil, (1,), 0, 0)], struct.pack("<f", 1)))
    text = written("show", path, "--tensors")
    assert "\\x1b[2J\\x07\\u202e\\n" in text
    assert all(c.isprintable() or c == "\n" for c in text)
    json.loads(written("show", path, "--json"))


@pytest.mark.skipif(not (ggufs.SHARED / "vocab").is_dir(), reason="the real vocabularies are not here")
@pytest.mark.parametrize("name", ["phi-3", "llama-bpe"])
def test_vocabulary_files(name: str) -> None:
    path = ggufs.SHARED / "vocab" / f"ggml-vocab-{name}.gguf"
    if not path.exists():
        path = next(path.parent.glob(f"*{name}*.gguf"))
    assert "cannot run" in written("show", path)
    ids = [int(line.split()[0]) for line in written("tokenize", "-m", path, "--no-bos", "Hello world").splitlines()]
    assert len(ids) == 2


def test_tokenize(model: Path) -> None:
    assert written("tokenize", "-m", model, "a é") == "   298 <|begin|>\n    97 a\n    32 Ġ\n   195 Ã\n   169 ©\n"
    found = json.loads(written("tokenize", "-m", model, "--json", stdin=b"ab<|end|>\n"))
    assert found["tokens"][0] == 298
    assert 299 not in found["tokens"]
    assert len(found["pieces"]) == len(found["tokens"])
    marked = json.loads(written("tokenize", "-m", model, "--json", "--no-bos", "--special", "ab<|end|>"))
    assert marked["pieces"][-1] == "<|end|>"
    assert marked["tokens"][0] != 298
