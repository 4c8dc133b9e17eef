"""Size limits for the values of a chat template, checked before a value is built.

A template can grow text by operators, by filters and by methods of strings; each is bounded here.
All raise jinja2's SecurityError, which ``chat_template.render`` explains.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.runtime import Context

MAX_CHARS = 16 * 2**20  # of the output, and of each intermediate value
MAX_BITS = 1024  # of an integer
ELEMENT_CHARS = 64  # charged for an element of a list or mapping in addition to its text

# A width of four digits, or one that is itself an argument.
_WIDE_FIELD = re.compile(r"\d{4}|%[^a-z%]*\*|\{[^{}]*:[^{}]*\{")


def limit(chars: int) -> None:
    """Raise SecurityError for a value of more than MAX_CHARS characters."""
    if chars > MAX_CHARS:
        raise SecurityError(f"it builds a value of more than {MAX_CHARS} characters")


def size(value: Any) -> int:
    """Approximate length of a value when written out; raises once that is too many.

    Shared values are counted as often as they would be written, without writing them.
    """
    total, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str | bytes):
            total += len(item)
        elif isinstance(item, Mapping):
            total += ELEMENT_CHARS * len(item)
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set | frozenset):
            total += ELEMENT_CHARS * len(item)
            waiting += item
        limit(total)
    return total


def length(value: Any) -> int:
    """Number of characters of a text; ``size`` of any other value."""
    return len(value) if isinstance(value, str | bytes) else size(value)


def check_product(operator: str, left: Any, right: Any) -> None:
    """Check ``*`` and ``**`` of two integers, or of a text or list and an integer."""
    if isinstance(left, int) and isinstance(right, int):
        a, b = left.bit_length(), right.bit_length()
        if (a * abs(right) if operator == "**" else a + b) > MAX_BITS:
            raise SecurityError(f"it computes a number of more than {MAX_BITS} bits")
    elif isinstance(left, int):
        limit(left * length(right))
    elif isinstance(right, int):
        limit(length(left) * right)


def replaced_length(text: Any, old: Any, new: Any) -> int:
    """An upper bound of the length after replacing ``old``, which may be ''."""
    text, old, new = str(text), str(old), str(new)
    return len(text) + text.count(old) * len(new)


def check_format(text: str, values: Any) -> None:
    """Check ``%`` or ``.format``: each field takes at most all values or a width of 999."""
    if _WIDE_FIELD.search(text):
        raise SecurityError("it formats text to an extreme width")
    limit(len(text) + (text.count("%") + text.count("{")) * (size(values) + 1000))


def bounded(call: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a filter to refuse arguments that are too large to write out."""

    @functools.wraps(call)
    def checked(*args: Any, **kwargs: Any) -> Any:
        size([arg for arg in args if not isinstance(arg, Context)])  # Jinja's argument
        return call(*args, **kwargs)

    return checked


def bounded_replace(call: Callable[..., str]) -> Callable[..., str]:
    @functools.wraps(call)
    def replace(evaluation: Any, text: Any, old: Any, new: Any, count: int | None = None) -> str:
        limit(replaced_length(text, old, new))
        return call(evaluation, text, old, new, count)

    return replace


def bounded_join(call: Callable[..., str]) -> Callable[..., str]:
    @functools.wraps(call)
    def join(evaluation: Any, values: Iterable[Any], d: str = "", attribute: Any = None) -> str:
        values = list(values)
        limit(size(values) + len(str(d)) * len(values))
        return call(evaluation, values, d, attribute)

    return join


def bounded_indent(call: Callable[..., str]) -> Callable[..., str]:
    @functools.wraps(call)
    def indent(text: str, width: Any = 4, first: bool = False, blank: bool = False) -> str:
        step = width if isinstance(width, int) else len(width)
        limit(len(text) + step * (text.count("\n") + 1))
        return call(text, width, first, blank)

    return indent
