"""Encodes texts with a ``tokenizer.json``, as a script of a ``LimitedProcess``.

Its normalizer and pre-tokenizer are unknown ones that may take any time and memory, or make the
library panic.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tokenizers import Tokenizer, normalizers, pre_tokenizers

_library: Tokenizer | None = None


def answer(question: dict[str, Any]) -> list[int]:
    """Load ``tokenizer``, a JSON text; or the ids of ``text``. Raises what the library raises."""
    return _load(**question) if "tokenizer" in question else encode(_library, **question)


def _load(tokenizer: str) -> list[int]:
    global _library
    _library = Tokenizer.from_str(tokenizer)
    _library.no_truncation()
    _library.no_padding()
    return []


def encode(
    library: Any, text: str, affixes: bool, parse_special: bool, mark: str, cuts_normalized: bool
) -> list[int]:
    """Ids of a text; affixes: with those that the post-processor adds.

    mark: a character that breaks up tokens in the text and is taken out behind the place where
    these are cut; cuts_normalized: some are looked for in the normalized text.
    """
    with _removing(library, mark, cuts_normalized):
        library.encode_special_tokens = not parse_special
        return list(library.encode(text, add_special_tokens=affixes).ids)


@contextmanager
def _removing(library: Any, mark: str, cuts_normalized: bool) -> Iterator[None]:
    """Take a character out behind the place where tokens are cut.

    That is the raw text, if no token is looked for in the normalized text. Else the mark also
    parts the text where it stood.
    """
    normalizer, splitter = library.normalizer, library.pre_tokenizer
    try:
        if mark and cuts_normalized:
            split = pre_tokenizers.Split(mark, "removed")
            library.pre_tokenizer = pre_tokenizers.Sequence([split, *_some(splitter)])
        elif mark:
            remove = normalizers.Replace(mark, "")
            library.normalizer = normalizers.Sequence([remove, *_some(normalizer)])
        yield
    finally:
        if mark:
            library.normalizer, library.pre_tokenizer = normalizer, splitter


def _some(step: Any) -> list[Any]:
    return [] if step is None else [step]
