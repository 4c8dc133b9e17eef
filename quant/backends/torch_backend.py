"""Kernels on ATen's products, each used where it was measured to be fast.

The packed ones round activations to bfloat16, sum in float32, and return bfloat16 (their float32
forms have no vector code: 5 to 75 times slower). Their layouts belong to one machine: they are
made at load and never stored. benches/LOG.md has the timings behind every choice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..float_product import linear, linear_scratch_bytes
from ..packing import PackedWeight, swap_nibbles, unpack_codes
from ..scheme import Scheme
from .aten import finish, has_bfloat16, no_vector_code
from .kernel import Shape, Tensors
from .reference import Reference

# Codes unpacked to int32 at once while a layout is made: 4 MiB.
_BLOCK_ELEMENTS = 1 << 20
# Maximum number of outputs that ATen's int4 layouts interleave; blocks of that size pack alone.
_TILE_ROWS = 64
_GROUP_SIZES = (32, 64, 128)  # of ATen's int4 products


class TorchMatmul(Reference):
    """Float weights through torch.mm; bfloat16 weights take float32 activations rounded."""

    name = "torch.mm"
    backend = "torch"

    def refusal(
        self, scheme: Scheme, shape: Shape, device: torch.device, lookup: bool
    ) -> str | None:
        if scheme.codebook not in ("float32", "bfloat16"):
            return "supports float32 and bfloat16 only"
        if scheme.codebook == "bfloat16" and device.type == "cpu" and not has_bfloat16():
            return "bfloat16 products are slow on this CPU (no AVX512-BF16)"
        return None

    def scratch_bytes(self, scheme: Scheme, shape: Shape, rows: int) -> int:
        return linear_scratch_bytes(shape, rows)

    def multiply(
        self, x: Tensor, tensors: Tensors, scheme: Scheme, bias: Tensor | None, out: Tensor
    ) -> None:
        weight = tensors["qweight"]
        if x.dtype == weight.dtype:
            linear(x, weight, bias, out)
        else:
            finish(torch.mm(x.to(weight.dtype), weight.t()), bias, out)


class Int4Pack:
    """Int4 in groups through aten::_weight_int4pack_mm_for_cpu.

    A weight is (q - 8) * scale + zero, which every kind of zeros maps to; scale and zero are
    bfloat16 [G, N, 2]. Rows cannot be read back, so embeddings and tied heads go elsewhere.
    """

    name = "torch.int4pack"
    backend = "torch"
    outputs_step = 16

    def refusal(
        self, scheme: Scheme, shape: Shape, device: torch.device, lookup: bool
    ) -> str | None:
        return self._unfit(scheme, shape, lookup) or self._missing(device)

    def _unfit(self, scheme: Scheme, shape: Shape, lookup: bool) -> str | None:
        if scheme.bits != 4 or scheme.codebook is not None:
            return "supports int4 only"
        if lookup:
            return "its layout cannot be read by rows"
        if shape[0] % self.outputs_step:
            return f"needs a multiple of {self.outputs_step} outputs, got {shape[0]}"
        if scheme.group_size == 16:
            return "needs groups of 32 or more"
        if shape[1] % _GROUP_SIZES[0]:
            return f"needs a multiple of {_GROUP_SIZES[0]} inputs, got {shape[1]}"
        return None

    def _missing(self, device: torch.device) -> str | None:
        return no_vector_code(device)

    def prepare(self, packed: PackedWeight) -> Tensors:
        outputs, inputs = packed.shape
        layout = torch.empty(outputs, inputs // 2, dtype=torch.uint8)
        step = max(1, _BLOCK_ELEMENTS // inputs // _TILE_ROWS) * _TILE_ROWS
        for start in range(0, outputs, step):
            part = packed.rows(start, min(start + step, outputs))
            codes = torch.empty(part.shape, dtype=torch.int32)
            unpack_codes(part.qweight, part.scheme, codes)
            layout[start : start + step] = torch.ops.aten._convert_weight_to_int4pack_for_cpu(
                codes, 1
            )
        return {"qweight": layout, "scales_and_zeros": _scales_and_zeros(packed)}

    def layout(self, scheme: Scheme, shape: Shape) -> Tensors:
        outputs, inputs = shape
        codes = torch.empty(outputs, inputs // 2, dtype=torch.uint8, device="meta")
        packed = PackedWeight.empty(shape, scheme, "meta")
        return {"qweight": codes, "scales_and_zeros": _scales_and_zeros(packed)}

    def nbytes(self, scheme: Scheme, shape: Shape) -> int:
        outputs, inputs = shape
        return outputs * inputs // 2 + outputs * (inputs // _group_size(scheme, inputs)) * 4

    def prepare_bytes(self, scheme: Scheme, shape: Shape) -> int:
        # int32 codes, their tiles; of each group scale and zero in float32, apart and as a pair,
        # and the pair in bfloat16 twice.
        groups = shape[0] * (shape[1] // _group_size(scheme, shape[1]))
        return self.nbytes(scheme, shape) + 8 * _BLOCK_ELEMENTS + groups * 24

    def scratch_bytes(self, scheme: Scheme, shape: Shape, rows: int) -> int:
        return rows * sum(shape) * 2

    def multiply(
        self, x: Tensor, tensors: Tensors, scheme: Scheme, bias: Tensor | None, out: Tensor
    ) -> None:
        product = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x.bfloat16().contiguous(),
            tensors["qweight"],
            _group_size(scheme, x.shape[1]),
            tensors["scales_and_zeros"],
        )
        finish(product, bias, out)

    def lookup(self, ids: Tensor, tensors: Tensors, scheme: Scheme, out: Tensor) -> None:
        raise AssertionError("refusal() rules lookups out")


class Int4Tile(Int4Pack):
    """Int4 in groups on CUDA devices, in tensor-core tiles (torchao's tile-packed int4).

    Weights have the same form as in ``Int4Pack``; activations and results are bfloat16.
    """

    name = "torch.int4tile"
    outputs_step = 8

    def _missing(self, device: torch.device) -> str | None:
        if device.type != "cuda" or torch.version.cuda is None:
            return f"runs on NVIDIA CUDA devices, not on {device}"
        return None if torch.cuda.get_device_capability(device) >= (8, 0) else "needs Ampere"

    def prepare(self, packed: PackedWeight) -> Tensors:
        codes, inputs = swap_nibbles(packed.qweight), packed.shape[1]
        tiles = next(count for count in (8, 4, 2) if inputs % (count * 16) == 0)
        layout = torch.ops.aten._convert_weight_to_int4pack(codes, tiles)
        return {"qweight": layout, "scales_and_zeros": _scales_and_zeros(packed)}

    def layout(self, scheme: Scheme, shape: Shape) -> Tensors:
        return self.prepare(PackedWeight.empty(shape, scheme, "meta"))

    def prepare_bytes(self, scheme: Scheme, shape: Shape) -> int:
        groups = shape[0] * (shape[1] // _group_size(scheme, shape[1]))
        return self.nbytes(scheme, shape) + shape[0] * shape[1] * 3 // 2 + groups * 24

    def multiply(
        self, x: Tensor, tensors: Tensors, scheme: Scheme, bias: Tensor | None, out: Tensor
    ) -> None:
        group = _group_size(scheme, x.shape[1])
        own = (tensors["qweight"], group, tensors["scales_and_zeros"])
        finish(torch.ops.aten._weight_int4pack_mm(x.bfloat16().contiguous(), *own), bias, out)


def _group_size(scheme: Scheme, inputs: int) -> int:
    """Group size for the op: the scheme's, or the largest that divides a row with one scale."""
    return scheme.group_size or max(size for size in _GROUP_SIZES if inputs % size == 0)


def _scales_and_zeros(packed: PackedWeight) -> Tensor:
    """bfloat16 [G, N, 2]: scale, and the value of code 8; a row's one scale is repeated."""
    scales = packed.grid.steps()
    if packed.zeros is None:
        middle = torch.zeros_like(scales)
    elif packed.scheme.zeros == "int":
        middle = (8 - packed.zeros.float()) * scales
    else:
        middle = packed.grid.minima() + 8 * scales
    groups = packed.shape[1] // _group_size(packed.scheme, packed.shape[1])
    pair = torch.stack([scales.t(), middle.t()], dim=-1).bfloat16()
    return pair.expand(groups, -1, -1).contiguous()
