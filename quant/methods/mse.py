"""The grid of least weighted squared error of each group, among a few starts and their fits.

The codes of a group on a grid tell which scale (and zero) fits them best, and how large the error
is then. So each start costs one pass over the numbers: grids a few steps narrower or wider than
round-to-nearest's, shifted, or of the other sign. The fit of the best start is fitted ``FITS``
times more. What is found is kept where, as stored, it beats round-to-nearest, so no group gets
worse than with that. Coded scales are searched as floats, then among the codes near them.
llama.cpp's search resembles this; its code is not used.

quant/native/src/search/ chooses the same grids to the last bit. So float32 operations have one
order here, that of ``_total`` and of the expressions as they are written, and none is fused.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..float_grid import FloatGrid
from ..groupwise import inverse, quantize
from ..packing import Grid, PackedWeight
from ..scale_codes import encode, neighbours
from ..scheme import Scheme
from .rtn import ends, extremes, grid, has_signs

FITS = 2
# Starts of groups of up to 32 numbers, of up to 128 and of rows, which have numbers far out: how
# many steps an end of the grid is pulled in. Found greedily on Gaussian and Student's t weights.
_SYMMETRIC = ((0.5, -1.0, -0.33, 0.8), (1.0, 0.5, 1.4, 0.0), (0.6, 1.4, 2.3, 3.4, 5.0))
# With zeros, of the lower end and of the upper.
_RANGES = (
    ((0.3, -0.3), (-0.3, 0.3), (0.3, 0.0), (-0.9, 0.0), (0.0, 0.3), (0.0, -0.9)),
    ((0.6, 0.6), (0.9, 0.3), (0.3, 0.9), (0.3, 0.3), (0.6, 0.0), (0.0, 0.6)),
    (
        *((2.0, 2.0), (1.0, 1.0), (2.6, 3.3), (4.2, 2.0), (0.5, 1.0)),
        *((1.5, 1.0), (2.0, 5.5), (4.2, 3.3), (2.6, 2.0), (1.5, 2.6)),
        *((0.0, 0.6), (0.6, 0.0), (0.3, 0.3)),
    ),
)
_CHUNK = 32  # numbers of a group that are summed one after another


class _Numbers(NamedTuple):
    """Numbers of M groups and the weights of their errors, [size, M], and weights in all, [M]."""

    values: Tensor
    weights: Tensor
    weight: Tensor


class _Sums(NamedTuple):
    """Sums over each group, [M], of products of what is left of its numbers, units and weights."""

    left_left: Tensor
    left_unit: Tensor
    unit_unit: Tensor
    left: Tensor
    unit: Tensor


def mse(block: Tensor, scheme: Scheme) -> PackedWeight:
    """Pack the rows ``block`` (float32 [n, K]); takes about five times their bytes while it runs.

    Raises QuantError as ``rtn`` does.
    """
    return quantize(block, best_grid(block, scheme), scheme)


def best_grid(block: Tensor, scheme: Scheme) -> Grid:
    """The grid of the rows [n, K], as stored, of least weighted squared error found."""
    low, high = extremes(block, scheme)
    nearest, shape = grid(low, high, scheme), low.shape
    numbers = _weighted(block.view(low.numel(), -1).T.contiguous())
    first = _flat(nearest, scheme)
    sums = _sums(numbers, first, scheme)
    tried = _starts(low.view(-1), high.view(-1), len(numbers.values), scheme)
    found = _search(numbers, tried, first, sums, scheme)
    zeros = None if nearest.zeros is None else found.zeros.view(shape)
    if not scheme.coded:
        stored = _stored(found.steps.view(shape), zeros, scheme)
        _keep_better(numbers, nearest, sums.left_left, stored, scheme)
        return nearest
    if scheme.zeros == "int" and zeros is not None:
        zeros = zeros.to(scheme.dtype)
    coded = encode(Grid(found.steps.view(shape), zeros), scheme)
    best, least = coded.clone(), _sums(numbers, _flat(coded, scheme), scheme).left_left
    for candidate in neighbours(coded, scheme):
        _keep_better(numbers, best, least, candidate, scheme)
    return best


def starts(size: int, scheme: Scheme) -> list[tuple[float, ...]]:
    """Numbers that make the starts of groups of ``size``, see ``_starts``."""
    kind = 0 if size <= 32 else 1 if scheme.group_size else 2
    if scheme.zeros != "none":
        return list(_RANGES[kind])
    first, last = ends(scheme)
    step = (last - first) / (2**scheme.bits - 1)
    wide = [(last + step * pulled, first - step * pulled) for pulled in _SYMMETRIC[kind]]
    if not has_signs(scheme):
        return list(wide)
    both = first != -last or scheme.codebook is not None
    return [(divisor,) for pair in wide for divisor in (pair if both else pair[:1])]


def _starts(low: Tensor, high: Tensor, size: int, scheme: Scheme) -> list[FloatGrid]:
    """Grids of groups whose extremes are ``low`` and ``high`` [M]."""
    found, (first, last) = [], scheme.code_range
    if scheme.zeros == "none":
        widest, zeros = torch.where(high > -low, high, low), torch.full_like(low, scheme.middle)
        for divisors in starts(size, scheme):
            if len(divisors) == 1:
                found.append(FloatGrid(widest / divisors[0], zeros))
            else:
                steps = torch.maximum(high / divisors[0], low / divisors[1])
                found.append(FloatGrid(steps, zeros))
        return found
    if scheme.zeros == "int" or scheme.coded:
        low = low.clamp(max=0)
        high = high.clamp(min=0) if scheme.zeros == "int" else torch.maximum(low, high)
    step = (high - low) / (last - first)
    for below, above in starts(size, scheme):
        lower = low + step * below
        steps = ((high - step * above) - lower) / (last - first)
        if scheme.zeros == "int":
            zeros = (first - lower * inverse(steps)).clamp_(first, last).round_()
        else:
            zeros = lower - steps * first
        found.append(FloatGrid(steps, zeros))
    return found


def _search(
    numbers: _Numbers, tried: list[FloatGrid], first: FloatGrid, sums: _Sums, scheme: Scheme
) -> FloatGrid:
    """The best fit to ``numbers``, not rounded; ``sums`` are those of ``first``."""
    best, least = first, torch.full_like(first.steps, torch.inf)
    best, least = _better(best, least, first, sums, numbers.weight, scheme)
    for start in tried:
        sums = _sums(numbers, start, scheme)
        best, least = _better(best, least, start, sums, numbers.weight, scheme)
    for _ in range(FITS):
        sums = _sums(numbers, best, scheme)
        best, least = _better(best, least, best, sums, numbers.weight, scheme)
    return best


def _better(
    best: FloatGrid, least: Tensor, tried: FloatGrid, sums: _Sums, weight: Tensor, scheme: Scheme
) -> tuple[FloatGrid, Tensor]:
    """``best`` and its error ``least``, or the fit of what was tried where its error is smaller."""
    fit, error = _fit(tried, sums, weight, scheme)
    better = error < least
    steps = torch.where(better, fit.steps, best.steps)
    zeros = torch.where(better, fit.zeros, best.zeros)
    return FloatGrid(steps, zeros), torch.where(better, error, least)


def _fit(now: FloatGrid, sums: _Sums, weight: Tensor, scheme: Scheme) -> tuple[FloatGrid, Tensor]:
    """The grid nearest to the numbers under the codes they have now, and its squared error."""
    errors, left_unit, unit_unit, left, unit = sums
    if scheme.zeros == "none":
        move = _ratio(left_unit, unit_unit)
        return FloatGrid(now.steps + move, now.zeros), errors - move * left_unit
    spread = unit_unit * weight - unit * unit
    move = _ratio(left_unit * weight - unit * left, spread)
    shift = (left - move * unit) / weight
    if scheme.zeros == "int":
        found, move, shift = _fit_integer_zeros(now, sums, now.steps + move, shift, weight, scheme)
    else:
        found = FloatGrid(now.steps + move, now.zeros + shift)
        if scheme.coded:  # codes of minima and of their scales have no sign
            alone = now.steps + _ratio(left_unit + now.zeros * unit, unit_unit)
            steps = torch.where(found.zeros > 0, alone, found.steps).clamp_(min=0)
            found = FloatGrid(steps, found.zeros.clamp(max=0))
            move, shift = found.steps - now.steps, found.zeros - now.zeros
    errors = errors - (move * left_unit + shift * left) * 2
    return found, errors + (
        move * move * unit_unit + move * shift * unit * 2 + shift * shift * weight
    )


def _fit_integer_zeros(
    now: FloatGrid, sums: _Sums, steps: Tensor, shift: Tensor, weight: Tensor, scheme: Scheme
) -> tuple[FloatGrid, Tensor, Tensor]:
    """The integer zeros nearest to a ``shift``, the steps that fit them, and what they change."""
    _, left_unit, unit_unit, left, unit = sums
    zeros = (now.zeros - shift * inverse(steps)).clamp_(*scheme.code_range).round_()
    up = now.zeros - zeros  # of all units
    squares = unit_unit + up * unit * 2 + up * up * weight
    products = (left_unit + now.steps * unit_unit) + up * (left + now.steps * unit)
    steps = torch.where(squares == 0, now.steps, products / squares)
    return FloatGrid(steps, zeros), steps - now.steps, up * steps


def _ratio(upper: Tensor, lower: Tensor) -> Tensor:
    return torch.where(lower == 0, 0.0, upper / lower)


def _keep_better(
    numbers: _Numbers, best: Grid, least: Tensor, candidate: Grid, scheme: Scheme
) -> None:
    """Update ``best`` and ``least`` [M] in place where ``candidate`` has the smaller error."""
    error = _sums(numbers, _flat(candidate, scheme), scheme).left_left
    better = error < least
    least.copy_(torch.where(better, error, least))
    for target, source in ((best.scales, candidate.scales), (best.zeros, candidate.zeros)):
        if target is not None and source is not None:
            target.copy_(torch.where(better.view(target.shape), source, target))


def _stored(steps: Tensor, zeros: Tensor | None, scheme: Scheme) -> Grid:
    """The grid in its stored types, numbers beyond them at their ends."""
    limit = torch.finfo(scheme.scale_dtype).max
    if zeros is not None and scheme.zeros == "float":
        zeros = zeros.clamp(-limit, limit).to(scheme.scale_dtype)
    elif zeros is not None:
        zeros = zeros.to(scheme.dtype)
    return Grid(steps.clamp(-limit, limit).to(scheme.scale_dtype), zeros)


def _flat(stored: Grid, scheme: Scheme) -> FloatGrid:
    return FloatGrid(*(part.view(-1) for part in FloatGrid.of(stored, scheme)))


def _weighted(values: Tensor) -> _Numbers:
    """Groups [size, M] with the weights that ggml gives to errors: magnitudes, and what is typical.

    Large weights often meet large inputs, so pulling in the ends of their grids costs more than
    the squared error says.
    """
    # Some libraries round the last bit of a float32 root otherwise.
    typical = (_total(values * values) / len(values)).double().sqrt_().float()
    weights = values.abs() + typical
    return _Numbers(values, weights, _total(weights))


def _sums(numbers: _Numbers, at: FloatGrid, scheme: Scheme) -> _Sums:
    """Sums over the numbers on a grid."""
    units = at.units(numbers.values, scheme)
    left = numbers.values - units * at.steps
    if scheme.zeros == "float":
        left -= at.zeros
    own, own_units = left * numbers.weights, units * numbers.weights
    products = _total(own * left), _total(own * units), _total(own_units * units)
    if scheme.zeros == "none":  # fits need no other sums
        none = torch.zeros_like(at.steps)
        return _Sums(*products, none, none)
    return _Sums(*products, _total(own), _total(own_units))


def _total(terms: Tensor) -> Tensor:
    """Sum over the first axis: chunks one after another, then halves of what they give."""
    size, groups = terms.shape
    terms = pad(terms, (0, 0, 0, -size % _CHUNK)) if size > _CHUNK else terms
    chunks = terms.view(-1, min(size, _CHUNK), groups)
    parts = chunks[:, 0].clone()
    for index in range(1, chunks.shape[1]):
        parts += chunks[:, index]
    while len(parts) > 1:
        half = (len(parts) + 1) // 2
        parts[: len(parts) - half] += parts[half:]
        parts = parts[:half]
    return parts[0]
