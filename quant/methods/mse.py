"""Clipping search: the grid of least squared error among many for each group.

The grid of round-to-nearest is the first candidate, so no group gets worse than with that. Narrower
grids follow, each end pulled in alone and both together, then a few least-squares fits of scale
and minimum to the codes of the best. Every candidate is rounded to its stored type before its
error is computed. The search resembles HQQ's and llama.cpp's; their code is not used.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..codebooks import numbers
from ..groupwise import nearest, numbers_of_, quantize
from ..packing import PackedWeight
from ..scheme import Scheme
from .rtn import extremes, grid, stored

Grid = tuple[Tensor, Tensor | None]

# Fractions of a group's range to try. Eight bits gain only from the first few.
_SHARES = {4: (0.96, 0.92, 0.88, 0.84, 0.8, 0.76, 0.72, 0.68, 0.6), 8: (0.98, 0.95, 0.9)}
_FITS = 3


def mse(block: Tensor, scheme: Scheme) -> PackedWeight:
    """Pack the rows ``block`` (float32 [n, K]); takes about five times their bytes while it runs.

    Raises QuantError as ``rtn`` does.
    """
    return quantize(block, *best_grid(block, scheme), scheme)


def best_grid(block: Tensor, scheme: Scheme) -> Grid:
    """Scales and zeros [n, G], in their stored types, of least squared error found."""
    groups = block.view(len(block), scheme.groups(block.shape[1]), -1)
    low, high = extremes(block, scheme)
    scales, zeros = grid(low, high, scheme)
    least = _error(groups, (scales, zeros), scheme)
    for candidate in _narrower(low, high, scheme):
        _keep_better(groups, (scales, zeros), least, candidate, scheme)
    for _ in range(_FITS):
        _keep_better(groups, (scales, zeros), least, _fit(groups, (scales, zeros), scheme), scheme)
    return scales, zeros


def _narrower(low: Tensor, high: Tensor, scheme: Scheme) -> Iterator[Grid]:
    for share in _SHARES[scheme.bits]:
        yield grid(low * share, high * share, scheme)
        if scheme.zeros != "none":
            yield grid(low * share, high, scheme)
            yield grid(low, high * share, scheme)
    if scheme.zeros == "none" and scheme.bits == 4 and scheme.codebook is None:
        # The other sign of the scale: code -8 at the end without the extreme, which is at most +7.
        for share in (1.0, *_SHARES[4]):
            yield grid(-high * share * 8 / 7, -low * share * 8 / 7, scheme)


def _fit(groups: Tensor, current: Grid, scheme: Scheme) -> Grid:
    """The grid that is nearest in least squares to ``groups`` under the codes they have now."""
    scales, zeros = current
    codes = nearest(groups, scales, zeros, scheme)
    if scheme.codebook is not None:
        codes = numbers(scheme.codebook, groups.device)[codes]
    elif scheme.zeros == "float":
        centred = codes - codes.mean(-1, keepdim=True)
        step = _ratio((centred * groups).sum(-1), centred.square().sum(-1), scales)
        rounded = stored(step, scheme)
        return rounded, stored(groups.mean(-1) - codes.mean(-1) * rounded.float(), scheme)
    elif zeros is not None:
        codes -= zeros.unsqueeze(-1)
    elif scheme.bits == 4:
        codes -= 8
    step = _ratio((codes * groups).sum(-1), codes.square().sum(-1), scales)
    return stored(step, scheme), zeros


def _ratio(upper: Tensor, lower: Tensor, otherwise: Tensor) -> Tensor:
    return torch.where(lower == 0, otherwise.float(), upper / lower)


def _keep_better(
    groups: Tensor, best: Grid, least: Tensor, candidate: Grid, scheme: Scheme
) -> None:
    """Update ``best`` and ``least`` [n, G] in place where ``candidate`` has the smaller error."""
    error = _error(groups, candidate, scheme)
    better = error < least
    for target, source in zip((least, *best), (error, *candidate), strict=True):
        if target is not None and source is not None:
            target.copy_(torch.where(better, source, target))


def _error(groups: Tensor, candidate: Grid, scheme: Scheme) -> Tensor:
    """Squared error of each group, float32 [n, G]."""
    scales, zeros = candidate
    values = numbers_of_(nearest(groups, scales, zeros, scheme), scales, zeros, scheme)
    return values.sub_(groups).square_().sum(-1)
