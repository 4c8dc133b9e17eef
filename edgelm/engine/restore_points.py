"""Restore points: how a row's rings were when its prompt had been run.

A conversation's next turn mostly continues what its row holds. Where it does not (the answer is
asked for again, or the template writes it otherwise), the row is cut back to the last prompt. Full
layers allow that at any time; a ring has overwritten keys after ``chunk`` tokens and gets them
back from here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from edgelm.budget.ledger import Take
from edgelm.budget.parts import PartName, Where
from edgelm.config import ModelConfig
from edgelm.ops.cache import KVCache, LayerStore


class RestorePoints:
    """One point for each row of a cache; takes nothing where no ring ever goes round.

    Args:
        take: the Ledger's way to get memory.
    """

    def __init__(self, config: ModelConfig, cache: KVCache, take: Take) -> None:
        def take_here(
            part: PartName, shape: tuple[int, ...], dtype: torch.dtype, where: Where | None = None
        ) -> torch.Tensor:
            return take(PartName.RESTORE_POINTS, shape, dtype, where)

        self._cache = cache
        self._copies = [
            (
                ring,
                LayerStore(
                    config,
                    ring.window,
                    cache.rows,
                    ring.slots,
                    cache.dtype,
                    take_here,
                    ring.layers,
                    ring.where,
                ),
            )
            for ring in cache.rings
        ]
        self._ids: list[tuple[int, ...]] = [()] * cache.rows
        self._written = [0] * cache.rows

    def mark(self, row: int, held: Sequence[int]) -> None:
        """Remember the row as it is now, holding the ids ``held``."""
        if self._copies:
            self._ids[row] = ()  # whatever stops the copying leaves no half a point
            for ring, copy in self._copies:
                _copy_row(ring, copy, row)
            self._ids[row], self._written[row] = tuple(held), self._cache.written(row)

    def copy(self, source: int, target: int) -> None:
        """Let row ``target`` go back to where row ``source`` can."""
        self._ids[target] = ()
        for _, copy in self._copies:
            for tensor in copy.tensors:
                tensor[:, target].copy_(tensor[:, source])
        self._ids[target], self._written[target] = self._ids[source], self._written[source]

    def go_back(self, row: int, held: Sequence[int], length: int) -> int:
        """Cut a row of ids ``held`` to at most ``length`` tokens, as many as can be had exactly.

        Returns:
            How many it holds now: what it shares with the marked prompt, or 0 where that is too
            far back for the rings.
        """
        marked = self._ids[row]
        known = 0
        while known < min(len(marked), length) and marked[known] == held[known]:
            known += 1
        if known:
            for ring, copy in self._copies:
                _copy_row(copy, ring, row)
            self._cache.rewind(row, len(marked), self._written[row])
            if self._cache.truncate(row, known):
                return known
        self._cache.truncate(row, 0)
        return 0


def _copy_row(source: LayerStore, target: LayerStore, row: int) -> None:
    for old, new in zip(source.tensors, target.tensors, strict=True):
        new[:, row].copy_(old[:, row])
