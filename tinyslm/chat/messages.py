"""Messages as OpenAI's API has them, checked and brought to what templates expect."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from ..errors import OptionError

Message = Mapping[str, Any]
ROLES = ("system", "developer", "user", "assistant", "tool", "function")


def checked(messages: Sequence[Message], template: str) -> list[dict[str, Any]]:
    """Copies with content as one str, or None, and the arguments of tool calls as mappings where they are JSON.

    A role is one of ROLES, or one that the template names in quotes: it may become part of a control token. Other keys
    are left as they are. Raises OptionError, naming the message and the key, for anything else.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise OptionError(f"messages: a list of {{'role': ..., 'content': ...}}, not {type(messages).__name__}")
    if not messages:
        raise OptionError("messages: the list is empty")
    return [_message(f"messages[{i}]", message, template) for i, message in enumerate(messages)]


def checked_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    """The tools as JSON holds them. Raises OptionError where they are no list of mappings."""
    if tools is None:
        return None
    if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Sequence):
        raise OptionError(f"tools: a list of mappings, not {type(tools).__name__}")
    for i, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            _fail(f"tools[{i}]", "a mapping, as OpenAI's API has it", tool)
    return [as_json(f"tools[{i}]", dict(tool)) for i, tool in enumerate(tools)]


def as_json(where: str, value: Any) -> Any:
    """A copy of a value, if JSON can hold it. Raises OptionError."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise OptionError(f"{where}: JSON cannot hold it: {error}") from None


def _fail(where: str, expected: str, got: object) -> NoReturn:
    raise OptionError(f"{where}: expected {expected}, got {repr(got)[:60]}")


def _message(where: str, message: Message, template: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        _fail(where, "a mapping with role and content", message)
    made: dict[str, Any] = as_json(where, {**message, "content": _content(f"{where}['content']", message)})
    role = made.get("role")
    if not isinstance(role, str):
        _fail(f"{where}['role']", f"one of {', '.join(ROLES)}", role)
    if role not in ROLES and f"'{role}'" not in template and f'"{role}"' not in template:
        _fail(f"{where}['role']", f"one of {', '.join(ROLES)}, or one that the template names", role)
    if made.get("tool_calls") is not None:
        made["tool_calls"] = _tool_calls(f"{where}['tool_calls']", made["tool_calls"])
    if made["content"] is None and not made.get("tool_calls") and role != "assistant":
        _fail(f"{where}['content']", "a text", None)
    return made


def _content(where: str, message: Message) -> str | None:
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, Mapping) or not isinstance(content, Sequence):
        _fail(where, "a text, or a list of {'type': 'text', 'text': ...}", content)
    for i, part in enumerate(content):
        kind = part.get("type", "text") if isinstance(part, Mapping) else None
        if kind is None or (kind == "text" and not isinstance(part.get("text"), str)):
            _fail(f"{where}[{i}]", "{'type': 'text', 'text': ...}", part)
        if kind != "text":
            raise OptionError(f"{where}[{i}]: a part of type {str(kind)[:40]!r}; this version reads text alone")
    return "\n".join(part["text"] for part in content)


def _tool_calls(where: str, calls: Any) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        _fail(where, "a list", calls)
    for i, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            _fail(f"{where}[{i}]", "{'function': {'name': ..., 'arguments': ...}}", call)
        function["arguments"] = _arguments(f"{where}[{i}]['function']['arguments']", function.get("arguments", "{}"))
    return calls


def _arguments(where: str, arguments: Any) -> dict[str, Any]:
    """OpenAI's API has them as JSON in a str, the hub's templates as a mapping."""
    found = arguments
    if isinstance(found, str):
        try:
            found = json.loads(found or "{}")
        except (ValueError, RecursionError):
            found = None
    if not isinstance(found, dict):
        _fail(where, "a mapping, or JSON of one in a str", arguments)
    return found
