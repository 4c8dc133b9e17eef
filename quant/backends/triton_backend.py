"""CUDA kernels written in Triton: int4, int8, nf4 and fp4 with any groups and zeros.

Few rows of activations are multiplied in float32 with weights dequantized in registers, and a
row's result does not depend on the number of rows; more rows go through the tensor cores in the
activations' type, with weights rounded to it once. Rows can be read, so one copy of an embedding
also serves as its tied head. quant/triton has the layout and the kernels; it is imported at first
use, because most machines never need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import triton
from ..errors import QuantError
from ..packing import PackedWeight
from ..scheme import Scheme
from .kernel import Shape, Tensors

if TYPE_CHECKING:
    from ..triton.launch import Matrix

# Products of Gaussian numbers agree with the exact ones to at least this many dB, by the type of
# the activations, to which the result (and, beyond FEW_ROWS, the weights) are rounded.
FLOOR_DB = {torch.float32: 110.0, torch.float16: 62.0, torch.bfloat16: 46.0}


class TritonProduct:
    """One kind of weights ("int4", "int8", "nf4" or "fp4"), with any groups, zeros and scales."""

    backend = "triton"

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.name = f"triton.{kind}"

    def refusal(
        self, scheme: Scheme, shape: Shape, device: torch.device, lookup: bool
    ) -> str | None:
        if (scheme.codebook or f"int{scheme.bits}") != self.kind:
            return f"supports {self.kind} only"
        if scheme.coded or scheme.group_size == 16:
            return "supports scales of float types in groups of 32 or more"
        return triton.missing(device)

    def prepare(self, packed: PackedWeight) -> Tensors:
        from ..triton import launch, layout, workspace

        tensors = layout.laid_out(packed)
        shared = launch.workspace_bytes(packed.shape, launch.FEW_ROWS)
        workspace.reserve(packed.qweight.device, shared)
        return tensors

    def layout(self, scheme: Scheme, shape: Shape) -> Tensors:
        from ..triton import layout

        return layout.empty(scheme, shape)

    def nbytes(self, scheme: Scheme, shape: Shape) -> int:
        from ..triton import layout

        return layout.nbytes(scheme, shape)

    def prepare_bytes(self, scheme: Scheme, shape: Shape) -> int:
        from ..triton import launch, layout

        shared = launch.workspace_bytes(shape, launch.FEW_ROWS)
        return self.nbytes(scheme, shape) + layout.words_bytes(scheme, shape) + shared

    def scratch_bytes(self, scheme: Scheme, shape: Shape, rows: int) -> int:
        from ..triton import launch

        return launch.workspace_bytes(shape, rows)

    def multiply(
        self, x: Tensor, tensors: Tensors, scheme: Scheme, bias: Tensor | None, out: Tensor
    ) -> None:
        from ..triton import launch

        matrix = launch.Matrix(tensors, scheme, (out.shape[1], x.shape[1]))
        _check(x, matrix, bias, out)
        if len(x):
            launch.multiply(x, matrix, bias, out)

    def lookup(self, ids: Tensor, tensors: Tensors, scheme: Scheme, out: Tensor) -> None:
        from ..triton import launch

        matrix = launch.Matrix(tensors, scheme, (len(tensors["qweight"]), out.shape[1]))
        if len(ids) != len(out) or out.stride(1) != 1:
            raise QuantError(f"{len(ids)} ids do not match out {list(out.shape)}; allowed: [n, K]")
        if len(ids):
            launch.lookup(ids.contiguous(), matrix, out)


def _check(x: Tensor, matrix: Matrix, bias: Tensor | None, out: Tensor) -> None:
    """Raise QuantError unless all sizes match: kernels would read out of bounds."""
    from ..triton import layout

    outputs, inputs = matrix.shape
    words = layout.geometry(matrix.scheme, inputs).words
    if tuple(matrix.tensors["qweight"].shape) != (outputs, words):
        raise QuantError(
            f"a matrix {[outputs, inputs]} of {matrix.scheme} has words {[outputs, words]}; the "
            f"given layout has {list(matrix.tensors['qweight'].shape)}. Pass the tensors that "
            "prepare() returned, and x and out of matching sizes"
        )
    if len(out) != len(x) or (bias is not None and bias.shape != (outputs,)):
        raise QuantError(
            f"x {list(x.shape)}, bias {None if bias is None else list(bias.shape)} and out "
            f"{list(out.shape)} do not match; allowed: [M, K], [N], [M, N]"
        )
    if x.stride(1) != 1 or out.stride(1) != 1 or x.dtype not in FLOOR_DB:
        raise QuantError(
            f"x {x.dtype} with strides {x.stride()} and out with {out.stride()}; allowed: "
            f"contiguous rows of {', '.join(str(dtype) for dtype in FLOOR_DB)}"
        )
