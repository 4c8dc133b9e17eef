"""Modules over packed matrices: plain named buffers; results go to a tensor the caller passes."""

from __future__ import annotations

from torch import Tensor, nn

from .backends.kernel import Kernel, Shape, Tensors
from .packing import PackedWeight
from .scheme import Scheme

Layout = tuple[Tensors, Scheme, Shape]


class _QuantMatrix(nn.Module):
    """A matrix [N, K] in a kernel's layout; the layout's tensors are the module's buffers.

    ``tensors`` is that layout by name, looked up once because a decode step asks for it often.
    """

    tensors: Tensors

    def __init__(self, matrix: PackedWeight | Layout, kernel: Kernel) -> None:
        super().__init__()
        if isinstance(matrix, PackedWeight):
            matrix = (kernel.prepare(matrix), matrix.scheme, matrix.shape)
        self.tensors, self.scheme, self.shape = matrix
        self.kernel = kernel
        for name, tensor in self.tensors.items():
            self.register_buffer(name, tensor)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.nbytes for buffer in self.buffers(recurse=False))

    def extra_repr(self) -> str:
        return f"{self.shape[1]} -> {self.shape[0]}, {self.scheme}, {self.kernel.name}"


class QuantLinear(_QuantMatrix):
    """x [M, K] -> out [M, N], in the dtype of the activations (float32 or bfloat16).

    matrix: a canonical weight, which the kernel lays out, or (tensors, scheme, shape) already in
    the kernel's layout. bias: [N] in the dtype of the activations, or None.
    """

    bias: Tensor | None

    def __init__(
        self, matrix: PackedWeight | Layout, kernel: Kernel, bias: Tensor | None = None
    ) -> None:
        super().__init__(matrix, kernel)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        """Multiply into ``out``, which may be a slice of columns of a wider buffer; returns it."""
        self.kernel.multiply(x, self.tensors, self.scheme, self.bias, out)
        return out


class QuantEmbedding(_QuantMatrix):
    """ids (int64 [n]) -> out [n, K], in out's dtype."""

    def forward(self, ids: Tensor, out: Tensor) -> Tensor:
        """Read rows into ``out``; returns it. The ids must be below N."""
        self.kernel.lookup(ids, self.tensors, self.scheme, out)
        return out

    def as_linear(self, bias: Tensor | None = None) -> QuantLinear:
        """The tied head: a product over the buffers of this embedding, stored once."""
        return QuantLinear((self.tensors, self.scheme, self.shape), self.kernel, bias)
