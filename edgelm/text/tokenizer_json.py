"""Reads a ``tokenizer.json``, and decides what of it may run in this process.

Its normalizers can make a text any number of times longer, its regular expressions can backtrack
for ever, and both can make the library panic. Those that real tokenizers have are known here and
run in this process; with any other the text is encoded in a ``LimitedProcess``, and the library
here holds the tokens only.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgelm.errors import UnsupportedModelError
from edgelm.plain_file import VOCABULARY_BYTES, read_small
from edgelm.text.gguf_tokenizer import PRE_TOKENIZERS
from edgelm.text.tokenizers_vocabulary import TokenizersVocabulary, library_errors

_PARTS = ("normalizer", "pre_tokenizer")
_MAX_STEPS = 8
_MAX_GROWTH = 16  # Llama 2's spaces become 3 times as long; bytes as characters, 2 times

# Steps that take time in proportion to the text and make it hardly longer.
_STEADY = {
    "BertNormalizer", "BertPreTokenizer", "CharDelimiterSplit", "Digits", "Lowercase", "Metaspace",
    "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Punctuation", "Strip", "StripAccents", "UnicodeScripts",
    "Whitespace", "WhitespaceSplit",
}  # fmt: skip
_KNOWN_REGEXES = {regex for cut in PRE_TOKENIZERS.values() for regex in cut.patterns} | {
    r" ?[^(\s|[.,!?…。，、।۔،])]+",  # BLOOM's, whose inner bracket stands for itself
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"  # Qwen 2's
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
# The keys could hide behind escapes, which no tool writes for letters.
_ESCAPED_LETTER = re.compile(r"\\u00[4-7]")
_MODELS = ("BPE", "Unigram", "WordLevel")  # WordPiece takes the square of a word's length


def read_tokenizer_json(path: Path) -> TokenizersVocabulary:
    """The vocabulary of the file.

    Raises ModelFileError if it is damaged, or its parts exceed their limits when they are first
    used; UnsupportedModelError for a decoder or a kind of model that is not supported.
    """
    from tokenizers import Tokenizer as LibraryTokenizer

    content = read_small(path, VOCABULARY_BYTES)
    with library_errors(f"{path} is not a readable tokenizer"):
        text = content.decode("utf-8")
        withheld: dict[str, Any] = {}
        if not _is_known(text):
            data = json.loads(text)
            withheld = {key: data.get(key) for key in _PARTS}
            text = json.dumps(data | dict.fromkeys(_PARTS))
        library = LibraryTokenizer.from_str(text)
        library.no_truncation()
        library.no_padding()
        kind = type(library.model).__name__
    if kind not in _MODELS:
        raise UnsupportedModelError(
            f"{path} has a model of type {kind}; supported are {', '.join(_MODELS)}. "
            "Use a checkpoint of a supported family."
        )
    return TokenizersVocabulary(library, withheld)


def _is_known(text: str) -> bool:
    """True if every value that may be one of the parts is known. Parsing all takes 0.5 s."""
    parts = [part for key in _PARTS for part in _values(text, key)]
    return not _ESCAPED_LETTER.search(text) and all(map(_is_tame, parts))


def _values(text: str, key: str) -> Iterator[Any]:
    """The values of all keys of this name, at whatever depth."""
    read = json.JSONDecoder()
    for found in re.finditer(rf'"{key}"\s*:\s*', text):
        yield read.raw_decode(text, found.end())[0]


def _is_tame(part: Any) -> bool:
    if part is None or isinstance(part, int):  # an integer is the id of a token of this name
        return True
    try:
        steps = list(_steps(part))
        return len(steps) <= _MAX_STEPS and math.prod(map(_growth, steps)) <= _MAX_GROWTH
    except (AttributeError, KeyError, TypeError):  # of another shape: the library will say
        return False


def _steps(part: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if part["type"] != "Sequence":
        yield part
        return
    for step in part["normalizers"] if "normalizers" in part else part["pretokenizers"]:
        yield from _steps(step)


def _growth(step: dict[str, Any]) -> float:
    """How many times longer the step can make a text; infinite for an unknown step."""
    kind = step["type"]
    if kind in _STEADY or (kind == "Prepend" and len(step["prepend"]) <= 16):
        return 1
    if kind == "ByteLevel":
        return 2
    if kind == "Split" and (step["pattern"].get("Regex") in _KNOWN_REGEXES):
        return 1
    old = step["pattern"].get("String") if kind in ("Split", "Replace") else None
    if not old:
        return math.inf
    return max(1, len(step.get("content", "").encode()) / len(old.encode()))
