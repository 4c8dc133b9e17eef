"""The reference: canonical tensors, dequantized a block of rows at a time.

It defines the correct result, and supports every scheme on every torch device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..float_product import linear, linear_scratch_bytes
from ..groupwise import dequantize
from ..packing import PackedWeight
from ..scheme import Scheme
from .kernel import Shape, Tensors

# Float32 numbers of one dequantized block: 4 MiB, so that it is still cached when multiplied.
_BLOCK_ELEMENTS = 1 << 20


class Reference:
    """Dequantize and multiply in the dtype of the activations."""

    name = "reference"
    backend = "reference"

    def refusal(
        self, scheme: Scheme, shape: Shape, device: torch.device, lookup: bool
    ) -> str | None:
        return None

    def prepare(self, packed: PackedWeight) -> Tensors:
        return packed.tensors()

    def layout(self, scheme: Scheme, shape: Shape) -> Tensors:
        return PackedWeight.empty(shape, scheme, "meta").tensors()

    def nbytes(self, scheme: Scheme, shape: Shape) -> int:
        return scheme.nbytes(shape)

    def prepare_bytes(self, scheme: Scheme, shape: Shape) -> int:
        return 0

    def scratch_bytes(self, scheme: Scheme, shape: Shape, rows: int) -> int:
        block = (min(_block_rows(shape[1]), shape[0]), shape[1])
        # The block in float32 and in the activations' dtype, and the codes being unpacked (of a
        # codebook an int32 for two of them).
        return math.prod(block) * (4 + 4 + 2) + linear_scratch_bytes(block, rows)

    def multiply(
        self, x: Tensor, tensors: Tensors, scheme: Scheme, bias: Tensor | None, out: Tensor
    ) -> None:
        packed = PackedWeight.of(tensors, scheme)
        if packed.qweight.dtype == x.dtype:
            linear(x, packed.qweight, bias, out)
            return
        outputs, inputs = packed.shape
        step = min(_block_rows(inputs), outputs)
        block = torch.empty(step, inputs, dtype=x.dtype, device=x.device)
        for start in range(0, outputs, step):
            stop = min(start + step, outputs)
            weight = dequantize(packed.rows(start, stop), out=block[: stop - start])
            part = None if bias is None else bias[start:stop]
            linear(x, weight, part, out[:, start:stop])

    def lookup(self, ids: Tensor, tensors: Tensors, scheme: Scheme, out: Tensor) -> None:
        if tensors["qweight"].dtype == out.dtype:
            torch.index_select(tensors["qweight"], 0, ids, out=out)
        else:
            dequantize(PackedWeight.of(tensors, scheme).take(ids), out=out)


def _block_rows(inputs: int) -> int:
    """Rows of a matrix [N, inputs] that are dequantized at once."""
    return max(1, _BLOCK_ELEMENTS // inputs)
