"""Clipping search: the grid of least squared error among many for each group.

The grid of round-to-nearest is the first candidate, so no group gets worse than with that. Narrower
grids follow, each end pulled in alone and both together, then a few least-squares fits of scale
and minimum to the codes of the best. Every candidate is rounded to its stored type before its
error is computed; coded scales are searched as floats first, then among the codes near them. The
search resembles HQQ's and llama.cpp's; their code is not used.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..codebooks import numbers
from ..groupwise import nearest, numbers_of_, quantize
from ..packing import Grid, PackedWeight
from ..scale_codes import encode, neighbours
from ..scheme import Scheme
from .rtn import ends, extremes, grid, has_signs, stored

# Fractions of a group's range to try. Many bits gain only from the first few.
_SHARES = {
    4: (0.96, 0.92, 0.88, 0.84, 0.8, 0.76, 0.72, 0.68, 0.6),
    5: (0.97, 0.94, 0.91, 0.88, 0.85, 0.8),
    6: (0.98, 0.96, 0.94, 0.91, 0.88),
    8: (0.98, 0.95, 0.9),
}
_FITS = 3


def mse(block: Tensor, scheme: Scheme) -> PackedWeight:
    """Pack the rows ``block`` (float32 [n, K]); takes about five times their bytes while it runs.

    Raises QuantError as ``rtn`` does.
    """
    return quantize(block, best_grid(block, scheme), scheme)


def best_grid(block: Tensor, scheme: Scheme, supers: Tensor | None = None) -> Grid:
    """The grid of the rows [n, K], as stored, of least squared error found.

    supers: the super-scales to use where scales are coded, else they are chosen too.
    """
    groups = block.view(len(block), scheme.groups(block.shape[1]), -1)
    low, high = extremes(block, scheme)
    best = grid(low, high, scheme)
    least = _error(groups, best, scheme)
    for candidate in _narrower(low, high, scheme):
        _keep_better(groups, best, least, candidate, scheme)
    for _ in range(_FITS):
        _keep_better(groups, best, least, _fit(groups, best, scheme), scheme)
    if not scheme.coded:
        return best
    coded = encode(best, scheme, supers)
    chosen = coded.clone()
    least = _error(groups, coded, scheme)
    for candidate in neighbours(coded, scheme):
        _keep_better(groups, chosen, least, candidate, scheme)
    return chosen


def _narrower(low: Tensor, high: Tensor, scheme: Scheme) -> Iterator[Grid]:
    for share in _SHARES[scheme.bits]:
        yield grid(low * share, high * share, scheme)
        if scheme.zeros != "none":
            yield grid(low * share, high, scheme)
            yield grid(low, high * share, scheme)
    if scheme.zeros != "none" or not has_signs(scheme):
        return
    first, last = ends(scheme)
    if first != -last:
        # The other sign of the scale: the first code at the end without the extreme, which is at
        # most the last.
        for share in (1.0, *_SHARES[scheme.bits]):
            yield grid(high * share * first / last, low * share * first / last, scheme)


def _fit(groups: Tensor, current: Grid, scheme: Scheme) -> Grid:
    """The grid that is nearest in least squares to ``groups`` under the codes they have now."""
    codes = nearest(groups, current, scheme)
    if scheme.codebook is not None:
        codes = numbers(scheme.codebook, groups.device)[codes]
    elif scheme.zeros == "float":
        return _fit_with_minima(groups, codes, current, scheme)
    else:
        codes -= scheme.middle if current.zeros is None else current.zeros.unsqueeze(-1)
    return Grid(stored(_slope(codes, groups, current.scales), scheme), current.zeros)


def _fit_with_minima(groups: Tensor, codes: Tensor, current: Grid, scheme: Scheme) -> Grid:
    centred = codes - codes.mean(-1, keepdim=True)
    step = stored(_slope(centred, groups, current.scales), scheme)
    minimum = groups.mean(-1) - codes.mean(-1) * step.float()
    if scheme.coded:  # codes of minima and of their scales have no sign
        above = minimum > 0
        step = torch.where(above, _slope(codes, groups, current.scales), step).clamp(min=0)
        minimum = minimum.clamp(max=0)
    return Grid(step, stored(minimum, scheme))


def _slope(codes: Tensor, groups: Tensor, otherwise: Tensor) -> Tensor:
    """What ``codes`` [n, G, size] are to be multiplied by to come nearest to ``groups``."""
    upper, lower = (codes * groups).sum(-1), codes.square().sum(-1)
    return torch.where(lower == 0, otherwise.float(), upper / lower)


def _keep_better(
    groups: Tensor, best: Grid, least: Tensor, candidate: Grid, scheme: Scheme
) -> None:
    """Update ``best`` and ``least`` [n, G] in place where ``candidate`` has the smaller error."""
    error = _error(groups, candidate, scheme)
    better = error < least
    pairs = ((least, error), (best.scales, candidate.scales), (best.zeros, candidate.zeros))
    for target, source in pairs:
        if target is not None and source is not None:
            target.copy_(torch.where(better, source, target))


def _error(groups: Tensor, candidate: Grid, scheme: Scheme) -> Tensor:
    """Squared error of each group, float32 [n, G]."""
    values = numbers_of_(nearest(groups, candidate, scheme), candidate, scheme)
    return values.sub_(groups).square_().sum(-1)
