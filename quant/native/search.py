"""Rows quantized by the native library, to the same bits as the torch of ``quant.methods``."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from ..codebooks import intervals
from ..packing import PackedWeight
from ..scheme import Scheme
from . import FLOATS, ZEROS, library, missing, structs, threads
from .ops import address

_NO_MEMORY = 4  # EDGELM_NO_MEMORY


def quantized(
    block: Tensor, scheme: Scheme, ends: tuple[float, float], starts: list[tuple[float, ...]]
) -> PackedWeight | None:
    """The rows ``block`` [n, K] packed; None if the library is absent or they cannot be stored.

    ends: smallest and largest number of a symmetric grid of step 1. starts: those of the search,
    as ``mse`` makes them; without any, round to nearest. Torch says what is wrong with the rows.
    """
    if missing() is not None or block.device.type != "cpu" or scheme.is_float:
        return None
    rows, inputs = block.shape
    packed = PackedWeight.empty((rows, inputs), scheme)
    block, refused = block.float().contiguous(), ctypes.c_int32()
    numbers = torch.tensor([(*start, 0.0)[:2] for start in starts], dtype=torch.float32)
    struct = structs.Search(
        *map(address, (block, numbers, _table(scheme.codebook))),
        *map(address, (packed.qweight, packed.scales, packed.zeros, packed.supers)),
        ctypes.addressof(refused), rows, inputs, len(starts), *ends, scheme.bits,
        scheme.group_size or 0, FLOATS[scheme.scales], ZEROS[scheme.zeros], *scheme.scale_codes,
        threads(),
    )  # fmt: skip
    library().edgelm_quantize(ctypes.byref(struct))
    if refused.value & _NO_MEMORY:
        raise MemoryError("no memory to quantize rows in")
    return None if refused.value else packed


@cache
def _table(codebook: str | None) -> Tensor | None:
    """edgelm_search's table of a codebook."""
    if codebook is None:
        return None
    numbers, limits, codes = intervals(codebook, torch.device("cpu"))
    return torch.stack([numbers, torch.cat([limits, limits.new_tensor([torch.inf])]), codes.float()])
