"""torchao kernels: int8 weights in its ``Int8Tensor``, as ``Int8WeightOnlyConfig`` makes it.

Every call converts all codes to the activations' dtype and applies the scales to the sums. The
tensors are the canonical ones, so rows can be read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..library import library
from ..scheme import Scheme
from .aten import finish
from .kernel import Shape, Tensors
from .reference import Reference

_MODULE = "torchao.quantization"


class TorchaoInt8(Reference):
    """Int8 with one scale per row, on every torch device."""

    name = "torchao.int8"
    backend = "torchao"

    def refusal(
        self, scheme: Scheme, shape: Shape, device: torch.device, lookup: bool
    ) -> str | None:
        if scheme != Scheme(8, scales=scheme.scales):
            return "supports only int8 with one scale per row and no zeros"
        if library(_MODULE) is None:
            return "torchao is not installed; pip install torchao"
        return None

    def scratch_bytes(self, scheme: Scheme, shape: Shape, rows: int) -> int:
        outputs, inputs = shape
        # The codes as float32 (or bfloat16, which ATen may copy to float32), sums, scaled sums.
        return outputs * inputs * 4 + outputs * 8 + rows * (outputs * 8 + inputs * 4)

    def multiply(
        self, x: Tensor, tensors: Tensors, scheme: Scheme, bias: Tensor | None, out: Tensor
    ) -> None:
        int8_tensor: Any = library(_MODULE).Int8Tensor  # type: ignore[union-attr]
        codes = tensors["qweight"]
        weight = int8_tensor(codes, tensors["scales"], [1, codes.shape[1]], x.dtype)
        finish(torch.nn.functional.linear(x, weight), bias, out)
