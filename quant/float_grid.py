"""Grids as float32 numbers, one of each group: what searches and GPTQ move before it is stored."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .codebooks import nearest_codes
from .codebooks import numbers as numbers_of
from .groupwise import inverse
from .packing import Grid
from .scheme import Scheme


class FloatGrid(NamedTuple):
    """Grids of M groups, float32 [M]: number = unit * step, + a float zero.

    A unit is a code's distance from an integer zero, a number of the codebook, or the code itself.
    """

    steps: Tensor
    zeros: Tensor

    @staticmethod
    def of(stored: Grid, scheme: Scheme) -> FloatGrid:
        """The grids [n, G] of some rows."""
        steps = stored.steps()
        if stored.zeros is None:
            return FloatGrid(steps, torch.full_like(steps, scheme.middle))
        zeros = stored.minima() if scheme.zeros == "float" else stored.zeros.float()
        return FloatGrid(steps, zeros)

    def units(self, values: Tensor, scheme: Scheme) -> Tensor:
        """Units of the nearest codes of ``values`` [.., M], as ``groupwise.nearest`` finds them."""
        by = inverse(self.steps)
        if scheme.codebook is not None:
            return numbers_of(scheme.codebook, values.device)[
                nearest_codes(values * by, scheme.codebook)
            ]
        first, last = scheme.code_range
        if scheme.zeros == "float":
            return (values - self.zeros).mul_(by).clamp_(first, last).round_()
        return (values * by).clamp_(first - self.zeros, last - self.zeros).round_()

    def numbers(self, units: Tensor, scheme: Scheme) -> Tensor:
        """The numbers that ``units`` [.., M] represent."""
        found = units * self.steps
        return found.add_(self.zeros) if scheme.zeros == "float" else found

    def codes(self, units: Tensor, scheme: Scheme) -> Tensor:
        """The codes, of any numeric dtype, whose ``units`` [.., M] these are."""
        if scheme.codebook is not None:
            return nearest_codes(units, scheme.codebook)
        return units if scheme.zeros == "float" else units + self.zeros
