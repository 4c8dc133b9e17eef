"""KV cache: keys and values of past tokens, in rows of fixed capacity.

A row is one conversation. Rows track their length; layers do not. Entries are addressed by
position: a layer without a window keeps position p in slot p, a layer with a window keeps it in
slot p modulo the ring's size, and masks are made from the positions alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgelm.budget.ledger import Take
from edgelm.budget.parts import PartName, Where
from edgelm.config import ModelConfig
from edgelm.errors import ContextLengthError, UsageError
from edgelm.ops.cache_sizes import SCALE_DTYPE, cache_part, placed_layers, ring_slots
from edgelm.ops.reference import Stored
from edgelm.option import Option
from edgelm.values import shown, whole

Lend = Callable[[Mapping[PartName, int], Callable[[], "Snapshot"]], "Snapshot"]


class LayerStore:
    """Memory of the layers that share a window: [layers, rows, G, slots, D].

    Args:
        among: the layers that may belong to it; None: all.
        where: its place in a plan that has such parts on the host and on the device.
    """

    def __init__(
        self, config: ModelConfig, window: int | None, rows: int, slots: int, dtype: torch.dtype,
        take: Take, among: Sequence[int] | None = None, where: Where | None = None,
    ) -> None:  # fmt: skip
        self.window, self.slots, self.where = window, slots, where
        among = range(len(config.windows)) if among is None else among
        self.layers = [index for index in among if config.windows[index] == window]
        shape = (len(self.layers), rows, config.num_kv_heads, slots, config.head_size)
        part = cache_part(window)
        self.memory = [take(part, shape, dtype, where) for _ in range(2)]
        self.scales: list[Tensor] = []
        if dtype == torch.int8:
            self.scales = [take(part, (*shape[:-1], 1), SCALE_DTYPE, where) for _ in range(2)]

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors of the store, each [layers, rows, slots, ...]."""
        return [*self.memory, *self.scales]

    def flat_slots(self, row: int, start: int, count: int) -> list[int]:
        """Slots of positions ``start`` to ``start + count`` of a row, counted over all rows."""
        return [row * self.slots + p % self.slots for p in range(start, start + count)]

    def key_positions(self, length: int, device: torch.device | str = "cpu") -> Tensor:
        """Position held by each visible slot of a row of ``length`` tokens: [visible] int64."""
        if length <= self.slots:
            return torch.arange(length, device=device)
        slots = torch.arange(self.slots, device=device)
        return length - 1 - (length - 1 - slots) % self.slots

    def write(self, index: int, slots: Tensor, new: tuple[Tensor, Tensor]) -> None:
        """Write keys and values [M, G, D] of the store's layer ``index`` to flat ``slots`` [M]."""
        rows, places = slots // self.slots, slots % self.slots
        for which, numbers in enumerate(new):
            target = self.memory[which][index]
            if not self.scales:
                target[rows, :, places] = numbers.to(target.dtype)
                continue
            scale = (numbers.abs().amax(-1, keepdim=True).float() / 127).to(SCALE_DTYPE)
            codes = (numbers / scale.float().clamp(min=1e-30)).round().clamp(-127, 127)
            target[rows, :, places] = codes.to(torch.int8)
            self.scales[which][index][rows, :, places] = scale

    def read(self, index: int, row: int, length: int) -> Stored:
        """Views of the entries of a row of ``length`` tokens: [visible, G, D]."""
        visible = min(length, self.slots)
        return Stored(*(own[index, row, :, :visible].transpose(0, 1) for own in self.tensors))


@dataclass(frozen=True)
class Snapshot:
    """A copy of one row, in the form of ``KVCache.row_tensors``."""

    owner: object
    length: int
    written: int
    dtype: torch.dtype
    tensors: dict[str, Tensor]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


class KVCache:
    """A static cache of ``rows`` rows of ``context`` tokens for one loaded model.

    Full for models without windows, a hybrid of full layers and rings for those with (Gemma 2).

    Args:
        chunk: maximum number of tokens that one step writes to a row.
        take: the Ledger's function to allocate memory.
        owner: the loaded model, used to refuse another model's snapshots.
        lend: the Ledger's function to allocate memory beyond the plan, for snapshots.
        on_host: number of first layers that are on the CPU when an accelerator has the others.
    """

    def __init__(
        self, config: ModelConfig, rows: int, context: int, chunk: int, dtype: torch.dtype,
        take: Take, owner: object, lend: Lend = lambda _, make: make(), on_host: int = 0,
    ) -> None:  # fmt: skip
        self.rows, self.context, self.dtype = rows, context, dtype
        self._owner, self._take, self._lend = owner, take, lend
        self.stores = [
            LayerStore(
                config, window, rows, ring_slots(window, context, chunk), dtype, take, among, where
            )
            for among, where in placed_layers(config, on_host)
            for window in dict.fromkeys(config.windows[layer] for layer in among)
        ]
        self._place = {
            layer: (number, index)
            for number, store in enumerate(self.stores)
            for index, layer in enumerate(store.layers)
        }
        self._lengths = [0] * rows
        self._written = [0] * rows  # one past the highest position whose key is in memory
        self._claimed = [False] * rows
        self._row = Option(
            "A row.", f"0 to {rows - 1}, the rows of this cache", lambda n: 0 <= n < rows, whole
        )

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for store in self.stores for tensor in store.tensors)

    @property
    def lengths(self) -> list[int]:
        """Number of tokens in each row."""
        return list(self._lengths)

    @property
    def starts(self) -> list[int]:
        """The first position that every layer of each row still holds."""
        fewest = min(store.slots for store in self.stores)
        return [max(0, written - fewest) for written in self._written]

    @property
    def rings(self) -> list[LayerStore]:
        """The stores whose rings are smaller than a row."""
        return [store for store in self.stores if store.slots < self.context]

    def check_room(self, row: int, count: int) -> None:
        """Raise ContextLengthError unless ``count`` more tokens fit the row."""
        wanted = self._lengths[self._checked(row)] + count
        if wanted > self.context:
            raise ContextLengthError(
                f"{wanted} tokens do not fit a context of {self.context}: shorten the prompt, or "
                "load with a larger context.",
                wanted,
                self.context,
            )

    def store_of(self, layer: int) -> int:
        """Index in ``stores`` of the store that holds a layer."""
        return self._place[layer][0]

    def window_of(self, layer: int) -> int | None:
        """Number of positions visible to a token in a layer; None: all."""
        return self.stores[self.store_of(layer)].window

    def tensors_of(self, layer: int) -> list[Tensor]:
        """A layer's keys and values [rows, G, slots, D], and for int8 their scales."""
        number, index = self._place[layer]
        return [tensor[index] for tensor in self.stores[number].tensors]

    def write(self, layer: int, slots: list[Tensor], keys: Tensor, values: Tensor) -> None:
        """Write keys and values [M, G, D] of a layer to its store's flat ``slots`` [M]."""
        number, index = self._place[layer]
        self.stores[number].write(index, slots[number], (keys, values))

    def read(self, layer: int, row: int, count: int) -> Stored:
        """Views of a row's entries in a layer once its ``count`` new tokens are written."""
        number, index = self._place[layer]
        return self.stores[number].read(index, row, self._lengths[row] + count)

    def advance(self, row: int, count: int) -> None:
        """Add ``count`` written tokens to the row's length; not called for a failed step."""
        self._lengths[row] += count
        self._written[row] = max(self._written[row], self._lengths[row])

    def truncate(self, row: int, length: int) -> bool:
        """Forget all but the first ``length`` tokens of a row.

        Returns:
            False, with nothing changed, when a ring has overwritten keys that the next token
            would need: a window layer can undo at most ``chunk`` tokens.
        """
        held = self._lengths[self._checked(row)]
        if not isinstance(length, int) or not 0 <= length <= held:
            raise UsageError(f"Row {row} holds {held} tokens; it cannot be cut to {shown(length)}.")
        if not self.reaches(length, self._written[row]):
            return False
        self._lengths[row] = length
        if length == 0:
            self._written[row] = 0
        return True

    def reaches(self, length: int, written: int) -> bool:
        """True if all that token ``length`` sees is still present after ``written`` tokens."""
        for store in self.stores:
            needed = 0 if store.window is None else max(0, length - store.window + 1)
            if length and needed < written - store.slots:
                return False
        return length <= written <= self.context

    def row_tensors(self, row: int, written: int | None = None) -> dict[str, Tensor]:
        """Views of a row's entries, or of those it would have with ``written`` tokens written.

        ``<store>.<number>`` -> [layers, G, slots in use, D or 1], slots in memory order.
        """
        count = self.written(row) if written is None else written
        return {
            f"{number}.{which}": tensor[:, row, :, : min(count, store.slots)]
            for number, store in enumerate(self.stores)
            for which, tensor in enumerate(store.tensors)
        }

    def written(self, row: int) -> int:
        """One past the highest position whose key a row holds; ``truncate`` does not change it."""
        return self._written[self._checked(row)]

    def rewind(self, row: int, length: int, written: int) -> None:
        """Set the row's length and written count; the caller has written their keys to the row."""
        self._lengths[row], self._written[row] = length, written

    def add(self) -> int:
        """Claim an unused, empty row.

        Raises:
            UsageError: all rows are in use; ``drop`` one, or make a cache with more.
        """
        if all(self._claimed):
            raise UsageError(f"All {self.rows} rows of the cache are in use; drop one first.")
        row = self._claimed.index(False)
        self.truncate(row, 0)
        self._claimed[row] = True
        return row

    def drop(self, row: int) -> None:
        """Empty a row and release it for ``add``."""
        self.truncate(row, 0)
        self._claimed[row] = False

    def snapshot(self, row: int) -> Snapshot:
        """Copy a row for a later ``restore``; the memory is released with the snapshot.

        Raises:
            BudgetExceededError: it does not fit the budget.
        """
        held = self.row_tensors(row)

        def copied() -> Snapshot:
            copies = {
                name: self._take(PartName.SNAPSHOTS, (*tensor.shape,), tensor.dtype).copy_(tensor)
                for name, tensor in held.items()
            }
            return Snapshot(self._owner, self._lengths[row], self.written(row), self.dtype, copies)

        return self._lend(
            {PartName.SNAPSHOTS: sum(tensor.nbytes for tensor in held.values())}, copied
        )

    def copy_row(self, source: int, target: int) -> None:
        """Copy row ``source`` to row ``target``."""
        written = self.written(source)
        targets = self.row_tensors(self._checked(target), written)
        for name, tensor in self.row_tensors(source).items():
            targets[name].copy_(tensor)
        self.rewind(target, self._lengths[source], written)

    def restore(self, row: int, snapshot: Snapshot) -> None:
        """Restore a row to the state of the row from which the snapshot was made."""
        self._checked(row)
        if not isinstance(snapshot, Snapshot):
            raise UsageError(f"{shown(snapshot)} is not what snapshot() gives.")
        if snapshot.owner is not self._owner:
            raise UsageError(
                "The snapshot was taken from another loaded model; a row can only be restored "
                "from the model that filled it."
            )
        if snapshot.dtype != self.dtype:
            raise UsageError(
                f"The snapshot holds {snapshot.dtype}, this cache {self.dtype}: use a cache with "
                "the same kv."
            )
        targets = self.row_tensors(row, snapshot.written)
        # Once a ring wraps around, slots map to the same positions only in rings of equal size.
        fits = all(targets[name].shape == own.shape for name, own in snapshot.tensors.items())
        if not fits or snapshot.written > self.context:
            raise ContextLengthError(
                f"A snapshot of {snapshot.length} tokens does not fit a cache of context "
                f"{self.context}: restore it into a cache like the one it was taken from.",
                snapshot.length,
                self.context,
            )
        for name, target in targets.items():
            target.copy_(snapshot.tensors[name])
        self.rewind(row, snapshot.length, snapshot.written)

    def _checked(self, row: int) -> int:
        found: int = self._row.require("row", row)
        return found
