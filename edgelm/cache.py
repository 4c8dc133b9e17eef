"""Keys and values of past tokens, in rows of fixed capacity.

A row is one conversation. Rows know their own length; layers never do. What a row holds is
addressed by position: the token at position p of a full cache lives in slot p.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from edgelm.config import ModelConfig
from edgelm.errors import ContextLengthError, UsageError

Take = Callable[[str, tuple[int, ...], torch.dtype], Tensor]


def cache_bytes(config: ModelConfig, rows: int, context: int, dtype: torch.dtype) -> int:
    """Bytes of keys and values of all layers: what ``KVCache`` takes."""
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_size * dtype.itemsize
    return rows * context * per_token


@dataclass(frozen=True)
class Snapshot:
    """A copy of what one row held: ``keys, values`` [layers, length, G, D]."""

    owner: object
    length: int
    keys: Tensor
    values: Tensor


class KVCache:
    """A static cache of ``rows`` rows of ``context`` tokens for one loaded model.

    Args:
        take: the Ledger's way to get memory (part, shape, dtype).
        owner: the loaded model; another model's snapshots are refused by it.
    """

    def __init__(
        self, config: ModelConfig, rows: int, context: int, dtype: torch.dtype,
        take: Take, owner: object,
    ) -> None:  # fmt: skip
        self.rows, self.context, self.dtype = rows, context, dtype
        self._owner = owner
        shape = (config.num_layers, rows, context, config.num_kv_heads, config.head_size)
        self._keys = take("kv cache", shape, dtype)
        self._values = take("kv cache", shape, dtype)
        self._lengths = [0] * rows

    @property
    def nbytes(self) -> int:
        return self._keys.nbytes + self._values.nbytes

    @property
    def lengths(self) -> list[int]:
        """Tokens that each row has seen."""
        return list(self._lengths)

    @property
    def starts(self) -> list[int]:
        """The first position that each row still holds; a full cache never loses one."""
        return [0] * self.rows

    def slots(self, row: int, count: int) -> range:
        """Where the next ``count`` tokens of ``row`` go, as flat slots over all rows.

        Raises:
            ContextLengthError: they do not fit behind what the row holds.
        """
        start = self._lengths[self._checked(row)]
        if start + count > self.context:
            raise ContextLengthError(
                f"{start + count} tokens do not fit a context of {self.context}: shorten the "
                "prompt, or load with a larger context.",
                start + count,
                self.context,
            )
        return range(row * self.context + start, row * self.context + start + count)

    def key_positions(self, row: int, count: int) -> range:
        """Positions of the keys that ``read`` returns once ``count`` tokens are written."""
        return range(self._lengths[row] + count)

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Put keys and values [M, G, D] of one layer into flat ``slots`` [M]."""
        for memory, new in ((self._keys, keys), (self._values, values)):
            memory[layer].flatten(0, 1).index_copy_(0, slots, new.to(self.dtype))

    def read(self, layer: int, row: int, count: int) -> tuple[Tensor, Tensor]:
        """Keys and values [S, G, D] of a row with its ``count`` new tokens, as views."""
        visible = self._lengths[row] + count
        return self._keys[layer, row, :visible], self._values[layer, row, :visible]

    def advance(self, row: int, count: int) -> None:
        """Count ``count`` written tokens as held; a step that failed never gets here."""
        self._lengths[row] += count

    def truncate(self, row: int, length: int) -> bool:
        """Forget all but the first ``length`` tokens of a row; True when that is possible."""
        held = self._lengths[self._checked(row)]
        if not 0 <= length <= held:
            raise UsageError(f"Row {row} holds {held} tokens; it cannot be cut to {length}.")
        self._lengths[row] = length
        return True

    def snapshot(self, row: int) -> Snapshot:
        """A copy of a row, to be put back with ``restore``."""
        length = self._lengths[self._checked(row)]
        keys, values = self._keys[:, row, :length], self._values[:, row, :length]
        return Snapshot(self._owner, length, keys.clone(), values.clone())

    def restore(self, row: int, snapshot: Snapshot) -> None:
        """Make a row hold what it (or another row) held when the snapshot was made."""
        self._checked(row)
        if snapshot.owner is not self._owner:
            raise UsageError(
                "The snapshot was taken from another loaded model; a row can only be restored "
                "from the model that filled it."
            )
        if snapshot.length > self.context:
            raise ContextLengthError(
                f"A snapshot of {snapshot.length} tokens does not fit a context of {self.context}.",
                snapshot.length,
                self.context,
            )
        if snapshot.keys.dtype != self.dtype:
            raise UsageError(
                f"The snapshot holds {snapshot.keys.dtype}, this cache {self.dtype}: use a cache "
                "with the same kv."
            )
        self._keys[:, row, : snapshot.length].copy_(snapshot.keys)
        self._values[:, row, : snapshot.length].copy_(snapshot.values)
        self._lengths[row] = snapshot.length

    def _checked(self, row: int) -> int:
        if not 0 <= row < self.rows:
            raise UsageError(f"Row {row} does not exist; this cache has rows 0 to {self.rows - 1}.")
        return row
