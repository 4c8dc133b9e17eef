"""Groupwise quantization as pure functions: codes from numbers, and numbers from codes."""

from __future__ import annotations

import torch
from torch import Tensor

from .codebooks import nearest_codes, number_pairs, numbers
from .packing import Grid, PackedWeight, pack_codes, unpack_codes
from .scheme import Scheme


def quantize(values: Tensor, grid: Grid, scheme: Scheme) -> PackedWeight:
    """Round ``values`` (float32 [n, K]) to the nearest codes of the given grid.

    grid: as it is stored, so that the codes are chosen for what will be read back. A scale of zero
    gives the code that reads as the group's zero. Numbers beyond the grid are clamped to its
    nearest end.
    """
    rows, inputs = values.shape
    codes = nearest(values.view(rows, scheme.groups(inputs), -1), grid, scheme)
    qweight = pack_codes(codes.view(rows, inputs), scheme)
    return PackedWeight(scheme, (rows, inputs), qweight, *grid)


def nearest(groups: Tensor, grid: Grid, scheme: Scheme) -> Tensor:
    """Codes of ``groups`` (float32 [n, G, size]) on the grid that ``quantize`` describes, unpacked.

    Integers come as float32, codes of a codebook as int64.
    """
    step = grid.steps().unsqueeze(-1)
    inverse = torch.where(step == 0, 0.0, 1 / step)
    if scheme.codebook is not None:
        return nearest_codes(groups * inverse, scheme.codebook)
    if scheme.zeros == "float":
        codes = (groups - grid.minima().unsqueeze(-1)).mul_(inverse).round_()
    else:
        codes = (groups * inverse).round_()
        codes += scheme.middle if grid.zeros is None else grid.zeros.unsqueeze(-1)
    return codes.clamp_(*scheme.code_range)


def numbers_of_(codes: Tensor, grid: Grid, scheme: Scheme) -> Tensor:
    """The numbers that ``codes``, as returned by ``nearest``, represent: float32 [n, G, size].

    Integer codes are overwritten by them.
    """
    if scheme.codebook is not None:
        known = numbers(scheme.codebook, codes.device)
        return known[codes].mul_(grid.steps().unsqueeze(-1))
    return stretch_(codes, grid, scheme)


def stretch_(groups: Tensor, grid: Grid, scheme: Scheme) -> Tensor:
    """Turn integer codes, as float32 [n, G, size], into the numbers they represent, in place."""
    step = grid.steps().unsqueeze(-1)
    if scheme.zeros == "float":
        return groups.mul_(step).add_(grid.minima().unsqueeze(-1))
    groups.sub_(scheme.middle if grid.zeros is None else grid.zeros.unsqueeze(-1))
    return groups.mul_(step)


def dequantize(
    packed: PackedWeight, out: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The numbers of ``packed`` as [N, K], in ``out`` if given, else new in ``dtype``.

    Integer schemes are computed in float32 and rounded once, to the dtype of the result.
    """
    if out is None:
        out = torch.empty(packed.shape, dtype=dtype, device=packed.qweight.device)
    if packed.scales is None:
        return out.copy_(packed.qweight)
    exact = out if out.dtype == torch.float32 and out.is_contiguous() else None
    if exact is None:
        exact = torch.empty(packed.shape, dtype=torch.float32, device=out.device)
    groups = exact.view(packed.shape[0], packed.scales.shape[1], -1)
    if packed.scheme.codebook is not None:
        pairs = number_pairs(packed.scheme.codebook, out.device)
        torch.index_select(pairs, 0, packed.qweight.view(-1).int(), out=exact.view(-1, 2))
        groups.mul_(packed.grid.steps().unsqueeze(-1))
        return exact if exact is out else out.copy_(exact)
    unpack_codes(packed.qweight, packed.scheme, exact)
    stretch_(groups, packed.grid, packed.scheme)
    return exact if exact is out else out.copy_(exact)
