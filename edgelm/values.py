"""Values that callers give, read as numbers, texts, paths or token ids.

Each function takes anything, numbers of numpy and torch included, and raises TypeError or
ValueError for what is none of its kind; ``Option.require`` makes a UsageError of it.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_COUNT = re.compile(r"(-?[0-9]{1,11})([kK]?)")  # longer is a slip of the keyboard


def shown(value: Any) -> str:
    """At most 60 characters of a value for an error, whatever it is."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # an int of thousands of digits, or somebody's own class
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def whole(value: Any) -> int:
    """A whole number; a bool is none, nor is 3.0."""
    if _is_bool(value) or _is_array(value):
        raise TypeError
    found = operator.index(value)
    if abs(found) >> 128:  # which no count is, and Python may refuse to print
        raise ValueError
    return found


def count(value: Any) -> int:
    """A whole number, or the text of one: 4096, or 4k, which is the same."""
    if not isinstance(value, str):
        return whole(value)
    match = _COUNT.fullmatch(value.strip())
    if match is None:
        raise ValueError
    return int(match[1]) * (1024 if match[2] else 1)


def number(value: Any) -> float:
    """A number, NaN and infinity included; a bool is none, nor is a text that spells one."""
    if _is_bool(value) or _is_array(value) or isinstance(value, str | bytes | bytearray):
        raise TypeError
    return float(value)


def truth(value: Any) -> bool:
    """True or False."""
    if not _is_bool(value):
        raise TypeError
    return bool(value)


def text(value: Any) -> str:
    """A str."""
    if not isinstance(value, str):
        raise TypeError
    return value


def texts(value: Any) -> tuple[str, ...]:
    """A str, or a list of them."""
    return (value,) if isinstance(value, str) else tuple(map(text, items(value)))


def path(value: Any) -> str | os.PathLike[str]:
    """A name of a file that the system can be asked for."""
    name = os.fspath(value)
    if "\0" in text(name):
        raise ValueError
    os.fsencode(name)
    found: str | os.PathLike[str] = value
    return found


def callback(value: Any) -> Any:
    """Something that can be called."""
    if not callable(value):
        raise TypeError
    return value


def event(value: Any) -> Any:
    """An event, of threading or another library."""
    callback(getattr(value, "is_set", None))
    return value


def items(value: Any) -> Sequence[Any]:
    """The items of a list, tuple, array or tensor; texts, bytes, sets and mappings are none."""
    found: Any = value.tolist() if _is_array(value) else value
    if isinstance(found, str | bytes | bytearray | memoryview) or not isinstance(found, Sequence):
        raise TypeError
    return found


def mapping(value: Any) -> Mapping[str, Any]:
    """A mapping whose keys are texts."""
    if not isinstance(value, Mapping):
        raise TypeError
    for key in value:
        text(key)
    return value


def mappings(value: Any) -> tuple[Mapping[str, Any], ...]:
    """A list of such mappings."""
    return tuple(map(mapping, items(value)))


def token_ids(value: Any) -> tuple[int, ...]:
    """Token ids; texts, bytes, floats and bools are none."""
    return tuple(map(whole, value if isinstance(value, Iterator) else items(value)))


def biases(value: Any) -> tuple[tuple[int, float], ...]:
    """Pairs of a token id and a number, in order of the ids; a mapping has them as its items."""
    pairs = value.items() if isinstance(value, Mapping) else map(items, items(value))
    return tuple(sorted((whole(token), number(bias)) for token, bias in pairs))


def _is_bool(value: Any) -> bool:
    """True for True and False, also those of numpy and torch."""
    return isinstance(value, bool) or (
        str(getattr(value, "dtype", "")) in ("bool", "torch.bool") and not _is_array(value)
    )


def _is_array(value: Any) -> bool:
    """True for arrays and tensors; one without dimensions is a number."""
    if isinstance(value, memoryview):
        return False
    return hasattr(value, "tolist") and bool(getattr(value, "ndim", None))
