"""The Kernel protocol: one way to hold a matrix in memory and to multiply with it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..packing import PackedWeight
from ..scheme import Scheme

Tensors = dict[str, Tensor]
Shape = tuple[int, int]


class Kernel(Protocol):
    """A layout of a matrix [N, K] and the products over it; stateless.

    Activations are float32 or bfloat16. ``tensors`` is always the result of ``prepare``.
    """

    name: str
    backend: str

    def refusal(
        self, scheme: Scheme, shape: Shape, device: torch.device, lookup: bool
    ) -> str | None:
        """None if this kernel supports such a matrix on ``device``, else the reason why not.

        lookup: single rows must be readable too (an embedding, or a head tied to one).
        """

    def prepare(self, packed: PackedWeight) -> Tensors:
        """Convert ``packed`` to the kernel's layout; may return the same tensors."""

    def layout(self, scheme: Scheme, shape: Shape) -> Tensors:
        """What ``prepare`` returns of such a matrix, on the meta device: types and shapes only."""

    def nbytes(self, scheme: Scheme, shape: Shape) -> int:
        """Exact size in bytes of what ``prepare`` returns."""

    def prepare_bytes(self, scheme: Scheme, shape: Shape) -> int:
        """Upper bound of the bytes ``prepare`` allocates: new tensors and temporaries."""

    def scratch_bytes(self, scheme: Scheme, shape: Shape, rows: int) -> int:
        """Upper bound of the temporaries of one product with ``rows`` rows of activations."""

    def multiply(
        self, x: Tensor, tensors: Tensors, scheme: Scheme, bias: Tensor | None, out: Tensor
    ) -> None:
        """x [M, K] times the transposed matrix, plus bias [N], into out [M, N].

        ``out`` may be a slice of columns of a wider buffer.
        """

    def lookup(self, ids: Tensor, tensors: Tensors, scheme: Scheme, out: Tensor) -> None:
        """Copy rows ``ids`` (int64 [n]) into out [n, K]; only if ``refusal`` accepted lookup."""
