"""Codes of scales and minima: bytes times a super-scale, from the float32 numbers that were found.

A super-scale takes the largest magnitude of its groups to the largest code, as in GGUF's K types.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from .errors import QuantError
from .groupwise import inverse
from .packing import Grid
from .scheme import Scheme

MINIMA = (0, 63)  # codes of minima, which are not above zero: their super-scale is negative
_NEAR = (0, -1, 1)


def encode(grid: Grid, scheme: Scheme) -> Grid:
    """The float32 grid [n, G] as the scheme stores it; one whose scales are not coded is returned
    as it is.

    Raises QuantError for super-scales beyond their type.
    """
    if not scheme.coded:
        return grid
    parts = [_super_scales(grid.scales, scheme.scale_codes[1], scheme)]
    if scheme.zeros == "float":
        assert grid.zeros is not None
        parts.append(-_super_scales(grid.zeros, MINIMA[1], scheme))
    supers = torch.stack(parts, -1)
    scales = codes(grid.scales, supers[..., 0], scheme.scale_codes)
    zeros = grid.zeros
    if scheme.zeros == "float":
        assert zeros is not None
        zeros = codes(zeros, supers[..., 1], MINIMA)
    return Grid(scales, zeros, supers)


def neighbours(grid: Grid, scheme: Scheme) -> Iterator[Grid]:
    """Grids with codes of scales, and of coded minima, one lower, the same and one higher."""
    for up, zero_up in itertools.product(_NEAR, _NEAR if scheme.zeros == "float" else (0,)):
        scales = _beside(grid.scales, up, scheme.scale_codes)
        zeros = grid.zeros
        if zeros is not None and zero_up:
            zeros = _beside(zeros, zero_up, MINIMA)
        yield Grid(scales, zeros, grid.supers)


def _beside(codes: Tensor, up: int, allowed: tuple[int, int]) -> Tensor:
    return (codes.short() + up).clamp_(*allowed).to(codes.dtype)  # int8 would wrap 127 + 1


def _super_scales(values: Tensor, most: int, scheme: Scheme) -> Tensor:
    """Super-scales [n, B] of ``values`` [n, G], the largest of which get the code ``most``."""
    assert scheme.group_size is not None
    blocks = scheme.super_groups(values.shape[1] * scheme.group_size)
    largest = values.view(len(values), blocks, -1).abs().amax(-1) / most
    limit = torch.finfo(scheme.scale_dtype).max
    if float(largest.max()) > limit:
        raise QuantError(
            f"a super-scale of {float(largest.max()):.3g} is beyond {scheme.scales} ({limit:.5g}); "
            "the weights are damaged, or keep this tensor in float"
        )
    return largest.to(scheme.scale_dtype)


def codes(values: Tensor, supers: Tensor, allowed: tuple[int, int]) -> Tensor:
    """Codes, int8 [n, G], of ``values`` [n, G] in multiples of ``supers`` [n, B]."""
    by = inverse(supers.float().unsqueeze(-1))
    blocks = values.view(len(values), supers.shape[1], -1)
    return (blocks * by).round_().clamp_(*allowed).view(values.shape).to(torch.int8)
