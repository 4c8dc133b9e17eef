"""Encodes texts with a ``tokenizer.json``, as a script of a ``LimitedProcess``.

Its normalizer and pre-tokenizer are unknown ones that may take any time and memory, or make the
library panic.
"""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer

_library: Tokenizer | None = None


def answer(question: dict[str, Any]) -> list[int]:
    """Load ``tokenizer``, a JSON text; or the ids of ``text``. Raises what the library raises."""
    return _load(**question) if "tokenizer" in question else _encode(**question)


def _load(tokenizer: str) -> list[int]:
    global _library
    _library = Tokenizer.from_str(tokenizer)
    _library.no_truncation()
    _library.no_padding()
    return []


def _encode(text: str, affixes: bool, parse_special: bool) -> list[int]:
    assert _library is not None
    _library.encode_special_tokens = not parse_special
    return list(_library.encode(text, add_special_tokens=affixes).ids)
