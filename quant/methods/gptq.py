"""GPTQ: the rounding error of each input is compensated by the inputs not yet rounded.

Frantar et al. 2022, arXiv:2210.17323, with grids found before (by ``mse``) and inputs rounded from
the strongest to the weakest, as the authors' code can do too ("static groups" and "act-order"):
codes stay in their places, so files and kernels are those of other methods. Then sweeps improve
what was found, where no step raises the error r^T H r of a row: the scale (and float
zero) of one group as stored, then the code of one input after the other, each moved to the best
that the others leave it. None of the authors' code is used.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..float_grid import FloatGrid
from ..groupwise import dequantize, inverse
from ..hessian import Curvature
from ..packing import PackedWeight, pack_codes
from ..scale_codes import MINIMA, codes
from ..scheme import Scheme
from .mse import mse
from .natively import quantize_natively

SWEEPS = 2
ROUNDING_COPIES = 7
"""Bytes that rows take on their way to codes, in parts of their own."""
_COLUMNS = 128  # inputs of a block; what they change in all others is one product


def gptq(rows: Tensor, curvature: Curvature, scheme: Scheme) -> PackedWeight:
    """Pack ``rows`` (float32 [n, K]), each by itself.

    A row whose outputs are further from its own than with ``mse``, over the inputs held back, is
    packed by ``mse``. Raises QuantError as ``rtn`` does.
    """
    plain = _searched(rows, scheme)
    rounding = _Rounding(rows, curvature, plain)
    rounding.round_in_order()
    for _ in range(SWEEPS):
        rounding.sweep()
    packed = rounding.packed()
    lost = _loss(rows, packed, curvature.held) > _loss(rows, plain, curvature.held)
    for target, source in zip(packed.tensors().values(), plain.tensors().values(), strict=True):
        target[lost] = source[lost]
    return packed


def _searched(rows: Tensor, scheme: Scheme) -> PackedWeight:
    packed = PackedWeight.empty((rows.shape[0], rows.shape[1]), scheme)
    if quantize_natively(rows, packed, "mse") is None:
        packed.copy_rows_(0, mse(rows, scheme))
    return packed


def _loss(rows: Tensor, packed: PackedWeight, hessian: Tensor) -> Tensor:
    """Squared error of each row's outputs, [n]."""
    errors = dequantize(packed).sub_(rows)
    return (errors @ hessian).mul_(errors).sum(1)


class _Rounding:
    """Rows on their way to codes; inputs come first in all tensors, [K, n] or, of groups, [G, n].

    ``wanted``: the numbers. ``units``: of their codes, see ``FloatGrid``. ``steps`` and ``zeros``:
    the grids. ``pull``: H r with r what is left of the numbers, the slope of the error.
    """

    def __init__(self, rows: Tensor, curvature: Curvature, start: PackedWeight) -> None:
        self._start, self._scheme, self._curvature = start, start.scheme, curvature
        self._wanted = rows.T.contiguous()
        self._units = torch.empty_like(self._wanted)
        floats = FloatGrid.of(start.grid, self._scheme)
        self._steps, self._zeros = (part.T.contiguous() for part in floats)
        self._size = len(self._wanted) // len(self._steps)
        self._pull = torch.empty(0)

    def round_in_order(self) -> None:
        """GPTQ itself."""
        order, factor = self._curvature.order, self._curvature.factor
        rest = self._wanted[order]
        for start in range(0, len(rest), _COLUMNS):
            stop = min(start + _COLUMNS, len(rest))
            block, own = rest[start:stop], factor[start:stop, start:stop]
            for index, place in enumerate(order[start:stop].tolist()):
                column, grid = block[index], self._grid(place)
                units = grid.units(column, self._scheme)
                self._units[place] = units
                column.sub_(grid.numbers(units, self._scheme)).div_(own[index, index])
                block[index + 1 :].addr_(own[index, index + 1 :], column, alpha=-1)
            rest[stop:].addmm_(factor[start:stop, stop:].T, block, alpha=-1)

    def sweep(self) -> None:
        """Improve every scale, then every code."""
        hessian = self._curvature.matrix
        self._pull = hessian @ (self._wanted - self._numbers())
        if self._scheme.group_size is None:
            self._refit(0, slice(0, len(hessian)))
        for start in range(0, len(hessian), _COLUMNS):
            block = slice(start, min(start + _COLUMNS, len(hessian)))
            before = self._numbers(block)
            if self._scheme.group_size:
                for group in range(block.start // self._size, block.stop // self._size):
                    self._refit(group, block)
            self._descend(block)
            moved = self._numbers(block).sub_(before)
            for others in (slice(0, block.start), slice(block.stop, len(hessian))):
                self._pull[others].addmm_(hessian[others, block], moved, alpha=-1)

    def packed(self) -> PackedWeight:
        """The rows as stored."""
        scheme, found = self._scheme, PackedWeight.empty(self._start.shape, self._scheme)
        units = self._units.view(len(self._steps), self._size, -1)
        grid = FloatGrid(self._steps.unsqueeze(1), self._zeros.unsqueeze(1))
        found.qweight.copy_(pack_codes(grid.codes(units, scheme).view(self._units.shape).T, scheme))
        steps, zeros = self._steps.T.contiguous(), self._zeros.T.contiguous()
        supers = self._start.supers
        if found.supers is not None and supers is not None:
            found.supers.copy_(supers)
            steps = codes(steps, supers[..., 0], scheme.scale_codes)
            if scheme.zeros == "float":
                zeros = codes(zeros, supers[..., 1], MINIMA)
        for target, source in ((found.scales, steps), (found.zeros, zeros)):
            if target is not None:
                target.copy_(source)
        return found

    def _grid(self, place: int) -> FloatGrid:
        """The grid of an input, one for each row."""
        group = place // self._size
        return FloatGrid(self._steps[group], self._zeros[group])

    def _numbers(self, inputs: slice = slice(None)) -> Tensor:
        """What the codes of the inputs say, [.., n]."""
        units = self._units[inputs]
        groups = slice(
            (inputs.start or 0) // self._size,
            ((inputs.stop or len(self._units)) - 1) // self._size + 1,
        )
        steps, zeros = (part[groups].unsqueeze(1) for part in (self._steps, self._zeros))
        by_group = units.view(len(steps), -1, units.shape[1])
        return FloatGrid(steps, zeros).numbers(by_group, self._scheme).view(units.shape)

    def _refit(self, group: int, around: slice) -> None:
        """Move a group's step, and its float zero, to the best as stored; ``pull`` follows in the
        inputs ``around`` it."""
        own = slice(group * self._size, (group + 1) * self._size)
        spread = self._curvature.matrix[around, own]
        if self._scheme.zeros == "float":
            self._move(self._zeros[group], 1, group, own, around, spread.sum(1, keepdim=True))
        units = self._units[own]
        self._move(self._steps[group], 0, group, own, around, spread @ units, units)

    def _move(
        self, numbers: Tensor, part: int, group: int, own: slice, around: slice, spread: Tensor,
        units: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Move ``numbers`` [n], of which each input of the group has its unit, or one.

        The error is quadratic in them, so the best that can be stored is the one nearest to its
        lowest point, and never worse than where they are.
        """
        inside = spread[own.start - around.start : own.stop - around.start]
        pull = self._pull[own]
        slope = (pull if units is None else pull * units).sum(0)
        bend = inside.sum(0) if units is None else (inside * units).sum(0)
        best = numbers + slope * inverse(bend)
        move = self._nearest(best, part, group).sub_(numbers)
        numbers.add_(move)
        self._pull[around].sub_(spread * move)

    def _descend(self, block: slice) -> None:
        """Move the code of each input to the best one; ``pull`` follows in the block."""
        hessian = self._curvature.matrix[block, block]
        pull = self._pull[block]
        for index, place in enumerate(range(block.start, block.stop)):
            grid, units = self._grid(place), self._units[place]
            now = grid.numbers(units, self._scheme)
            best = grid.units(now + pull[index] / hessian[index, index], self._scheme)
            units.copy_(best)
            pull.addr_(hessian[index], grid.numbers(best, self._scheme).sub_(now), alpha=-1)

    def _nearest(self, numbers: Tensor, part: int, group: int) -> Tensor:
        """The nearest steps (part 0) or zeros (1) of a group that can be stored, [n]."""
        dtype, supers = self._scheme.scale_dtype, self._start.supers
        if supers is None:
            limit = torch.finfo(dtype).max
            return numbers.clamp(-limit, limit).to(dtype).float()
        own = supers[:, group * supers.shape[1] // len(self._steps), part].float()
        allowed = self._scheme.scale_codes if part == 0 else MINIMA
        return (numbers * inverse(own)).round_().clamp_(*allowed).mul_(own)
