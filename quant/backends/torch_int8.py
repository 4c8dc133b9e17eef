"""Symmetric int8 on CPUs through ATen, in layouts whose rows can be read: one copy of an
embedding also serves as its tied head.

Few rows of activations go through aten::_weight_int8pack_mm. More rows are multiplied with blocks
of the matrix converted to the dtype that this CPU multiplies fastest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..groupwise import dequantize
from ..packing import PackedWeight
from ..scheme import Scheme
from .aten import finish, has_bfloat16, no_vector_code
from .kernel import Shape, Tensors
from .reference import Reference

# Number of rows of activations from which blocks beat the int8 product, by row or by group.
_BLOCKWISE_ROWS = 16
_BLOCKWISE_ROWS_GROUPED = 8
# A call per group does not pay for fewer outputs than this.
_GROUPWISE_OUTPUTS = 1024
# Numbers of one block, 4 MiB in bfloat16: fewer make products too small, more leave the caches.
_BLOCK_ELEMENTS = 1 << 21


class Int8Rows(Reference):
    """Int8 with one scale per row: the canonical tensors.

    The scales are applied to the sums, so blocks hold bare codes, which bfloat16 holds exactly.
    """

    name = "torch.int8pack"
    backend = "torch"

    def refusal(
        self, scheme: Scheme, shape: Shape, device: torch.device, lookup: bool
    ) -> str | None:
        if scheme != Scheme(8, scales=scheme.scales):
            return "supports only int8 with one scale per row and no zeros"
        if shape[1] % 32:
            # The op reads whole vectors, past the end of a row that does not fill them.
            return f"needs a multiple of 32 inputs, got {shape[1]}"
        return no_vector_code(device)

    def scratch_bytes(self, scheme: Scheme, shape: Shape, rows: int) -> int:
        return _scratch_bytes(shape, rows)

    def multiply(
        self, x: Tensor, tensors: Tensors, scheme: Scheme, bias: Tensor | None, out: Tensor
    ) -> None:
        codes, scales = tensors["qweight"], tensors["scales"].view(-1).float()
        if x.shape[0] < _BLOCKWISE_ROWS:
            sums = torch.ops.aten._weight_int8pack_mm(
                x.bfloat16().contiguous(), codes, _ones(len(codes))
            )
            torch.mul(sums, scales, out=out)
        else:

            def fill(block: Tensor, start: int, stop: int) -> None:
                block.copy_(codes[start:stop])

            for start, stop, sums in _block_products(x, len(codes), fill):
                torch.mul(sums, scales[start:stop], out=out[:, start:stop])
        if bias is not None:
            out.add_(bias)


class Int8Groups:
    """Int8 with one scale per group: group-major codes [G, N, g] and scales [G, N].

    Each group of inputs is then an int8 matrix with a scale per row, as the op wants it.
    """

    name = "torch.int8groups"
    backend = "torch"

    def refusal(
        self, scheme: Scheme, shape: Shape, device: torch.device, lookup: bool
    ) -> str | None:
        plain = scheme.zeros == "none" and not scheme.coded
        if scheme.bits != 8 or scheme.group_size is None or not plain:
            return "supports only int8 in groups without zeros, with scales of float types"
        return no_vector_code(device)

    def prepare(self, packed: PackedWeight) -> Tensors:
        assert packed.scales is not None
        outputs, groups = packed.scales.shape
        codes = packed.qweight.view(outputs, groups, -1).transpose(0, 1)
        return {"qweight": codes.contiguous(), "scales": packed.scales.t().contiguous()}

    def layout(self, scheme: Scheme, shape: Shape) -> Tensors:
        return self.prepare(PackedWeight.empty(shape, scheme, "meta"))

    def nbytes(self, scheme: Scheme, shape: Shape) -> int:
        return scheme.nbytes(shape)

    def prepare_bytes(self, scheme: Scheme, shape: Shape) -> int:
        return self.nbytes(scheme, shape)

    def scratch_bytes(self, scheme: Scheme, shape: Shape, rows: int) -> int:
        return _scratch_bytes(shape, rows)

    def multiply(
        self, x: Tensor, tensors: Tensors, scheme: Scheme, bias: Tensor | None, out: Tensor
    ) -> None:
        codes, scales = tensors["qweight"], tensors["scales"]
        groups, outputs, _ = codes.shape
        if x.shape[0] < _BLOCKWISE_ROWS_GROUPED and outputs >= _GROUPWISE_OUTPUTS:
            parts = x.bfloat16().reshape(len(x), groups, -1).transpose(0, 1).contiguous()
            total = torch.zeros(out.shape, dtype=torch.float32)
            ones = _ones(outputs)
            for part, group, scale in zip(parts, codes, scales, strict=True):
                total.addcmul_(torch.ops.aten._weight_int8pack_mm(part, group, ones), scale)
            finish(total, bias, out)
            return

        def fill(block: Tensor, start: int, stop: int) -> None:
            weights = block.view(stop - start, groups, -1)
            weights.copy_(codes[:, start:stop].transpose(0, 1))
            weights.mul_(scales[:, start:stop].t().unsqueeze(-1).to(block.dtype))

        for start, stop, product in _block_products(x, outputs, fill):
            finish(product, None if bias is None else bias[start:stop], out[:, start:stop])

    def lookup(self, ids: Tensor, tensors: Tensors, scheme: Scheme, out: Tensor) -> None:
        codes = tensors["qweight"].index_select(1, ids).transpose(0, 1).reshape(out.shape)
        scales = tensors["scales"].index_select(1, ids).t()
        shape = (codes.shape[0], codes.shape[1])
        dequantize(PackedWeight(scheme, shape, codes, scales), out=out)


def _block_products(
    x: Tensor, outputs: int, fill: Callable[[Tensor, int, int], None]
) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (start, stop, x [M, K] times rows [start, stop) of a matrix), by blocks of its rows.

    fill(block, start, stop) writes those rows as numbers.
    """
    x = x.to(_block_dtype())
    step = min(_block_rows(x.shape[1]), outputs)
    buffer = torch.empty(step, x.shape[1], dtype=x.dtype)
    for start in range(0, outputs, step):
        stop = min(start + step, outputs)
        block = buffer[: stop - start]
        fill(block, start, stop)
        yield start, stop, torch.mm(x, block.t())


def _block_dtype() -> torch.dtype:
    return torch.bfloat16 if has_bfloat16() else torch.float32


def _block_rows(inputs: int) -> int:
    return max(1, _BLOCK_ELEMENTS // inputs)


def _ones(outputs: int) -> Tensor:
    # The op takes scales in bfloat16 only; the stored ones are applied afterwards, unrounded.
    return torch.ones(outputs, dtype=torch.bfloat16)


def _scratch_bytes(shape: Shape, rows: int) -> int:
    """Bytes of the op's product or of the product by blocks, whichever is larger."""
    outputs, inputs = shape
    # Activations twice, ones, one product in bfloat16 and the total in float32.
    few = min(rows, _BLOCKWISE_ROWS)
    by_op = few * (inputs * 4 + outputs * 6) + outputs * 2
    row_scales = outputs * 4
    # Activations, a block with its scales, and two blocks' products: one is still held while the
    # next is made.
    block = min(_block_rows(inputs), outputs)
    by_blocks = (rows * inputs + 2 * block * inputs + 2 * rows * block) * _block_dtype().itemsize
    return row_scales + max(by_op, by_blocks)
