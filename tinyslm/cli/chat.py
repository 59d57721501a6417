"""tinyslm chat: a conversation in the terminal."""

from __future__ import annotations

import signal
import sys
import time
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any

from ..errors import CancelledError, ChatTemplateError, FileError, OptionError, PromptTooLongError
from . import interrupt, source
from .lines import Lines
from .run import add_sampling, integer, sampling_of
from .terminal import Output, Status, printable, say

if TYPE_CHECKING:
    from ..conversation import Answer, Conversation
    from ..model import Model

HELP = "talk with a model"
DESCRIPTION = """\
A conversation with a model. Its answers go to stdout as they come, everything else to stderr. Where stdin is a pipe,
each line is a turn, and nothing is shown but the answers."""
EXAMPLES = '''\
examples:
  tinyslm chat
  tinyslm chat -m hf:HuggingFaceTB/SmolLM2-360M-Instruct-GGUF --system "You are brief."
  printf 'Hello\\nWhat did I say?\\n' | tinyslm chat -m model.gguf --temp 0

Ctrl-C stops an answer; at an empty prompt it leaves, as Ctrl-D does. A message of several lines stands between two
"""; a pasted one is taken whole. /help lists the commands.

exit codes: 0 done, 1 error, 2 wrong usage, 130 Ctrl-C
'''
COMMANDS = {
    "/help": "this list",
    "/clear": "forget what was said, but not the system message",
    "/system": "/system TEXT sets the system message; without TEXT it is shown",
    "/save": "/save FILE writes the conversation as JSON",
    "/load": "/load FILE goes on with one that was saved",
    "/stats": "what is in the context, and how fast the last answer was",
    "/exit": "leave; Ctrl-D does too",
}


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    source.add_argument(parser)
    add("--system", metavar="TEXT", help="what the model is told beforehand")
    add("-n", "--n-predict", "--predict", "--max-tokens", metavar="N", type=integer(1, -1), default=-1, dest="tokens",
        help="most tokens of an answer (-1: until the model ends it)")  # fmt: skip
    add("-t", "--threads", metavar="N", type=integer(1), help="threads (the physical cores that this process may use)")
    add("-c", "--ctx-size", "--context", metavar="N", type=integer(0), dest="context",
        help="tokens that the conversation may have (0: as many as the model was made for); where it gets longer, the "
        "oldest turns are dropped, and that is said")  # fmt: skip
    add("--backend", choices=("native", "numba", "reference"), help="what runs the model (the fastest there is)")
    add_sampling(parser.add_argument_group("sampling"))


def run(args: Namespace) -> int:
    sampling, lines, output = sampling_of(args), Lines(), Output()
    from ..conversation import Conversation
    from ..model import load

    path = source.find(args.model)
    with Status("loading") as status:
        model = load(path, threads=args.threads, context=args.context or None, backend=args.backend,
                     progress=lambda share: setattr(status, "share", share))  # fmt: skip
    if args.tokens != -1:
        sampling["max_tokens"] = args.tokens
    with model, Conversation(model, args.system, **sampling) as conversation:
        if args.system is not None:
            _check_system(model, args.system)
        interrupt.hand_over()
        if lines.terminal:
            say(f"{path.name}, a context of {model.context} tokens; /help lists the commands, Ctrl-D leaves")
            if args.model is None:
                say("you could say: Tell me a tale about a fox.")
        return Chat(conversation, lines, output).run()


def _check_system(model: Model, system: str) -> None:
    """Say so where the template takes no notice of a system message. Raises ChatTemplateError where it refuses one."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "-"}]
    if system.strip() not in model.template.render(messages).text:
        say("this model's chat template leaves system messages out: it will not see this one")


class _LeaveError(Exception):
    """Ctrl-C at an empty prompt."""


class _DiscardError(Exception):
    """Ctrl-C while something was typed, or while a prompt was made."""


class Chat:
    """The loop: read, answer, until the input ends."""

    def __init__(self, conversation: Conversation, lines: Lines, output: Output) -> None:
        self.conversation, self.lines, self.output = conversation, lines, output
        self.answer: Answer | None = None  # while it is written
        self.asking, self.failed = False, False
        self.last: tuple[Answer, float, float] | None = None  # seconds to its first piece, and from there to the end

    def run(self) -> int:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._interrupted)
        while True:
            try:
                text = self.lines.read(f"[{self.conversation.used}/{self.conversation.model.context}] > ")
                if text is None or text.strip() == "/exit":
                    if text is None and self.lines.terminal:
                        print(file=sys.stderr)
                    return int(self.failed)
                self._do(text)
            except _DiscardError:
                print(file=sys.stderr)
            except _LeaveError:
                if self.lines.terminal:
                    print(file=sys.stderr)
                return 130
            except (ChatTemplateError, FileError, OptionError, PromptTooLongError, OSError) as error:
                if isinstance(error, BrokenPipeError):
                    raise
                self.failed = not self.lines.terminal
                say(str(error))

    def _interrupted(self, *_: object) -> None:
        """Ctrl-C: the main thread is here in the midst of whatever it does."""
        if self.answer is not None:
            self.answer.close()
        elif self.asking or self.lines.begun():
            raise _DiscardError
        else:
            raise _LeaveError

    def _do(self, text: str) -> None:
        word, _, rest = text.strip().partition(" ")
        if word in COMMANDS:
            getattr(self, f"_{word[1:]}")(rest.strip())
        elif word.startswith("/") and word[1:].isalpha():
            raise OptionError(f"there is no command {word}; /help lists those there are")
        elif text.strip():
            self._say(text)

    # ---- an answer ----

    def _say(self, text: str) -> None:
        begin = time.perf_counter()
        self.asking = True
        try:
            answer = self.answer = self.conversation.ask(text)
        finally:
            self.asking = False
        stopped, first = False, begin
        try:
            self._tell_dropped(answer, 0)
            with Status("reading"):
                piece = next(answer, None)
            first = time.perf_counter()
            dropped = len(answer.dropped)
            while piece is not None:
                self.output.write(piece.text)
                piece = next(answer, None)
                dropped = self._tell_dropped(answer, dropped)
        except CancelledError:
            stopped = True
        finally:
            self.answer = None
            self.output.end()
        if not self.lines.terminal and not self.output.at_line_start:
            self.output.write("\n")
        self.last = answer, first - begin, time.perf_counter() - first
        self._tell_end(answer, stopped or not answer.finish)

    def _tell_dropped(self, answer: Answer, known: int) -> int:
        """Say what went out of the conversation since `known` messages; how many did by now."""
        if len(answer.dropped) > known:
            self.output.end()
            first = printable(answer.dropped[known]["content"] or "")
            say(f"the context of {self.conversation.model.context} tokens is full: the oldest "
                f"{len(answer.dropped) - known} messages are dropped, from {first[:40]!r} on")  # fmt: skip
        return len(answer.dropped)

    def _tell_end(self, answer: Answer, stopped: bool) -> None:
        if stopped and not answer.ids:
            say("stopped before the answer began: the message is forgotten")
        elif answer.finish == "context":
            say(f"the answer fills the context of {self.conversation.model.context} tokens and ends here")
        elif answer.finish == "length":
            say("the answer has as many tokens as -n allows")

    # ---- commands ----

    def _help(self, _: str) -> None:
        lines = [f"  {name:<8}  {text}" for name, text in COMMANDS.items()]
        lines.append('  """        begins and ends a message of several lines')
        print("\n".join(lines), file=sys.stderr)

    def _clear(self, _: str) -> None:
        self.conversation.messages = self._system_message()
        say("forgotten")

    def _system_message(self) -> list[dict[str, Any]]:
        return [m for m in self.conversation.messages[:1] if m["role"] == "system"]

    def _system(self, text: str) -> None:
        old = self._system_message()
        if not text:
            say(f"the system message: {old[0]['content']}" if old else "there is no system message")
            return
        _check_system(self.conversation.model, text)
        rest = self.conversation.messages[len(old) :]
        self.conversation.messages = [{"role": "system", "content": text}, *rest]
        say("set; what was said before is kept")

    def _save(self, path: str) -> None:
        if not path:
            raise OptionError("/save FILE: the file is missing")
        self.conversation.save(path)
        say(f"{len(self.conversation.messages)} messages are in {path}")

    def _load(self, path: str) -> None:
        if not path:
            raise OptionError("/load FILE: the file is missing")
        self.conversation.load(path)
        say(f"{len(self.conversation.messages)} messages from {path}")

    def _stats(self, _: str) -> None:
        conversation = self.conversation
        print(f"context  {conversation.used} of {conversation.model.context} tokens, "
              f"{len(conversation.messages)} messages", file=sys.stderr)  # fmt: skip
        if self.last:
            answer, before, after = self.last
            steps = max(len(answer.ids) - 1, 0)
            print(f"prompt   {answer.prompt_tokens} tokens, {answer.reused} of them kept, {before:.2f} s\n"
                  f"answer   {len(answer.ids)} tokens, {steps / max(after, 1e-9):.1f} tokens/s, seed {answer.seed}",
                  file=sys.stderr)  # fmt: skip
