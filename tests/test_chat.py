"""Talking with a model: chat and stream_chat, conversations that keep their KV cache, and the verb `chat`."""

from __future__ import annotations

import gc
import json
import os
import pty
import re
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from small import TINY
from test_cli import ENVIRONMENT, TINYSLM, refused, tinyslm_

import tinyslm
from tinyslm import gguf, shapes
from tinyslm.conversation import LEAST_ROOM

SPELLED = "<|end|>"
TEMPLATE = (
    "{% for m in messages %}{% if m.content == 'refuse' %}{{ raise_exception('no') }}{% endif %}"
    "{{ '<|begin|>' + m.role + '\n' + m.content + '<|end|>' }}{% endfor %}{{ '<|begin|>assistant\n' }}"
)


def with_template(path: Path, source: str | None, **more: object) -> Path:
    """The model again, with a chat template (or none)."""
    with gguf.GGUF.open(path) as file:
        keys = {**file.metadata, **more} | ({"tokenizer.chat_template": source} if source else {})
        tensors = [gguf.TensorData(t.name, t.shape, t.type, file.read(t)) for t in file.tensors.values()]
    out = path.with_name(f"chat-{path.name}")
    gguf.write(out, keys, tensors)
    return out


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chat") / "tiny.gguf"
    shapes.make(path, TINY, "Q8_0", seed=3)
    return with_template(path, TEMPLATE)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose answers take a while and never end."""
    path = tmp_path_factory.mktemp("chat") / "slow.gguf"
    shapes.make(path, shapes.Shape(8, 512, 8, 8, 2048, 2000, 1 << 16, True), "Q8_0", seed=3)
    return with_template(path, TEMPLATE)


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[tinyslm.Model]:
    with tinyslm.load(path) as model:
        yield model


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


class Steps:
    """Counts the tokens that the engine steps over."""

    def __init__(self, model: tinyslm.Model, patch: pytest.MonkeyPatch) -> None:
        engine = model._scheduler.engine
        self.tokens, step, burst = 0, engine.step, engine.burst

        def counted(works, logits):  # type: ignore[no-untyped-def]
            self.tokens += sum(len(w.ids) for w in works)
            return step(works, logits)

        def counted_burst(*args):  # type: ignore[no-untyped-def]
            drawn = burst(*args)
            self.tokens += sum(map(len, drawn))
            return drawn

        patch.setattr(engine, "step", counted)
        patch.setattr(engine, "burst", counted_burst)

    def lap(self) -> int:
        tokens, self.tokens = self.tokens, 0
        return tokens


# ---- the two methods ----


def test_chat_is_what_follows_the_templates_prompt(model: tinyslm.Model) -> None:
    prompt = "<|begin|>user\nhello<|end|><|begin|>assistant\n"
    ids = model.tokenizer.encode(prompt, bos=False, special=True)
    stream = model.stream_chat(user("hello"), seed=5, max_tokens=12, ignore_eos=True)
    text = "".join(piece.text for piece in stream)
    assert stream.prompt_tokens == len(ids)
    assert text == model.chat(user("hello"), seed=5, max_tokens=12, ignore_eos=True)
    for token in [p.token for p in model.stream_chat(user("hello"), temperature=0, max_tokens=6, ignore_eos=True)]:
        logits = model.logits(ids, last=1)[0]
        logits[list(model.tokenizer.eog)] = -np.inf
        assert token == logits.argmax()
        ids.append(token)


def test_an_answer_may_fill_the_context_and_ends_at_end_tokens(model: tinyslm.Model) -> None:
    (end,) = model.tokenizer.eog
    stream = model.stream_chat(user("hello"), ignore_eos=True)
    assert len(list(stream)) == model.context - stream.prompt_tokens + 1
    assert stream.finish == "context"
    stream = model.stream_chat(user("hello"), logit_bias={end: 1e9})
    assert (list(stream), stream.finish) == ([], "end")


def test_what_is_said_costs_no_control_token(model: tinyslm.Model) -> None:
    plain, evil = (model.stream_chat(user(text), max_tokens=1).prompt_tokens for text in ("", SPELLED))
    assert evil - plain == len(model.tokenizer.encode(SPELLED, bos=False))


def test_errors(model: tinyslm.Model) -> None:
    with pytest.raises(tinyslm.ChatTemplateError, match="refuses these messages: no"):
        model.chat(user("refuse"))
    with pytest.raises(tinyslm.OptionError, match="messages: the list is empty"):
        model.chat([])
    with pytest.raises(tinyslm.OptionError, match="temperatur"):
        model.chat(user("a"), temperatur=1)
    with pytest.raises(tinyslm.PromptTooLongError):
        model.chat(user("a" * 1000))


def test_without_a_template(path: Path, tmp_path: Path) -> None:
    shapes.make(tmp_path / "plain.gguf", TINY, "Q8_0", seed=3)
    with tinyslm.load(tmp_path / "plain.gguf") as model:
        with pytest.warns(UserWarning, match="no chat template: .* plain text"):
            stream = model.stream_chat(user("hello"), max_tokens=2)
        assert stream.prompt_tokens == len(model.tokenizer.encode("User: hello\nAssistant:"))
        assert stream._request.stop == ("\nUser:", "\nSystem:")


# ---- conversations ----


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_a_turn_costs_its_own_tokens(model: tinyslm.Model, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights write what no encoding would give back: the ids that were drawn are kept."""
    steps = Steps(model, monkeypatch)
    with tinyslm.Conversation(model, "Be kind.", temperature=temperature, ignore_eos=True, max_tokens=9) as talk:
        before = 0
        for turn in range(4):
            answer = talk.ask(f"turn {turn} {SPELLED}", seed=turn)
            pieces = list(answer)
            own = answer.prompt_tokens - before
            assert answer.reused == max(before - 1, 0)  # the last one drawn was not stepped over
            assert steps.lap() == own + (before > 0) + 8
            assert (len(pieces), answer.finish) == (9, "length")
            assert talk.messages[-1] == {"role": "assistant", "content": "".join(p.text for p in pieces)}
            before = answer.prompt_tokens + 9
            assert talk.used == before - 1
    assert talk.messages[0] == {"role": "system", "content": "Be kind."}


def test_what_is_kept_changes_no_answer(model: tinyslm.Model) -> None:
    with tinyslm.Conversation(model, max_tokens=8, ignore_eos=True) as talk:
        for turn in range(3):
            answer = talk.ask(f"turn {turn}", seed=turn)
            ids = talk._ids([*talk.messages, answer.message])[0]
            got = [p.token for p in answer]
            fresh = model._stream(model.answer_request(ids, False, {"max_tokens": 8, "seed": turn, "ignore_eos": True}))
            assert [p.token for p in fresh] == got


def test_messages_may_be_changed_between_turns(model: tinyslm.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(model, monkeypatch)
    with tinyslm.Conversation(model, max_tokens=5, ignore_eos=True) as talk:
        for text in ("one", "two", "three"):
            list(talk.ask(text))
        steps.lap()
        del talk.messages[2:]
        answer = talk.ask("other", seed=7)
        ids = talk._ids([*talk.messages, answer.message])[0]
        tokens = [p.token for p in answer]
        assert 0 < answer.reused < answer.prompt_tokens
        assert steps.lap() == answer.prompt_tokens - answer.reused + 4
        fresh = model._stream(model.answer_request(ids, False, {"max_tokens": 5, "seed": 7, "ignore_eos": True}))
        assert [p.token for p in fresh] == tokens
        assert [m["content"] for m in talk.messages[::2]] == ["one", "other"]


def test_stopping_an_answer(model: tinyslm.Model) -> None:
    with tinyslm.Conversation(model, ignore_eos=True) as talk:
        answer = talk.ask("hello")
        said = "".join(next(answer).text for _ in range(5))
        answer.close()
        assert [p.text for p in answer] == []
        assert talk.messages[-1]["content"] == said
        forgotten = talk.ask("never begun")
        answer = talk.ask("next", max_tokens=3)
        assert len(list(answer)) == 3
        assert [m["content"] for m in talk.messages if m["role"] == "user"] == ["hello", "next"]
        forgotten.close()
        answer = talk.ask("left in its midst")
        next(answer)
        del answer
        list(talk.ask("and on", max_tokens=2))
        assert [m["content"] for m in talk.messages if m["role"] == "user"][2:] == ["left in its midst", "and on"]


def test_old_turns_go_when_the_context_fills(model: tinyslm.Model) -> None:
    room = min(LEAST_ROOM, model.context // 8)
    with tinyslm.Conversation(model, "system", max_tokens=20, ignore_eos=True) as talk:
        dropped = []
        for turn in range(12):
            answer = talk.ask(f"question {turn} " + "x" * 20)
            assert answer.prompt_tokens <= model.context - room
            assert len(list(answer)) == 20
            assert talk.used <= model.context
            dropped += answer.dropped
            assert talk.messages[0]["content"] == "system"
        assert dropped
        assert [m["content"][:11].strip() for m in dropped[::2]] == [f"question {n}" for n in range(len(dropped) // 2)]
        questions = [m["content"].split()[1] for m in dropped + talk.messages[1:] if m["role"] == "user"]
        assert questions == [str(n) for n in range(12)]
        with pytest.raises(tinyslm.PromptTooLongError):
            talk.ask("x" * 2000)
        assert talk.messages[-2]["content"].startswith("question 11")


def test_an_answer_goes_on_when_it_fills_the_context(model: tinyslm.Model) -> None:
    with tinyslm.Conversation(model, ignore_eos=True) as talk:
        list(talk.ask("first", max_tokens=model.context - 90))
        answer = talk.ask("second")
        before = talk.model.context - answer.prompt_tokens
        pieces = list(answer)
        assert len(pieces) > before + 20
        assert answer.finish == "context"
        assert [m["content"] for m in answer.dropped[::2]] == ["first"]
        assert [m["role"] for m in talk.messages] == ["user", "assistant"]
        list(talk.ask("first", max_tokens=model.context - 90))
        assert len(list(talk.ask("second", max_tokens=100))) == 100


def test_kept_pages_come_back(path: Path) -> None:
    with tinyslm.load(path) as model:
        pages = model._scheduler.engine.cache.backend
        held: list[int] = []
        new, free = pages.new_page, pages.free_page
        pages.new_page = lambda: held.append(page := new()) or page  # type: ignore[method-assign, func-returns-value]
        pages.free_page = lambda page: (held.remove(page), free(page))[1]  # type: ignore[method-assign]
        for how in range(4):
            talk = tinyslm.Conversation(model, ignore_eos=True)
            answer = talk.ask("hello " * 20)
            next(answer)
            assert held
            if how == 0:
                talk.close()
            elif how == 1:
                list(answer)
                talk.close()
                talk.close()
            elif how == 2:
                del answer, talk
                gc.collect()
            else:
                model.close()
            deadline = time.monotonic() + 5
            while held and time.monotonic() < deadline:
                time.sleep(0.001)
            assert not held, how
        with pytest.raises(tinyslm.ClosedError):
            tinyslm.Conversation(model)


def test_conversations_and_others_at_the_same_time(model: tinyslm.Model) -> None:
    alone: dict[int, list[str]] = {}
    together: dict[int, list[str]] = {}

    def converse(n: int, into: dict[int, list[str]]) -> None:
        with tinyslm.Conversation(model, max_tokens=10, ignore_eos=True) as talk:
            into[n] = ["".join(p.text for p in talk.ask(f"{n} {turn}", seed=n)) for turn in range(4)]

    for n in range(4):
        converse(n, alone)
    threads = [threading.Thread(target=converse, args=(n, together)) for n in range(4)]
    for thread in threads:
        thread.start()
    model.generate(["other"] * 4, max_tokens=30)
    for thread in threads:
        thread.join()
    assert together == alone


def test_save_and_load(model: tinyslm.Model, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    with tinyslm.Conversation(model, "é", max_tokens=5, ignore_eos=True) as talk:
        list(talk.ask("hello"))
        talk.save(file)
        with tinyslm.Conversation(model) as other:
            other.load(file)
            assert other.messages == talk.messages
    for text in ("{", '{"a": 1}', '{"messages": [{"role": "x"}]}', '{"messages": 3}', "3", "[" * 100_000):
        file.write_text(text)
        with tinyslm.Conversation(model) as other, pytest.raises(tinyslm.FileError, match=r"talk.json: no saved"):
            other.load(file)


# ---- the verb ----


def said(path: Path, *lines: str, code: int = 0, args: tuple[object, ...] = ()) -> tuple[str, str]:
    """stdout and stderr of a chat whose turns are piped in."""
    text = "".join(f"{line}\n" for line in lines).encode()
    done = tinyslm_("chat", "-m", path, "-s", 3, "-n", 6, *args, stdin=text)
    assert done.returncode == code, done
    return done.stdout.decode(), done.stderr.decode()


def test_a_pipe_is_a_line_a_turn(path: Path, model: tinyslm.Model) -> None:
    with tinyslm.Conversation(model, "Be kind.", seed=3, max_tokens=6) as talk:
        answers = ["".join(p.text for p in talk.ask(text)) for text in ("hello", "a\nb\n c", "<|end|>")]
    wanted = "".join(a if a.endswith("\n") else a + "\n" for a in answers)
    out, error = said(path, "hello", '"""a', "b", ' c"""', "", "<|end|>", args=("--system", "Be kind."))
    assert out == wanted
    assert set(error.splitlines()) <= {"tinyslm: the answer has as many tokens as -n allows"}


def test_commands(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    out, error = said(path, "/system Be brief.", "hello", "/stats", f"/save {file}", "/clear", "/system",
                      f"/load {file}", "/stats", "/help", "/exit", "never read")  # fmt: skip
    assert len(out.splitlines()) >= 1
    assert [m["role"] for m in json.loads(file.read_text())["messages"]] == ["system", "user", "assistant"]
    for part in ("set; what was said", "3 messages are in", "forgotten", "the system message: Be brief.",
                 "3 messages from", "of 256 tokens, 3 messages", "tokens/s, seed 3", "/save FILE"):  # fmt: skip
        assert part in error
    out, error = said(path, "/nonsense", "/load nowhere", "/save", "refuse", "/load", code=1)
    assert out == ""
    assert [line.split(": ", 1)[1][:24] for line in error.splitlines()] == [
        "there is no command /non", "[Errno 2] No such file o", "/save FILE: the file is ", f"{path}"[:24],
        "/load FILE: the file is ",
    ]  # fmt: skip
    assert said(path, "/etc/passwd is a file")[0]


def test_a_full_context_is_said(path: Path) -> None:
    _, error = said(path, *(f"question {n} {'x' * 30}" for n in range(8)), args=("-c", 96))
    assert re.search(
        r"context of 96 tokens is full: the oldest \d messages are dropped, from 'question 0 x+' on", error
    )
    assert said(path, "x" * 900, code=1)[1].startswith("tinyslm: the prompt has ")


def test_templates_that_take_no_system_message(path: Path, tmp_path: Path) -> None:
    for source, word in (("{{ messages[-1].content }}", "leaves system messages out"),
                         ("{{ raise_exception('no system') }}", "refuses these messages: no system")):  # fmt: skip
        (tmp_path / "other.gguf").write_bytes(path.read_bytes())
        other = with_template(tmp_path / "other.gguf", source)
        if "raise" in source:
            assert word in refused("chat", "-m", other, "--system", "x")
        else:
            assert word in said(other, args=("--system", "x"))[1]


def test_input_that_is_no_utf8(path: Path) -> None:
    done = tinyslm_("chat", "-m", path, "-n", 3, stdin=b"caf\xe9\nhello\n")
    assert done.stdout or b"UTF-8" in done.stderr


def test_without_a_model_it_is_the_built_in_one() -> None:
    done = tinyslm_("chat", "-n", 4, stdin=b"Tell me a tale.\n")
    assert (done.returncode, b"built-in model" in done.stderr) == (0, True)


class Terminal:
    """A chat that someone types to."""

    def __init__(self, *args: object) -> None:
        self.master, slave = pty.openpty()

        def take_terminal() -> None:
            os.setsid()
            import fcntl
            import termios

            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen([*TINYSLM, "chat", *map(str, args)], stdin=slave, stdout=slave, stderr=slave,
                                        env={**ENVIRONMENT, "TERM": "xterm"}, preexec_fn=take_terminal)  # fmt: skip
        self.slave, self.shown = slave, ""

    def until(self, pattern: str) -> str:
        """What was shown up to the pattern, which must come; it is then past."""
        while not (found := re.search(pattern, self.shown)):
            self.read()
        before, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return before

    def read(self) -> None:
        assert select.select([self.master], [], [], 30)[0], self.shown
        self.shown += os.read(self.master, 4096).decode(errors="replace")

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def ends(self) -> tuple[int, bool]:
        """The exit code, and whether the terminal echoes again."""
        import termios

        while self.process.poll() is None:
            if select.select([self.master], [], [], 0.05)[0]:
                self.read()
        echoes = bool(termios.tcgetattr(self.slave)[3] & termios.ECHO)
        os.close(self.master)
        os.close(self.slave)
        return self.process.wait(20), echoes


PROMPT = r"\[\d+/\d+\] > "


def test_ctrl_c_stops_the_answer_and_then_leaves(slow: Path) -> None:
    chat = Terminal("-m", slow)
    chat.until(PROMPT)
    chat.type("hello\r")
    chat.until("hello\r\n(.|\n){20}")
    chat.type("\x03")
    used = chat.until(PROMPT)
    assert "Traceback" not in used
    assert int(re.findall(r"\[(\d+)/", used)[-1]) > 10
    chat.type("never sent")
    chat.until("never sent")
    time.sleep(0.3)  # CPython's readline sees a signal only while it waits for keys, not while it shows one
    chat.type("\x03")  # discards the line
    chat.until(PROMPT)
    chat.type("/stats\r")
    assert "2 messages" in chat.until("context.*\r\n")
    chat.until(PROMPT)
    chat.type("\x03")
    assert chat.ends() == (130, True)
    assert "Traceback" not in chat.shown


def test_ctrl_d_and_pasted_lines(path: Path) -> None:
    chat = Terminal("-m", path, "-n", 4)
    chat.until(PROMPT)
    chat.type("\x1b[200~one\ntwo\x1b[201~\r")
    chat.until(PROMPT)
    chat.type("/save /dev/stderr\r")
    assert "one\\ntwo" in chat.until("messages are in")
    chat.until(PROMPT)
    chat.type("\x04")
    assert chat.ends() == (0, True)


def test_ctrl_c_of_a_pipe(slow: Path) -> None:
    process = subprocess.Popen([*TINYSLM, "chat", "-m", str(slow)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, env=ENVIRONMENT)  # fmt: skip
    assert process.stdin
    assert process.stdout
    for _ in range(2):  # the answer stops, and the program goes on
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        assert os.read(process.stdout.fileno(), 10)
        process.send_signal(signal.SIGINT)
        end = b""
        while not end.endswith(b"\n") or end.count(b"\n") < 1:
            end += os.read(process.stdout.fileno(), 65536)
            if process.poll() is not None:
                break
        time.sleep(0.2)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    assert b"Traceback" not in process.communicate()[1]
