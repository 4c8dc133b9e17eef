"""Memory sizes of KV caches, by kind of layer."""

from __future__ import annotations

import torch

from edgelm.budget.placement import ON_HOST
from edgelm.config import ModelConfig

SCALE_DTYPE = torch.bfloat16  # range matters more than precision: codes are rounded to the scale


def ring_slots(window: int | None, context: int, chunk: int) -> int:
    """Slots of a row in a layer of ``window``: exact for chunks of up to ``chunk`` tokens.

    The first query of a chunk sees ``window - 1`` tokens back while the chunk's last key is
    already written, so ``window + chunk - 1`` positions are live at once.
    """
    return context if window is None else min(context, window + chunk - 1)


def cache_part(window: int | None) -> str:
    """Plan part of the layers with such a window: one for full layers, one for windowed ones."""
    return "kv cache.full" if window is None else "kv cache.window"


def cache_parts(
    config: ModelConfig, rows: int, context: int, chunk: int, dtype: torch.dtype,
    *, rings_only: bool = False, on_host: int = 0,
) -> dict[str, int]:  # fmt: skip
    """Bytes of keys and values by plan part, int8 scales included, as ``KVCache`` allocates.

    ``rings_only`` counts the layers whose rings are smaller than the context; the first ``on_host``
    layers, which are on the CPU when an accelerator has the others, have separate parts.
    """
    per_slot = 2 * config.num_kv_heads * config.head_size * dtype.itemsize
    if dtype == torch.int8:
        per_slot += 2 * config.num_kv_heads * SCALE_DTYPE.itemsize
    found: dict[str, int] = {}
    for layer, window in enumerate(config.windows):
        slots = ring_slots(window, context, chunk)
        if slots < context or not rings_only:
            part = cache_part(window) + (ON_HOST if layer < on_host else "")
            found[part] = found.get(part, 0) + rows * slots * per_slot
    return found


def shares(config: ModelConfig, on_host: int) -> list[tuple[range, str]]:
    """Layers and the suffix of their plan parts: those of the device, and of the host if any."""
    layers = len(config.windows)
    found = [(range(on_host, layers), ""), (range(on_host), ON_HOST)]
    return [(among, suffix) for among, suffix in found if among]
