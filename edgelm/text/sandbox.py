"""Sandbox for chat templates: Jinja's immutable sandbox, with bounds on time and output size.

The sandbox keeps templates away from Python's internals (CVE-2024-34359); the bounds keep one from
hanging the process or exhausting its memory. Everything else follows transformers'
``chat_template_utils``: trimmed blocks, loop controls, ``{% generation %}``, ``raise_exception``,
``strftime_now``, and a ``tojson`` that leaves non-ASCII text and HTML alone.
"""

from __future__ import annotations

import datetime
import functools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from jinja2 import Template, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from edgelm.errors import UsageError
from edgelm.text.sandbox_limits import (
    MAX_CHARS,
    bounded,
    bounded_indent,
    bounded_join,
    bounded_replace,
    check_format,
    check_product,
    length,
    limit,
    replaced_length,
    size,
)

MAX_SECONDS = 2.0  # real templates take milliseconds

# They build text of any size from a number, and no chat template needs them.
_REFUSED_METHODS = {"center", "expandtabs", "ljust", "rjust", "translate", "zfill"}
_REFUSED_FILTERS = (
    "batch", "center", "filesizeformat", "format", "pprint", "slice", "urlize", "wordwrap",
    "xmlattr",
)  # fmt: skip


def run(template: str, variables: Mapping[str, Any]) -> str:
    """Render the template; raises SecurityError for forbidden operations or exceeded bounds."""
    if len(template) > MAX_CHARS // 16:
        raise SecurityError(
            f"it has {len(template)} characters, at most {MAX_CHARS // 16} are allowed"
        )
    try:
        compiled = _compile(template)
    except (RecursionError, MemoryError, SyntaxError) as error:
        raise SecurityError("it is nested too deeply") from error
    with _deadline(compiled.filename or "<template>"):
        return compiled.render(_plain(variables))


@functools.lru_cache(maxsize=8)
def _compile(template: str) -> Template:
    return _Environment().from_string(template)


@contextmanager
def _deadline(filename: str) -> Iterator[None]:
    """Stop a running template after MAX_SECONDS: a trace function works on every platform and in
    every thread, unlike signals, and a template has too few lines for it to be slow."""
    end = time.monotonic() + MAX_SECONDS

    def trace(frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        if frame.f_code.co_filename != filename:
            return None
        if time.monotonic() > end:
            raise SecurityError(f"it ran longer than {MAX_SECONDS:g} s")
        return trace

    outer = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(outer)


def _plain(value: Any) -> Any:
    """Rebuild the value from JSON types: objects with methods never reach a template."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if value is None:
        return None
    raise UsageError(
        f"A chat template was given a value of type {type(value).__name__}; allowed are text, "
        "numbers, booleans, None, and lists and mappings of these."
    )


class _ConcatGenerator(CodeGenerator):
    """Sends ``a ~ b`` through the environment, as the sandbox does for other operators."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.join_values((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Generation(Extension):
    """``{% generation %}`` marks a model's output for training; here it renders its content."""

    tags = {"generation"}  # noqa: RUF012 (Jinja declares it for instances)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """Jinja's namespace without names that refer to Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # as Jinja's: ``self`` may be a keyword
        self, *rest = args
        for name in (names := dict(*rest, **kwargs)):
            _check_name(name)
        Namespace.__init__(self, names)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"it stores {name!r} in a namespace")


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _ConcatGenerator
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # nothing is computed while compiling, when no deadline applies
            finalize=self._finalize,
            extensions=[loopcontrols, _Generation],
        )
        for name in _REFUSED_FILTERS:
            del self.filters[name]
        self.filters.update(
            tojson=_tojson,
            replace=bounded_replace(self.filters["replace"]),
            join=bounded_join(self.filters["join"]),
            indent=bounded_indent(self.filters["indent"]),
        )
        self.filters = {name: bounded(call) for name, call in self.filters.items()}
        del self.globals["lipsum"]
        self.globals.update(
            namespace=_Namespace, raise_exception=_raise_exception, strftime_now=_strftime_now
        )

    @staticmethod
    def _finalize(value: Any) -> Any:
        size(value)
        return value

    def concat(self, parts: Iterable[str]) -> str:
        """Join the output of a template, a macro or a block."""
        written, total = [], 0
        for part in parts:
            total += len(part)
            limit(total)
            written.append(part)
        return "".join(written)

    def join_values(self, values: tuple[Any, ...]) -> str:
        """``a ~ b``."""
        size(values)
        return "".join(map(str, values))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            limit(length(left) + length(right))
        elif operator in ("*", "**"):
            check_product(operator, left, right)
        elif operator == "%" and isinstance(left, str):
            check_format(left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Run calls from a template; string methods that produce longer text are bounded first."""
        method = getattr(obj, "__wrapped__", obj)  # the sandbox wraps str.format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str | bytes):
            name = method.__name__
            if name in _REFUSED_METHODS:
                raise SecurityError(f"it calls .{name}() on text")
            if name in ("format", "format_map"):
                check_format(str(owner), (args, kwargs))
            elif name == "replace" and len(args) >= 2:
                limit(replaced_length(owner, args[0], args[1]))
            elif name == "join" and len(args) == 1:
                args = (list(args[0]),)
                limit(size(args[0]) + len(owner) * len(args[0]))
        return super().call(context, obj, *args, **kwargs)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any
) -> str:
    if isinstance(indent, int) and indent > 16:
        raise SecurityError(f"it indents JSON by {indent} characters")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise_exception(message: str) -> NoReturn:
    raise UsageError(f"The chat template refuses these messages: {message}")


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)
