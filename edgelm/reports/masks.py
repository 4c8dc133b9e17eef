"""Attention masks of a model's layers for given texts, without its weights.

Nothing here decides what is visible. Positions come from the cache's stores and masks from
``ops.reference.causal_mask``, chunk by chunk as in the engine, so keys that a ring has overwritten
are missing here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from edgelm.budget.parts import PartName, Where
from edgelm.config import ModelConfig
from edgelm.errors import ContextLengthError, UsageError
from edgelm.ops.cache import KVCache, LayerStore
from edgelm.ops.reference import causal_mask

PADDING_SIDES = ("left", "right")
_ZERO = torch.zeros(1, dtype=torch.int8)


class Cell(IntEnum):
    """Relation of a key to a query."""

    SEEN = 0
    LATER = 1  # comes after the query
    BEYOND = 2  # too far back for the layer's window
    PADDING = 3  # the query or the key is not a token


@dataclass(frozen=True)
class LayerMask:
    """The mask that ``layers`` share.

    window: number of tokens a query sees, itself included, or None.
    slots: positions of a row that such a layer keeps in a cache of the model's whole context.
    rows: a Tensor [T, T] int8 of ``Cell`` for each text, queries by keys, T the longest text.
    """

    window: int | None
    layers: tuple[int, ...]
    slots: int
    rows: tuple[Tensor, ...]

    @property
    def kind(self) -> str:
        """``full``, or the window with its size."""
        return "full" if self.window is None else f"window of {self.window}"

    def seen(self, row: int) -> list[list[tuple[int, int]]]:
        """For each query of a row, the ranges [first, stop) of keys that it sees."""
        return [_runs(cells == Cell.SEEN) for cells in self.rows[row]]


def layer_masks(
    config: ModelConfig, lengths: Sequence[int], chunk: int, padding: str = "right"
) -> list[LayerMask]:
    """One mask for each kind of layer, full or windowed, in the order of the layers.

    Args:
        lengths: tokens of each text; shorter ones are padded to the longest.
        chunk: tokens processed at once: affects the size of the rings, never visibility.
        padding: the side on which short texts are padded.

    Raises:
        ContextLengthError: a text is longer than the model's context.
        UsageError: nothing to draw, or an invalid argument.
    """
    if padding not in PADDING_SIDES:
        raise UsageError(f"padding {padding!r} is not known; allowed: {', '.join(PADDING_SIDES)}.")
    if chunk < 1 or not lengths or min(lengths) < 1:
        raise UsageError(
            f"chunk is {chunk} and the texts have {list(lengths)} tokens; all must be at least 1."
        )
    longest = max(lengths)
    if longest > config.max_context and not config.open_ended:
        raise ContextLengthError(
            f"A text of {longest} tokens is beyond the model's context of {config.max_context}.",
            longest,
            config.max_context,
        )
    context = max(longest, config.max_context)
    chunk = min(chunk, context)
    cache = KVCache(config, 1, context, chunk, torch.float32, _no_memory, owner=None)
    return [
        LayerMask(
            store.window,
            tuple(store.layers),
            store.slots,
            tuple(_cells(_seen(store, own, chunk), longest, padding) for own in lengths),
        )
        for store in cache.stores
    ]


def mask_of_layer(masks: Sequence[LayerMask], layer: int) -> LayerMask:
    """The mask of one layer; raises UsageError if the model has no such layer."""
    for mask in masks:
        if layer in mask.layers:
            return mask
    count = sum(len(mask.layers) for mask in masks)
    raise UsageError(f"layer {layer} does not exist; this model has layers 0 to {count - 1}.")


def _no_memory(
    part: PartName, shape: tuple[int, ...], dtype: torch.dtype, where: Where | None = None
) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _seen(store: LayerStore, length: int, chunk: int) -> Tensor:
    """Visibility between the tokens of a text: [length, length] bool."""
    seen = torch.zeros(length, length, dtype=torch.bool)
    for start in range(0, length, chunk):
        stop = min(start + chunk, length)
        keys = store.key_positions(stop)
        mask = torch.empty(stop - start, len(keys))
        causal_mask(torch.arange(start, stop), keys, store.window, mask)
        seen[start:stop, keys] = mask == 0
    return seen


def _cells(seen: Tensor, total: int, padding: str) -> Tensor:
    """Cells [total, total] of a text's ``seen`` [length, length], padding included."""
    length = seen.shape[0]
    later = torch.ones_like(seen).triu_(1)
    own = torch.full(seen.shape, int(Cell.BEYOND), dtype=torch.int8)
    own[later] = int(Cell.LATER)
    own[seen] = int(Cell.SEEN)
    cells = torch.full((total, total), int(Cell.PADDING), dtype=torch.int8)
    first = total - length if padding == "left" else 0
    cells[first : first + length, first : first + length] = own
    return cells


def _runs(flags: Tensor) -> list[tuple[int, int]]:
    """Ranges [first, stop) in which ``flags`` [N] are true."""
    edges = torch.nonzero(torch.diff(flags.to(torch.int8), prepend=_ZERO, append=_ZERO)).flatten()
    return [(int(first), int(stop)) for first, stop in edges.view(-1, 2)]
