"""Steps of few tokens that are recorded once and run again without their Python."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from edgelm.models.layers import Head
from edgelm.ops.cache import KVCache


class Steps(Protocol):
    """Steps that are recorded once and run again without their Python: tapes or graphs."""

    most: int

    def admits(self, cache: KVCache, tokens: Iterable[list[int] | Tensor]) -> bool:
        """True if a step of these tokens, by row, can be recorded."""

    def run(
        self, cache: KVCache, rows: Sequence[tuple[int, list[int]]],
        decode: Callable[..., Tensor],
    ) -> tuple[Tensor, bool]:  # fmt: skip
        """(hidden states [M, N] after a step, False where one is known not to be finite)."""

    def judge(self, head: Head, hidden: Tensor, room: Tensor) -> tuple[Tensor, list[int]]:
        """(logits [M, V], index of the largest one of each token or -1 where one is not finite)."""

    def forget(self) -> None:
        """Drop all records."""


@dataclass(frozen=True)
class Places:
    """Ids, rows and positions of a step's tokens, [M] int64 each, in memory that stays."""

    ids: Tensor
    rows: Tensor
    positions: Tensor


def write_places(
    places: NDArray[np.int64], cache: KVCache, rows: Sequence[tuple[int, list[int]]]
) -> int:
    """Fill ``places`` [3, most] as ``Places`` orders them; how many tokens they are."""
    ids, own_rows, positions = places
    at = 0
    for row, own in rows:
        for offset, token in enumerate(own, cache.lengths[row]):
            ids[at], own_rows[at], positions[at] = token, row, offset
            at += 1
    return at
