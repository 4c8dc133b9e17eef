"""Tied models whose files hold a head of their own: trained further, or merged from parts."""

from __future__ import annotations

import torch

from edgelm.budget.units import BLOCK_BYTES
from edgelm.models.weight_names import WeightNames


def has_other_head(names: WeightNames, readable: bool) -> bool:
    """True if a head is stored that is not the embedding, whatever the config says of the two.

    Floats are compared block by block, up to the first difference; a head that is stored as
    integers, or not ``readable`` since only headers are here, counts as another one.
    """
    if not (names.has("embed") and names.has("head")):
        return False
    checkpoint = names.checkpoint
    embed, head = (checkpoint.info(names.file_name(name)) for name in ("embed", "head"))
    if embed.shape != head.shape or embed.dtype != head.dtype or embed.scheme or head.scheme:
        return True
    if not readable:
        return True
    rows, width = embed.shape
    step = max(1, BLOCK_BYTES // (4 * width))
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        blocks = [names.read(name, start, stop) for name in ("embed", "head")]
        if not torch.equal(*blocks):
            return True
    return False
