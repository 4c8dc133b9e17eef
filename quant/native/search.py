"""Rows quantized by the native library, to the same bits as the torch of ``quant.methods``."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from ..codebooks import intervals
from ..packing import PackedWeight
from . import FLOATS, ZEROS, library, missing, structs, threads
from .ops import address

_NO_MEMORY = 4  # EDGELM_NO_MEMORY


def quantize_(
    block: Tensor, into: PackedWeight, ends: tuple[float, float], starts: list[tuple[float, ...]]
) -> tuple[float, float] | None:
    """Pack the rows ``block`` (float32 [n, K]) into ``into``: sums of squares, and of errors'.

    ends: smallest and largest number of a symmetric grid of step 1. starts: those of the search,
    as ``mse`` makes them; without any, round to nearest. None if the library is absent or the rows
    cannot be stored, which torch then says in words.
    """
    if missing() is not None or block.device.type != "cpu" or into.qweight.device.type != "cpu":
        return None
    scheme, block = into.scheme, block.contiguous()
    assert block.dtype == torch.float32 and block.shape == into.shape
    assert all(tensor.is_contiguous() for tensor in into.tensors().values())
    errors = torch.zeros(len(block), 2, dtype=torch.float64)
    numbers = torch.tensor([(*start, 0.0)[:2] for start in starts], dtype=torch.float32)
    refused = ctypes.c_int32()
    struct = structs.Search(
        *map(address, (block, numbers, _table(scheme.codebook))),
        *map(address, (into.qweight, into.scales, into.zeros, into.supers, errors)),
        ctypes.addressof(refused), *block.shape, len(starts), *ends, scheme.bits,
        scheme.group_size or 0, FLOATS[scheme.scales], ZEROS[scheme.zeros], *scheme.scale_codes,
        threads(),
    )  # fmt: skip
    library().edgelm_quantize(ctypes.byref(struct))
    if refused.value & _NO_MEMORY:
        raise MemoryError("no memory to quantize rows in")
    if refused.value:
        return None
    signal, noise = errors.sum(0).tolist()
    return signal, noise


@cache
def _table(codebook: str | None) -> Tensor | None:
    """edgelm_search's table of a codebook."""
    if codebook is None:
        return None
    numbers, limits, codes = intervals(codebook, torch.device("cpu"))
    return torch.stack(
        [numbers, torch.cat([limits, limits.new_tensor([torch.inf])]), codes.float()]
    )
