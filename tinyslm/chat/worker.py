"""The process that renders chat templates: `python -c "from tinyslm.chat import worker; worker.serve()"`.

A template from a file may loop for ever, or ask in one word for all the memory there is, in ways too many to forbid: so
it runs here, where the system counts. A rendering that takes more than its time on the CPU is ended by a signal that no
Python has to handle; memory beyond the limit is not given.

A request: source, variables, and own: the names of those that count as the
template's. The answer: text and own, lengths of the stretches
that were alternately given and the template's, beginning with given; or error, line and kind.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

from .sandbox import Arguments, RefusedError, line_of, render
from .text import OWN, Text, own, owned
from .wire import receive, send

SECONDS = 1.0  # on the CPU, for a rendering
MEMORY = 512 << 20  # bytes that a rendering may have beyond what the process has at its start
LONGEST = 1 << 24  # characters of a prompt


def serve() -> None:
    """Answer requests until stdin ends."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits
    requests, answers = os.fdopen(0, "rb", 0), os.fdopen(1, "wb", 0)
    _limit_memory()
    while request := receive(requests):
        with _limited_time():
            answer = _answer(request)
        send(answers, answer)


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):  # a system without such limits
        import resource

        with open("/proc/self/statm") as file:
            has = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (has + MEMORY, has + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@contextlib.contextmanager
def _limited_time() -> Iterator[None]:
    import signal

    if not hasattr(signal, "setitimer"):
        yield
        return
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # which ends the process, whatever it is in the midst of
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    variables = request["variables"]
    for name in request["own"]:
        variables[name] = own(variables[name])
    for message in variables["messages"]:
        message["role"] = own(message["role"])
        for call in message.get("tool_calls") or ():
            if isinstance(call["function"]["arguments"], dict):
                call["function"]["arguments"] = Arguments(call["function"]["arguments"])
    try:
        text = render(request["source"], variables)
        if len(text) > LONGEST:
            return {"error": f"it wrote {len(text)} characters, {LONGEST} at most are a prompt", "line": None}
        return {"text": str.__str__(text), "own": _stretches(text)}
    except RefusedError as error:
        return {"error": str(error)[:2000], "line": line_of(error), "refused": True}
    except MemoryError as error:
        return {"error": f"it needs more than {MEMORY >> 20} MB of memory", "line": line_of(error)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:500], "line": line_of(error)}


def _stretches(text: Text) -> list[int]:
    own = owned(text)
    return [0] * own.startswith(OWN) + [len(run) for run in re.findall(b"\0+|\1+", own)]
