"""Memory sizes of KV caches, by kind of layer."""

from __future__ import annotations

import torch

from edgelm.budget.parts import PartName, Share, Where
from edgelm.config import ModelConfig

SCALE_DTYPE = torch.bfloat16  # range matters more than precision: codes are rounded to the scale


def ring_slots(window: int | None, context: int, chunk: int) -> int:
    """Slots of a row in a layer of ``window``: exact for chunks of up to ``chunk`` tokens.

    The first query of a chunk sees ``window - 1`` tokens back while the chunk's last key is
    already written, so ``window + chunk - 1`` positions are live at once.
    """
    return context if window is None else min(context, window + chunk - 1)


def cache_part(window: int | None) -> PartName:
    """Plan part of the layers with such a window: one for full layers, one for windowed ones."""
    return PartName.KV_FULL if window is None else PartName.KV_WINDOW


def cache_parts(
    config: ModelConfig, rows: int, context: int, chunk: int, dtype: torch.dtype,
    *, rings_only: bool = False, place: Where = "host", on_host: int = 0,
) -> dict[Share, int]:  # fmt: skip
    """Bytes of keys and values by plan part, int8 scales included, as ``KVCache`` allocates.

    Args:
        rings_only: count the layers whose rings are smaller than the context.
        place: where they lie, but for the first ``on_host`` layers, which lie on the CPU.
    """
    per_slot = 2 * config.num_kv_heads * config.head_size * dtype.itemsize
    if dtype == torch.int8:
        per_slot += 2 * config.num_kv_heads * SCALE_DTYPE.itemsize
    found: dict[Share, int] = {}
    for layer, window in enumerate(config.windows):
        slots = ring_slots(window, context, chunk)
        if slots < context or not rings_only:
            share = Share(cache_part(window), "host" if layer < on_host else place)
            found[share] = found.get(share, 0) + rows * slots * per_slot
    return found


def placed_layers(config: ModelConfig, on_host: int) -> list[tuple[range, Where | None]]:
    """Layers and where their caches lie: where the plan has them (None), and beside an accelerator
    the first ``on_host`` on the host."""
    layers = len(config.windows)
    found: list[tuple[range, Where | None]] = [
        (range(on_host, layers), None), (range(on_host), "host"),
    ]  # fmt: skip
    return [(among, where) for among, where in found if among]
