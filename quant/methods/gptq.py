"""GPTQ: the rounding error of each column is compensated by the columns not yet rounded.

Frantar et al. 2022, arXiv:2210.17323, without reordering of columns: scales are computed group by
group as columns are reached, on weights already corrected for the errors of earlier columns. A
group's grid is the one of least squared error (``mse``); super-scales are those of the weights as
they were. None of the authors' code is used.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..groupwise import nearest, numbers_of_
from ..packing import Grid, PackedWeight, pack_codes
from ..scale_codes import encode
from ..scheme import Scheme
from .mse import best_grid
from .rtn import extremes, grid

_COLUMNS = 128  # a multiple of every group size; errors are applied to later columns in one product


def gptq(rows: Tensor, factor: Tensor, scheme: Scheme) -> PackedWeight:
    """Pack ``rows`` (float32 [n, K]), each by itself; takes twice their bytes while it runs.

    factor: upper Cholesky factor [K, K] of the inverse damped Hessian, see ``quant.hessian``; the
    identity rounds to nearest. Raises QuantError as ``rtn`` does.
    """
    inputs = rows.shape[1]
    packed, rest = PackedWeight.empty((len(rows), inputs), scheme), rows.clone()
    if scheme.group_size is None:
        _keep(best_grid(rows, scheme), packed, 0)
    if packed.supers is not None:
        supers = encode(grid(*extremes(rows, scheme), scheme), scheme).supers
        assert supers is not None
        packed.supers.copy_(supers)
    for start in range(0, inputs, _COLUMNS):
        stop = min(start + _COLUMNS, inputs)
        columns = rest[:, start:stop].T.contiguous()
        codes = _round_(columns, factor[start:stop, start:stop], packed, start)
        rest[:, start:stop] = codes.T
        rest[:, stop:].addmm_(columns.T, factor[start:stop, stop:], alpha=-1)
    packed.qweight.copy_(pack_codes(rest, scheme))
    return packed


def _round_(columns: Tensor, factor: Tensor, packed: PackedWeight, start: int) -> Tensor:
    """Compute the codes [b, n] of the columns [b, n] from ``start`` on.

    The columns are overwritten by their errors over the factor's diagonal.
    """
    scheme, codes = packed.scheme, torch.empty_like(columns)
    size = scheme.group_size or packed.shape[1]
    current = _kept(packed, 0)
    for index, (column, weights) in enumerate(zip(columns, factor, strict=True)):
        group, place = divmod(start + index, size)
        if place == 0 and scheme.group_size:
            supers = _kept(packed, group).supers
            own = columns[index : index + size].T.contiguous()
            current = best_grid(own, scheme, supers)
            _keep(current, packed, group)
        code = nearest(column.view(-1, 1, 1), current, scheme)
        codes[index] = code.view(-1)
        value = numbers_of_(code, current, scheme).view(-1)
        column.sub_(value).div_(weights[index])
        columns[index + 1 :].addr_(weights[index + 1 :], column, alpha=-1)
    return codes


def _keep(found: Grid, packed: PackedWeight, group: int) -> None:
    for target, source in ((packed.scales, found.scales), (packed.zeros, found.zeros)):
        if target is not None and source is not None:
            target[:, group] = source.view(-1)


def _kept(packed: PackedWeight, group: int) -> Grid:
    """The grid of one group, by itself."""
    scales, zeros, supers = packed.grid
    column, block = slice(group, group + 1), 0
    if supers is not None:
        block = group * supers.shape[1] // scales.shape[1]
        supers = supers[:, block : block + 1]
    return Grid(scales[:, column], None if zeros is None else zeros[:, column], supers)
