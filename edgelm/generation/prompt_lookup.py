"""Prompt lookup: the next tokens are those that followed the same words before.

Saxena 2023, "Prompt Lookup Decoding": the end of the text is searched in the text itself, prompt
and answer, and what stood behind it there is the guess. It costs one pass over the ids.
"""

from __future__ import annotations

import numpy as np
import torch

from edgelm.budget.ledger import Take
from edgelm.budget.parts import PartName
from edgelm.generation.processors import SoFar
from edgelm.generation.sampling import SamplingSettings

_SHORTEST = 2  # tokens that must agree; one alone says nothing
_LONGEST = 12  # from there on a longer match is no more certain


class PromptLookup:
    """Guesses for one text at a time.

    Args:
        context: the most ids a text has. take: the Ledger's way to get memory.
    """

    greedy_only = True  # where answers are drawn, a guess is right too rarely to look for it

    def __init__(self, context: int, take: Take) -> None:
        self._ids = take(PartName.SPECULATION, (context,), torch.int32).numpy()
        self._count = 0
        self._prompt = 0
        self._next = 0

    def begin(self, ids: SoFar, sampling: SamplingSettings) -> None:
        """Another text; how it is drawn says nothing about what it repeats."""
        self._prompt = self._count = len(ids.prompt)
        self._ids[: self._count] = ids.prompt
        self._catch_up(ids)

    def strength(self, ids: SoFar) -> int:
        """How many of the last ids stood together before, 0 for too few; the latest place counts.

        ids: the text that was begun, longer by any number of ids.
        """
        self._catch_up(ids)
        text = self._ids[: self._count]
        places = np.flatnonzero(text[:-1] == text[-1])
        length = 0
        while len(places) and length < _LONGEST:
            length += 1
            self._next = int(places[-1]) + 1
            places = places[places >= length]
            places = places[text[places - length] == text[-1 - length]]
        return length if length >= _SHORTEST else 0

    def guess(self, ids: SoFar, count: int) -> list[int]:
        """``count`` ids after the place that ``strength`` found; a text that repeats goes on so."""
        known = self._ids[self._next : min(self._next + count, self._count)].tolist()
        return [known[i % len(known)] for i in range(count)]

    def _catch_up(self, ids: SoFar) -> None:
        new = ids.new[self._count - self._prompt :]
        self._ids[self._count : self._count + len(new)] = new
        self._count += len(new)


def lookup_bytes(context: int) -> int:
    """What a PromptLookup takes."""
    return context * torch.int32.itemsize
