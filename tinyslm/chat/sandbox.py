"""Chat templates in Jinja's immutable sandbox, with what the hub's templates expect of transformers.

As there: `trim_blocks`, `lstrip_blocks`, `break` and `continue`, `{% generation %}`, `raise_exception`, `strftime_now`,
and a `tojson` that escapes nothing. What differs is that the template's own strings are `Text`s, see text.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from types import BuiltinMethodType
from typing import Any, NoReturn

from jinja2 import Template, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import pass_environment

from .text import Text, TextFormatter, concat, own


class RefusedError(TemplateError):
    """The template called raise_exception."""


class Arguments(dict[str, Any]):
    """The arguments of a tool call: a mapping to the templates that want one, its JSON to those that print it."""

    def __str__(self) -> str:
        return json.dumps(self, ensure_ascii=False)

    def __add__(self, other: str) -> str:
        return str(self) + other

    def __radd__(self, other: str) -> str:
        return other + str(self)


class _Generation(Extension):
    """`{% generation %}` marks, for training, what the model is to write; here it is its body."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja has it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Generator(CodeGenerator):
    """Writes Python in which every string of the template is a Text."""

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return f"environment.own({super()._output_const_repr(group)})"

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:  # noqa: N802
        value = node.as_const(frame.eval_ctx)
        if isinstance(value, str):
            self.write(f"environment.own({value!r})")
        else:
            super().visit_Const(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("concat(map(str, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")))")


class Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _Generator
    concat = staticmethod(concat)
    own = staticmethod(own)

    def __init__(self) -> None:
        # not optimised: folding would compute strings that are then no template's own
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[LoopControlExtension, _Generation]
        )
        self.filters |= {"join": _join, "replace": _replace, "tojson": _tojson}
        self.globals |= {"raise_exception": _raise, "strftime_now": _now}

    def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        """A method of a given str becomes that of a Text, so that what the template puts in stays its own."""
        if isinstance(function, BuiltinMethodType) and type(function.__self__) is str:
            function = getattr(Text(function.__self__), function.__name__)
        return super().call(context, function, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Any:
        if isinstance(value, BuiltinMethodType) and value.__name__ == "format" and isinstance(value.__self__, str):
            text = value.__self__
            return TextFormatter(SandboxedFormatter(self), text if isinstance(text, Text) else Text(text))
        return super().wrap_str_format(value)


@pass_environment
def _join(environment: Environment, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), value)
    return concat([str(d)]).join(map(str, value))


def _replace(value: object, old: object, new: object, count: int = -1) -> str:
    return concat([str(value)]).replace(str(old), str(new), count)


def _tojson(
    value: object, ensure_ascii: bool = False, indent: int | str | None = None,
    separators: tuple[str, str] | None = None, sort_keys: bool = False,
) -> str:  # fmt: skip
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: object) -> NoReturn:
    raise RefusedError(str(message))


def _now(form: str) -> str:
    return datetime.now().strftime(form)


@lru_cache(4)
def compiled(source: str) -> Template:
    """Raises TemplateSyntaxError, whose `lineno` says where."""
    return Environment().from_string(source)


def render(source: str, variables: dict[str, Any]) -> Text:
    """What the template writes. Raises whatever the template brings about; see `line_of`."""
    template = compiled(source)
    return concat(template.root_render_func(template.new_context(variables)))


def line_of(error: BaseException) -> int | None:
    """The line of the template, from 1, at which an error of `render` came up; None where none is known."""
    if isinstance(error, TemplateSyntaxError):
        return error.lineno
    line, trace = None, error.__traceback__
    while trace is not None:
        template = trace.tb_frame.f_globals.get("__jinja_template__")
        if isinstance(template, Template):
            line = template.get_corresponding_lineno(trace.tb_lineno)
        trace = trace.tb_next
    return line
