"""Sandbox of chat templates: Jinja's immutable sandbox, as a script of a ``LimitedProcess``.

The sandbox keeps templates away from Python's internals (CVE-2024-34359); the process bounds their
time and memory, and holds nothing but the template and its variables. Everything else follows
transformers' ``chat_template_utils``: trimmed blocks, loop controls, ``{% generation %}``,
``raise_exception``, ``strftime_now``, and a ``tojson`` that leaves non-ASCII text and HTML alone.
"""

from __future__ import annotations

import datetime
import functools
import importlib
import json
from collections.abc import Callable
from typing import Any, NoReturn

from jinja2 import Template, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_OUTPUT_CHARS = 16 * 2**20  # the reply is held by the process that asks

# What Jinja and Python import late, when the process may open no file any more.
_LATE = (
    "encodings.ascii", "encodings.unicode_escape", "html", "jinja2.constants", "jinja2.debug",
    "pprint", "textwrap",
)  # fmt: skip
for _name in _LATE:
    importlib.import_module(_name)


class _RefusalError(TemplateError):
    """The template itself refuses the messages."""


def answer(question: dict[str, Any]) -> dict[str, str]:
    """The ``text`` of ``template`` with ``variables``, or why there is none.

    Raises whatever Python raises: a template is a program.
    """
    try:
        text = _compile(question["template"]).render(question["variables"])
    except TemplateSyntaxError as error:
        return {"broken": f"line {error.lineno}: {error.message}"}
    except _RefusalError as error:
        return {"refused": str(error)}
    except SecurityError as error:
        return {"stopped": str(error)}
    except (RecursionError, SyntaxError):  # of Python's, for what Jinja made of the template
        return {"stopped": "it is nested too deeply"}
    if len(text) > MAX_OUTPUT_CHARS:
        return {"stopped": f"it writes more than {MAX_OUTPUT_CHARS} characters"}
    return {"text": text}


@functools.lru_cache(maxsize=8)
def _compile(template: str) -> Template:
    return _Environment().from_string(template)


class _Generation(Extension):
    """``{% generation %}`` marks a model's output for training; here it renders its content."""

    tags = {"generation"}  # noqa: RUF012 (Jinja declares it for instances)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Callable[[], str]) -> str:
        return caller()


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
    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        self.filters["tojson"] = _tojson
        self.globals.update(
            namespace=_Namespace, raise_exception=_raise_exception, strftime_now=_strftime_now
        )


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise _RefusalError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)
