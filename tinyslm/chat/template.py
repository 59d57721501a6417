"""Which template lays out a model's messages, and the prompt that it makes of them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ChatTemplateError, FileError, OptionError
from ..tokenizer import Tokenizer
from . import builtin
from . import messages as checks
from .messages import Message
from .process import WORKER, DiedError, TimeUpError
from .text import GIVEN, OWN

KEY = "tokenizer.chat_template"
_TOKENS = ("bos", "eos", "unk", "pad")


@dataclass(frozen=True)
class Prompt:
    """What a template wrote. own: a byte for each character of `text`, 1 where the template wrote it, 0 where not."""

    text: str
    own: bytes

    def parts(self, tokenizer: Tokenizer) -> list[int | str]:
        """The ids of control tokens, and between them the text. BOS comes first where the file wants one."""
        parts = tokenizer.parts(self.text, self.own)
        bos = [tokenizer.bos] if tokenizer.add_bos and tokenizer.bos is not None else []
        return [*bos, *parts] if parts[:1] != bos else parts


class ChatTemplate:
    """The chat template of a file, or the built-in one that fits its vocabulary where the file has none.

    source: the template. stop: texts that end an answer beside the end tokens; the file's own template has none.
    """

    def __init__(self, metadata: Mapping[str, object], tokenizer: Tokenizer, path: str | Path) -> None:
        self.path = path
        for key in (KEY, f"{KEY}.tool_use"):
            if not isinstance(metadata.get(key, ""), str):
                raise FileError(path, "wrong type", where=key, expected="a string", got=type(metadata[key]).__name__)
        self._own = str(metadata.get(KEY, ""))
        self._for_tools = str(metadata.get(f"{KEY}.tool_use", "")) or self._own
        self._chosen = builtin.choose(tokenizer)
        self._tokens = {
            f"{name}_token": tokenizer.token_text(token)
            for name in _TOKENS
            if (token := getattr(tokenizer, name)) is not None
        }

    @property
    def source(self) -> str:
        return self._own or self._chosen.source

    @property
    def stop(self) -> tuple[str, ...]:
        return () if self._own else self._chosen.stop

    def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> Prompt:  # fmt: skip
        """The prompt after which the assistant's answer begins.

        tools: as OpenAI's API has them. variables: what else the template knows (enable_thinking, say).
        Raises OptionError for malformed messages, tools or variables, ChatTemplateError where the template refuses
        them, is wrong, or asks for more time or memory than templates get.
        """
        if not self._own:
            warnings.warn(f"{self.path}: the file has no chat template: {self._chosen.reason}", stacklevel=4)
        source = self._for_tools if tools and self._own else self.source
        known = {"tools": checks.checked_tools(tools), "documents": None, "add_generation_prompt": True, **self._tokens}
        if fixed := {"messages", *known}.intersection(variables or ()) - {"documents"}:
            raise OptionError(f"variables: {', '.join(sorted(fixed))}: the template has these already")
        given = checks.as_json("variables", dict(variables or {}))
        known |= {**given, "messages": checks.checked(messages, source)}
        return self._ask(source, {"source": source, "variables": known, "own": list(self._tokens)})

    def _ask(self, source: str, request: dict[str, Any]) -> Prompt:
        try:
            answer = WORKER.ask(request)
        except TimeUpError:
            raise ChatTemplateError(self.path, "it ran longer than a template may", None, "") from None
        except DiedError:
            raise ChatTemplateError(self.path, "it used up the memory that a template may have", None, "") from None
        if "error" in answer:
            line = answer["line"]
            excerpt = source.split("\n")[line - 1].strip() if line else ""
            problem = f"it refuses these messages: {answer['error']}" if answer.get("refused") else answer["error"]
            raise ChatTemplateError(self.path, problem, line, excerpt)
        own = b"".join((OWN if i % 2 else GIVEN) * n for i, n in enumerate(answer["own"]))
        return Prompt(re.sub("[\ud800-\udfff]", "\ufffd", answer["text"]), own)
