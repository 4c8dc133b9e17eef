"""What keys and values take: slots of rings, bytes of caches, and whose they are in a plan."""

from __future__ import annotations

from dataclasses import replace

import torch

from edgelm.config import ModelConfig
from edgelm.placement import ON_HOST

CACHE_PART = "kv cache"
SCALE_DTYPE = torch.bfloat16  # range matters more than digits: codes are rounded to the scale


def ring_slots(window: int | None, context: int, chunk: int) -> int:
    """Slots of a row in a layer of ``window``: exact for chunks of up to ``chunk`` tokens.

    The first query of a chunk looks ``window - 1`` tokens back while the chunk's last key is
    already written, so ``window + chunk - 1`` positions are alive at once.
    """
    return context if window is None else min(context, window + chunk - 1)


def cache_bytes(
    config: ModelConfig, rows: int, context: int, chunk: int, dtype: torch.dtype,
    *, rings_only: bool = False,
) -> int:  # fmt: skip
    """Bytes of keys and values of all layers, int8 scales included: what ``KVCache`` takes.

    ``rings_only`` counts the layers whose rings are smaller than the context.
    """
    per_slot = 2 * config.num_kv_heads * config.head_size * dtype.itemsize
    if dtype == torch.int8:
        per_slot += 2 * config.num_kv_heads * SCALE_DTYPE.itemsize
    slots = [ring_slots(window, context, chunk) for window in config.windows]
    return rows * sum(n for n in slots if n < context or not rings_only) * per_slot


def cache_parts(
    config: ModelConfig, rows: int, context: int, chunk: int, dtype: torch.dtype, on_host: int = 0
) -> dict[str, int]:
    """Plan part -> bytes of a cache; the first ``on_host`` layers have a part of their own."""
    return {
        CACHE_PART + suffix: cache_bytes(
            replace(config, windows=tuple(config.windows[layer] for layer in among)),
            rows, context, chunk, dtype,
        )
        for among, suffix in shares(config, on_host)
    }  # fmt: skip


def shares(config: ModelConfig, on_host: int) -> list[tuple[range, str]]:
    """Layers and the suffix of their plan parts: the device's, and the host's if it has some."""
    layers = len(config.windows)
    shares = [(range(on_host, layers), ""), (range(on_host), ON_HOST)]
    return [(among, suffix) for among, suffix in shares if among]
