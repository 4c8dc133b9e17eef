"""Half-quadratic quantization: a grid whose errors are small in most weights and large in few.

Badri & Shaji 2023 (mobiusml.github.io/hqq_blog): the loss is the sum of |error|^p with p < 1,
split by an auxiliary error e that shrinkage gives in closed form; the rest is quadratic in the
zero. The scale stays that of round-to-nearest. Schemes without a zero of float type cannot move
it: there the same quadratic is solved for the scale. Errors are measured in steps of the first
grid, so that the constants suit weights of any size. None of the authors' code is used.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..groupwise import nearest, numbers_of_, quantize
from ..packing import Grid, PackedWeight
from ..scale_codes import encode
from ..scheme import Scheme
from .rtn import extremes, grid, stored

POWER = 0.75  # 0.7 in the paper; this one is two square roots, four times as fast
_PENALTY = 4.0  # of e's distance from the error; grows by _GROWTH at every iteration
_GROWTH = 1.01
_ITERATIONS = 15
_TINY = 1e-6  # steps: below it an error counts as none, and its power stays finite


def hqq(block: Tensor, scheme: Scheme) -> PackedWeight:
    """Pack the rows ``block`` (float32 [n, K]); takes about seven times their bytes while it runs.

    No group's loss is larger than round-to-nearest's. Raises QuantError as ``rtn`` does.
    """
    groups = block.view(len(block), scheme.groups(block.shape[1]), -1)
    current = grid(*extremes(block, scheme), scheme)
    best = current.clone()
    unit = current.steps().abs().unsqueeze(-1)
    inverse = torch.where(unit == 0, 0.0, 1 / unit)
    penalty, least = _PENALTY, torch.full(unit.shape[:2], torch.inf, device=unit.device)
    for _ in range(_ITERATIONS):
        values = numbers_of_(nearest(groups, current, scheme), current, scheme)
        errors = (groups - values).mul_(inverse)
        sizes = errors.abs().clamp_(min=_TINY)
        pull = sizes.rsqrt().sqrt_()  # sizes ** (POWER - 1)
        loss = (sizes * pull).sum(-1)
        better = loss < least
        for target, source in zip((least, *best), (loss, *current), strict=True):
            if target is not None and source is not None:
                target.copy_(torch.where(better, source, target))
        kept = pull.div_(-penalty).add_(sizes).clamp_(min=0).copysign_(errors).mul_(unit)
        current = _moved(groups - kept, values, current, scheme)
        penalty *= _GROWTH
    return quantize(block, encode(best, scheme), scheme)


def _moved(wanted: Tensor, values: Tensor, current: Grid, scheme: Scheme) -> Grid:
    """The grid nearest in least squares to ``wanted`` under the codes that gave ``values``."""
    if scheme.zeros == "float":
        minima = current.minima() + (wanted - values).mean(-1)
        if scheme.coded:
            minima.clamp_(max=0)
        return Grid(current.scales, stored(minima, scheme))
    squares = values.square().sum(-1)
    ratio = (wanted * values).sum(-1) / squares
    steps = current.steps() * torch.where(squares == 0, 1.0, ratio)
    return Grid(stored(steps, scheme), current.zeros)
