"""A conversation with a model: its messages, and the KV cache of what was said, kept between turns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .chat.messages import checked
from .chat.process import WORKER
from .errors import FileError, PromptTooLongError, TinySLMError
from .model import Model
from .scheduler import Piece

LEAST_ROOM = 64  # tokens that a new answer has at least, by dropping old turns; of small contexts, an eighth


class Answer:
    """The pieces of one answer, as an iterator; when it ends, or is closed, it becomes part of the conversation.

    Where it fills the context, it goes on after the oldest turns are dropped, as long as there are any.

    dropped: the oldest messages, which had no room any more and were taken out of the conversation.
    prompt_tokens: ids of the prompt; reused: how many of them the KV cache held already, known with the first piece.
    """

    def __init__(self, conversation: Conversation, message: dict[str, Any], options: Mapping[str, Any]) -> None:
        self._conversation, self._options, self.message = conversation, options, message
        self.text, self.ids, self.dropped = "", list[int](), list[dict[str, Any]]()
        self._taken = self._closed = False
        prompt = self._begin()
        self.start, self.prompt_tokens, self.reused = prompt.last, len(prompt.ids), 0
        self.continues = not conversation.model.tokenizer.is_special(prompt.ids[-1])

    def _begin(self) -> _Prompt:
        """Ask the model for what follows the conversation, and what the answer has so far."""
        conversation = self._conversation
        prompt = conversation._fitting(self.message, len(self.ids))
        model = conversation.model
        request = model.answer_request(prompt.ids + self.ids, False, self._options, conversation._kept)
        self.dropped += prompt.dropped
        conversation.messages = prompt.messages[:-1]
        self._stream = model._stream(request)
        if self._closed:  # meanwhile
            self._stream.close()
        return prompt

    def __iter__(self) -> Answer:
        return self

    def __next__(self) -> Piece:
        try:
            piece = next(self._stream, None)
            if piece is None and self.finish == "context" and not self._closed and self._goes_on():
                piece = next(self._stream, None)
        except BaseException:
            self._take()
            raise
        if piece is None:
            self._take()
            raise StopIteration
        if not self.ids:
            self.reused = self._stream.reused
        self.text += piece.text
        self.ids.append(piece.token)
        return piece

    def _goes_on(self) -> bool:
        if "max_tokens" in self._options:
            left = self._options["max_tokens"] - self._stream.drawn
            self._options = {**self._options, "max_tokens": left}
        try:
            self._begin()
        except PromptTooLongError:
            return False
        return True

    @property
    def finish(self) -> str:
        """Why it ended: "end" (token), "stop" (text), "length" (max_tokens), "context" (full); empty while it runs."""
        return self._stream.finish

    @property
    def seed(self) -> int:
        return self._stream.seed

    def close(self) -> None:
        """Stop; what was said so far stays. From any thread: one that waits for a piece gets CancelledError."""
        self._closed = True
        self._stream.close()

    def _take(self) -> None:
        """Become part of the conversation, with the question; an answer that never began is forgotten."""
        if self._taken or not self.ids:
            return
        self._taken = True
        conversation = self._conversation
        conversation.messages += [self.message, {"role": "assistant", "content": self.text}]
        tokenizer = conversation.model.tokenizer
        ids = [i for i in self.ids if i not in tokenizer.eog]
        if tokenizer.decode(ids, continues=self.continues) == self.text:  # no stop text cut it
            text, before = self.start
            conversation._known[text + self.text] = before + ids


@dataclass(frozen=True)
class _Prompt:
    """messages: those that have room; dropped: those that have none. last: the text at the end, and its ids."""

    messages: list[dict[str, Any]]
    dropped: list[dict[str, Any]]
    ids: list[int]
    last: tuple[str, list[int]]


class Conversation:
    """Messages, and a sequence in the model's KV cache that holds what was said: each turn steps what is new.

    One answer at a time; asking for the next one stops the one before. `messages` are OpenAI's; they may be changed
    between turns. Give the cache's memory back with close(), or by leaving a `with` block.
    """

    def __init__(self, model: Model, system: str | None = None, **options: Any) -> None:
        """options: as for Model.chat, for each turn. Raises ClosedError."""
        self.model, self.options = model, options
        self.messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
        WORKER.start()  # which takes a moment
        self._kept = model._scheduler.keep()
        self._known: dict[str, list[int]] = {}  # the ids that made the text of an answer, which encoding may not find
        self._answer: Answer | None = None

    @property
    def used(self) -> int:
        """Tokens of the context that are taken."""
        return len(self._kept.ids)

    def ask(self, text: str, **options: Any) -> Answer:
        """The answer to what the user says, as it comes. Options go before those of the conversation.

        Where prompt and answer have no room, the oldest turns are dropped, the system message never: `dropped` of the
        answer has them. Raises PromptTooLongError where the message alone is too long, and what Model.chat raises; the
        conversation is then as it was.
        """
        if self._answer is not None:
            self._answer.close()
            self._answer._take()
        self._answer = Answer(self, {"role": "user", "content": text}, {**self.options, **options})
        return self._answer

    def _fitting(self, message: dict[str, Any], answered: int) -> _Prompt:
        """The prompt for the answer to a message, of which `answered` tokens are there: with room for some more.

        Raises PromptTooLongError where the message alone leaves none.
        """
        context, messages = self.model.context, [*self.messages, message]
        first, dropped = int(messages[0]["role"] == "system"), list[dict[str, Any]]()
        while True:
            ids, last = self._ids(messages)
            tokens = len(ids) + answered
            turn = next((i for i in range(first + 1, len(messages)) if messages[i]["role"] == "user"), None)
            if tokens <= context - (min(LEAST_ROOM, context // 8) if turn else 0):
                return _Prompt(messages, dropped, ids, last)
            if turn is None:
                raise PromptTooLongError(tokens, context)
            dropped += messages[first:turn]
            messages = messages[:first] + messages[turn:]

    def _ids(self, messages: list[dict[str, Any]]) -> tuple[list[int], tuple[str, list[int]]]:
        """The ids of a prompt, and the text at its end with its ids."""
        ids, last = list[int](), ("", list[int]())
        for part in self.model.template.render(messages).parts(self.model.tokenizer):
            if isinstance(part, int):
                ids.append(part)
                last = ("", [])
            else:
                last = (part, self._known.get(part) or self.model.tokenizer.encode_part(part))
                ids += last[1]
        return ids, last

    # ---- files ----

    def save(self, path: str | Path) -> None:
        """Write the messages as JSON. Raises OSError."""
        Path(path).write_text(json.dumps({"messages": self.messages}, ensure_ascii=False, indent=1) + "\n", "utf-8")

    def load(self, path: str | Path) -> None:
        """Take the messages of a file that `save` wrote. Raises OSError, and FileError for anything else in it."""
        try:
            found = json.loads(Path(path).read_text("utf-8"))
            messages = found["messages"] if isinstance(found, dict) else found
            self.messages = checked(messages, self.model.template.source) if messages != [] else []
        except (ValueError, KeyError, RecursionError) as error:
            reason = error if isinstance(error, TinySLMError) else "not JSON, or no 'messages' in it"
            raise FileError(path, f"no saved conversation: {reason}") from None

    # ---- life ----

    def close(self) -> None:
        """Stop an answer that runs, and give the memory back. The messages stay."""
        if self._answer is not None:
            self._answer.close()
        self.model._scheduler.discard(self._kept)

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with suppress(AttributeError):  # it was never made whole
            self.close()
