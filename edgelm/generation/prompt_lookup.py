"""Prompt lookup: guesses the tokens that followed an earlier occurrence of the last ones.

Saxena 2023, "Prompt Lookup Decoding": the end of the text is searched in the text itself, prompt
and answer, and the guess is what followed it there. It costs one pass over the ids.
"""

from __future__ import annotations

import numpy as np
import torch

from edgelm.budget.ledger import Take
from edgelm.budget.parts import PartName
from edgelm.generation.processors import SoFar
from edgelm.generation.sampling import SamplingSettings

_SHORTEST = 2  # number of tokens that must agree; one alone is no evidence
_LONGEST = 12  # longer matches are not more reliable


class PromptLookup:
    """Guesses for one text at a time.

    Args:
        context: maximum number of ids in a text. take: the Ledger's function to allocate memory.
    """

    greedy_only = True  # when answers are sampled, guesses are right too rarely to pay off

    def __init__(self, context: int, take: Take) -> None:
        self._ids = take(PartName.SPECULATION, (context,), torch.int32).numpy()
        self._count = 0
        self._prompt = 0
        self._next = 0

    def begin(self, ids: SoFar, sampling: SamplingSettings) -> None:
        """Begin another text; sampling settings do not affect repetition."""
        self._prompt = self._count = len(ids.prompt)
        self._ids[: self._count] = ids.prompt
        self._catch_up(ids)

    def strength(self, ids: SoFar) -> int:
        """Number of last ids that occurred together before, 0 for too few; the latest place wins.

        ids: the text that was begun, extended by any number of ids.
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
        """Guess ``count`` ids: those after the place found by ``strength``, repeated if too few."""
        known = self._ids[self._next : min(self._next + count, self._count)].tolist()
        return [known[i % len(known)] for i in range(count)]

    def _catch_up(self, ids: SoFar) -> None:
        new = ids.new[self._count - self._prompt :]
        self._ids[self._count : self._count + len(new)] = new
        self._count += len(new)


def lookup_bytes(context: int) -> int:
    """Bytes of memory of a PromptLookup."""
    return context * torch.int32.itemsize
