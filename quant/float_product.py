"""The product over a matrix of floats, as torch makes it."""

from __future__ import annotations

import torch
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """x [M, K] times weight [N, K] transposed, plus bias [N], into out [M, N]; one dtype."""
    if bias is None:
        torch.mm(x, weight.t(), out=out)
    else:
        torch.addmm(bias, x, weight.t(), out=out)


def linear_scratch_bytes(shape: tuple[int, int], rows: int) -> int:
    """Upper bound of the bytes ``linear`` takes, conversions of activations and result included.

    A single row of bfloat16 goes through float32 copies inside ATen: 12 bytes a number, measured.
    """
    return (rows * 4 + 14) * sum(shape)
