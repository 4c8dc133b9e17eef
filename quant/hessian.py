"""Hessians of a matrix's inputs, and what GPTQ works with: the damped one and its Cholesky factor.

The output's squared error over inputs X [tokens, K] is quadratic in a row of weights, with X^T X
as its matrix. GPTQ (arXiv:2210.17323) needs the upper Cholesky factor C of the inverse of the
damped one, C^T C = (X^T X + d I)^-1. Here U U^T = X^T X + d I is factored from the last column to
the first, with U upper, and C = U^-1. This is half the work of inverting first, is better
conditioned, and needs no memory beyond that of the matrix factored.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import QuantError

# Damping, in parts of the mean of the diagonal: grows with inputs per token, within limits.
# benches/LOG.md has what was tried.
_DAMPING = 0.15
_LEAST_DAMPING, _MOST_DAMPING = 0.01, 0.3
_ADDED = 1024  # columns of X^T X that are added up at once; only its upper triangle is
_FACTORED = 256
_ATTEMPTS = 8


class Hessian:
    """X^T X over all inputs added so far, float32 [K, K]: the only large allocation here."""

    def __init__(self, inputs: int) -> None:
        self._sum = torch.zeros(inputs, inputs)
        self.tokens = 0

    @staticmethod
    def nbytes(inputs: int) -> int:
        """Bytes for K ``inputs``."""
        return 4 * inputs * inputs

    def add(self, inputs: Tensor) -> None:
        """Count the rows of ``inputs`` [tokens, K]."""
        exact = inputs.float()
        self.tokens += len(exact)
        for start in range(0, len(self._sum), _ADDED):
            stop = min(start + _ADDED, len(self._sum))
            self._sum[:stop, start:stop].addmm_(exact[:, :stop].T, exact[:, start:stop])

    def taken(self) -> Tensor:
        """X^T X whole, symmetric, in the memory of the sum, which ends here.

        Raises QuantError for inputs that are not finite.
        """
        total, self._sum = self._sum, torch.empty(0)
        if not float(total.diagonal().mean()) < torch.inf:
            raise QuantError(
                "calibration inputs hold NaN, infinite or absurdly large numbers; the weights "
                "before this matrix are damaged"
            )
        for start in range(0, len(total), _ADDED):
            own = slice(start, start + _ADDED)
            corner = total[own, own]
            corner.copy_(corner.triu() + corner.triu(1).T)
            total[own.stop :, own] = total[own, own.stop :].T
        return total


@dataclass(frozen=True)
class Curvature:
    """How a matrix's errors count in its outputs, over a text's inputs.

    matrix: X^T X + d I, float32 [K, K]. order: int64 [K], inputs from the strongest to the weakest.
    factor: upper triangular C [K, K], C^T C the inverse of ``matrix`` with rows and columns in that
    order. held: X^T X of inputs that are in neither, [K, K].
    """

    matrix: Tensor
    order: Tensor
    factor: Tensor
    held: Tensor

    @classmethod
    def of(cls, seen: Hessian, held: Hessian) -> Curvature:
        """From inputs to fit and inputs to check against; both sums end here.

        Inputs that were always zero neither cause nor receive corrections. Raises QuantError for
        inputs that are not finite.
        """
        matrix = seen.taken()
        damping = _damping(len(matrix) / seen.tokens) * float(matrix.diagonal().mean()) or 1.0
        matrix.diagonal().add_(damping)
        order = _order(matrix.diagonal())
        factor = torch.empty_like(matrix)
        for start in range(0, len(order), _FACTORED):
            own = slice(start, start + _FACTORED)
            factor[own] = matrix[order[own]][:, order]
        return cls(matrix, order, _factored_(factor, damping), held.taken())


def _order(strengths: Tensor) -> Tensor:
    """Inputs from the strongest to the weakest, int64 [K]."""
    return strengths.argsort(descending=True, stable=True)


def _damping(inputs_per_token: float) -> float:
    return min(max(_DAMPING * inputs_per_token, _LEAST_DAMPING), _MOST_DAMPING)


def _factored_(total: Tensor, damping: float) -> Tensor:
    """C of a damped Hessian [K, K], which is overwritten by it."""
    total.triu_()
    blocks = [
        slice(start, min(start + _FACTORED, len(total)))
        for start in range(0, len(total), _FACTORED)
    ]
    for block in reversed(blocks):
        _factor_column_(total, block, damping)
    for block in blocks:
        _invert_column_(total, block)
    return total


def _factor_column_(total: Tensor, block: slice, damping: float) -> None:
    """Compute columns ``block`` of U once those after it are done; the diagonal stays inverted."""
    above, behind = slice(block.start), slice(block.stop, None)
    column = total[: block.stop, block]
    column.addmm_(total[: block.stop, behind], total[block, behind].T, alpha=-1)
    inverse = _inverted(total[block, block], damping)
    total[above, block] = total[above, block] @ inverse.T
    total[block, block] = inverse


def _inverted(corner: Tensor, damping: float) -> Tensor:
    """U^-1 of a diagonal block whose upper triangle is that of U U^T; damped more where rounding
    made it indefinite."""
    exact = corner.double()
    whole = exact.triu() + exact.triu(1).T
    for _ in range(_ATTEMPTS):
        lower, failed = torch.linalg.cholesky_ex(whole.flip(0, 1))
        if not failed:
            unit = torch.eye(len(whole), dtype=whole.dtype)
            upper = lower.flip(0, 1)
            return torch.linalg.solve_triangular(upper, unit, upper=True).float()
        whole.diagonal().add_(damping)
        damping *= 10
    raise QuantError("calibration inputs make no positive definite matrix; use another text")


def _invert_column_(total: Tensor, block: slice) -> None:
    """Compute columns ``block`` of C once those before it are done."""
    scaled = total[: block.start, block] @ total[block, block]
    for start in range(0, block.start, _ADDED):  # in parts, to leave out half of the zeros below
        rows, behind = slice(start, min(start + _ADDED, block.start)), slice(start, block.start)
        total[rows, block] = (total[rows, behind] @ scaled[behind]).neg_()
