"""bitsandbytes kernels: its fused nf4 and fp4 products and LLM.int8 on CPUs, its dequantization
on CPUs and CUDA devices, and its product with a single row on CUDA devices.

bitsandbytes keeps the even input in the high nibble, the canonical layout in the low one.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..codebooks import numbers
from ..float_product import linear, linear_scratch_bytes
from ..groupwise import dequantize
from ..library import library
from ..packing import PackedWeight, swap_nibbles
from ..scheme import Scheme
from .aten import finish
from .kernel import Shape, Tensors
from .reference import Reference

# LLM.int8 against the reference, in dB: activations are rounded to 8 bits, which leaves 40 to 43
# on Gaussian numbers.
INT8_ACTIVATIONS_FLOOR_DB = 36.0
# Columns of activations that reach this magnitude are multiplied in float (Dettmers et al. 2022,
# arXiv:2208.07339, and the default of bitsandbytes' integration in transformers).
OUTLIER = 6.0
# Numbers of one dequantized block of rows, or of outlier columns.
_BLOCK_ELEMENTS = 1 << 20
_TILE_OUTPUTS = 32  # outputs that the fused kernel's layout interleaves


class Fused4Bit:
    """nf4 and fp4 as ``Linear4bit`` runs them in ``.eval()``: in bfloat16, unpacked on the fly."""

    name = "bitsandbytes.fused4bit"
    backend = "bitsandbytes"

    def refusal(
        self, scheme: Scheme, shape: Shape, device: torch.device, lookup: bool
    ) -> str | None:
        if unfit := _unfit(scheme):
            return unfit
        if lookup:
            return "its layout cannot be read by rows"
        if shape[0] % _TILE_OUTPUTS:
            return f"needs a multiple of {_TILE_OUTPUTS} outputs, got {shape[0]}"
        return _not_a_cpu(device) or _missing() or _no_fused_kernel()

    def prepare(self, packed: PackedWeight) -> Tensors:
        assert packed.scales is not None
        outputs, inputs = packed.shape
        tiles = packed.qweight.view(-1, _TILE_OUTPUTS, inputs // 2).transpose(1, 2)
        even, odd = tiles & 15, tiles >> 4
        # Per input pair 32 outputs' two codes in turn; the first half of them in the low nibbles.
        codes = torch.stack([even, odd], dim=-1).view(-1, 2, _TILE_OUTPUTS)
        layout = (codes[:, 1] << 4) | codes[:, 0]
        return {
            "qweight": layout.view(outputs, inputs // 2),
            "scales": packed.scales.t().bfloat16().contiguous(),
        }

    def layout(self, scheme: Scheme, shape: Shape) -> Tensors:
        return self.prepare(PackedWeight.empty(shape, scheme, "meta"))

    def nbytes(self, scheme: Scheme, shape: Shape) -> int:
        outputs, inputs = shape
        return outputs * inputs // 2 + outputs * scheme.groups(inputs) * 2

    def prepare_bytes(self, scheme: Scheme, shape: Shape) -> int:
        codes = shape[0] * shape[1] // 2  # apart, side by side, shifted, and as one
        return 6 * codes + 2 * shape[0] * scheme.groups(shape[1]) * 2

    def scratch_bytes(self, scheme: Scheme, shape: Shape, rows: int) -> int:
        return rows * sum(shape) * 2

    def multiply(
        self, x: Tensor, tensors: Tensors, scheme: Scheme, bias: Tensor | None, out: Tensor
    ) -> None:
        assert scheme.codebook is not None and scheme.group_size is not None
        _library()
        product = torch.ops.bitsandbytes.gemv_4bit(
            x.bfloat16().contiguous(),
            tensors["qweight"],
            [out.shape[1], x.shape[1]],
            tensors["scales"],
            numbers(scheme.codebook, x.device),
            scheme.group_size,
        )
        finish(product, bias, out)

    def lookup(self, ids: Tensor, tensors: Tensors, scheme: Scheme, out: Tensor) -> None:
        raise AssertionError("refusal() rules lookups out")


class Dequantized4Bit(Reference):
    """nf4 and fp4 dequantized to the activations' dtype by bitsandbytes, a block of rows at a time.

    One row of activations on a CUDA device goes through its product that unpacks on the fly.
    """

    name = "bitsandbytes.4bit"
    backend = "bitsandbytes"

    def refusal(
        self, scheme: Scheme, shape: Shape, device: torch.device, lookup: bool
    ) -> str | None:
        if unfit := _unfit(scheme):
            return unfit
        if device.type not in ("cpu", "cuda"):
            return f"supports CPUs and CUDA devices, not {device}"
        return _missing()

    def prepare(self, packed: PackedWeight) -> Tensors:
        return packed.tensors() | {"qweight": swap_nibbles(packed.qweight)}

    def prepare_bytes(self, scheme: Scheme, shape: Shape) -> int:
        return 3 * (shape[0] * shape[1] // 2)  # the nibbles apart, and joined

    def scratch_bytes(self, scheme: Scheme, shape: Shape, rows: int) -> int:
        block = (min(_block(shape[1]), shape[0]), shape[1])
        scales = block[0] * scheme.groups(block[1]) * 4
        return block[0] * block[1] * 4 + scales + linear_scratch_bytes(block, rows)

    def multiply(
        self, x: Tensor, tensors: Tensors, scheme: Scheme, bias: Tensor | None, out: Tensor
    ) -> None:
        _library()
        codes, scales = tensors["qweight"], tensors["scales"]
        if x.is_cuda and len(x) == 1:
            assert scheme.codebook is not None and scheme.group_size is not None
            product = torch.ops.bitsandbytes.gemv_4bit(
                x.contiguous(), codes.view(-1, 1), [out.shape[1], x.shape[1]],
                scales.float().view(-1), numbers(scheme.codebook, x.device), scheme.group_size,
            )  # fmt: skip
            finish(product, bias, out)
            return
        step = _block(x.shape[1])
        for start in range(0, len(codes), step):
            rows = slice(start, min(start + step, len(codes)))
            weight = torch.ops.bitsandbytes.dequantize_4bit(
                codes[rows],
                scales[rows].float().view(-1),
                scheme.group_size,
                scheme.codebook,
                [rows.stop - start, x.shape[1]],
                x.dtype,
            )
            linear(x, weight, None if bias is None else bias[rows], out[:, rows])
            del weight  # before the next block is made

    def lookup(self, ids: Tensor, tensors: Tensors, scheme: Scheme, out: Tensor) -> None:
        taken = PackedWeight.of(tensors, scheme).take(ids)
        taken.qweight = swap_nibbles(taken.qweight)
        dequantize(taken, out=out)


class LlmInt8(Reference):
    """Int8 times activations rounded to int8 by row; outlier columns are multiplied in float."""

    name = "bitsandbytes.int8"
    backend = "bitsandbytes"

    def refusal(
        self, scheme: Scheme, shape: Shape, device: torch.device, lookup: bool
    ) -> str | None:
        if scheme != Scheme(8, scales=scheme.scales):
            return "supports only int8 with one scale per row and no zeros"
        if torch.backends.cpu.get_cpu_capability() != "AVX512":
            return "its int8 product is emulated without AVX512"
        return _not_a_cpu(device) or _missing()

    def scratch_bytes(self, scheme: Scheme, shape: Shape, rows: int) -> int:
        outputs, inputs = shape
        outliers = outputs * min(inputs, _block(outputs)) * 5
        return rows * (inputs * 16 + outputs * 16) + outputs * 8 + rows * 16 + outliers

    def multiply(
        self, x: Tensor, tensors: Tensors, scheme: Scheme, bias: Tensor | None, out: Tensor
    ) -> None:
        _library()
        codes, scales = tensors["qweight"], tensors["scales"].view(-1).float()
        usual = x.float()
        columns = (usual.abs().amax(0) >= OUTLIER).nonzero().view(-1)
        usual = usual.index_fill(1, columns, 0.0)
        rounded, largest, _ = torch.ops.bitsandbytes.int8_vectorwise_quant(usual)
        # The op divides by 127 once for either side.
        product = torch.ops.bitsandbytes.int8_scaled_mm(
            rounded, codes, largest, scales * 127, dtype=torch.float32
        )
        for some in columns.split(_block(len(codes))):
            part = x.index_select(1, some).float() @ codes.index_select(1, some).float().t()
            product.addcmul_(part, scales)
        finish(product, bias, out)


def _block(width: int) -> int:
    return max(1, _BLOCK_ELEMENTS // width)


@cache
def _no_fused_kernel() -> str | None:
    found = bool(_library().functional.has_avx512bf16())
    return None if found else "its fused kernel needs a CPU with AVX512-BF16"


def _unfit(scheme: Scheme) -> str | None:
    if scheme.codebook not in ("nf4", "fp4"):
        return "supports nf4 and fp4 only"
    if scheme.coded or scheme.group_size == 16:
        return "supports scales of float types in groups of 32 or more"
    return None


def _not_a_cpu(device: torch.device) -> str | None:
    return None if device.type == "cpu" else f"supports CPUs, not {device}"


def _missing() -> str | None:
    if library("bitsandbytes") is None:
        return "bitsandbytes is not installed; pip install bitsandbytes"
    return None


def _library() -> Any:
    found = library("bitsandbytes")
    assert found is not None, "refusal() has looked for the library"
    return found
