"""Texts of tokens in what people write, hidden from the tokenizer: nobody opens a turn by typing.

A template puts contents between tokens that open and close turns, and the whole is encoded with
such tokens read. In a content their texts are therefore broken up by a mark, a character that the
conversation does not hold; ``Vocabulary.encode`` takes it out behind the place where tokens are
cut from the text. What remains is encoded as any other text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from edgelm.errors import UsageError
from edgelm.text.tokenizer import Tokenizer

# Letters of Linear A, which nobody can read; unlike private ones, they are printed as they are.
_MARKS = range(0x10600, 0x10737)
_DEEPEST = 100  # levels of lists and mappings; schemas of functions have about ten
_TURN = re.compile(r"<[^/].*>|\[.*\]", re.DOTALL)


def turn_tokens(tokenizer: Tokenizer) -> list[str]:
    """Texts of all special tokens, and of others with which the template marks turns.

    Some files do not call their turn tokens special. A pair such as <think> and </think> marks a
    part of an answer and no turn, and stays what it is. A token of one character is not counted:
    nothing can be put inside it.
    """
    cut, template = tokenizer.cut_tokens, tokenizer.chat_template or ""
    return [
        name
        for name, special in cut.items()
        if len(name) > 1
        and (special or (name in template and _TURN.fullmatch(name) and f"</{name[1:]}" not in cut))
    ]


class HiddenTokens:
    """The mark for a conversation, which ``inside`` puts into the texts of ``names``."""

    def __init__(self, names: list[str], *given: Any) -> None:
        """given: everything that a template is to print."""
        longest_first = sorted(names, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        used = set().union(*map(set, _texts(given)))
        self.mark = next(char for char in map(chr, _MARKS) if char not in used)

    def inside(self, value: Any) -> Any:
        """The value with every text in it, keys included, freed of tokens."""
        if isinstance(value, Mapping):
            return {self.inside(key): self.inside(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.inside(item) for item in value]
        if not isinstance(value, str):
            return value
        while self._pattern.search(value):  # again: texts of tokens may overlap
            value = self._pattern.sub(self._broken, value)
        return value

    def _broken(self, found: re.Match[str]) -> str:
        return found[0][0] + self.mark + found[0][1:]


def _texts(value: Any, depth: int = 0) -> Iterator[str]:
    if depth > _DEEPEST:
        raise UsageError(
            "The messages, tools or template_variables are nested too deeply: more than "
            f"{_DEEPEST} levels. Give flatter ones."
        )
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for pair in value.items():
            yield from _texts(pair, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, depth + 1)
