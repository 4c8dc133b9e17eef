"""Layouts foretold: types and shapes of what a kernel prepares, known without a weight."""

from __future__ import annotations

import pytest
import torch

from quant import PackedWeight, Scheme
from quant.backends import KERNELS, Kernel
from quant.triton import layout as triton_layout

SCHEMES = (
    *(
        "int4-g32",
        "int4-g64",
        "int4-g128",
        "int4-g32-zint",
        "int4-g32-zfloat",
        "int4-g32-sbfloat16",
    ),
    *("int8", "int8-g32", "int8-zint", "nf4", "nf4-g32", "fp4", "float32", "bfloat16", "float16"),
    *("int5-g32", "int6-row", "int6-g16-coded", "int4-g32-zfloat-coded", "iq4-g32-coded"),
)
SHAPES = ((256, 1024), (48, 256), (33, 96))


def told(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[torch.dtype, torch.Size]]:
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def zeros(shape: tuple[int, int], scheme: Scheme) -> PackedWeight:
    packed = PackedWeight.empty(shape, scheme)
    for tensor in packed.tensors().values():
        tensor.zero_()
    return packed


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_a_layout_is_what_is_prepared(kernel: Kernel) -> None:
    cases = 0
    for text in SCHEMES:
        scheme = Scheme.parse(text)
        for shape in SHAPES:
            if shape[1] % (scheme.group_size or 1) or (scheme.bits == 4 and shape[1] % 2):
                continue
            if kernel.refusal(scheme, shape, torch.device("cpu"), False) is None:
                foretold = kernel.layout(scheme, shape)
                assert all(tensor.is_meta for tensor in foretold.values())
                assert told(foretold) == told(kernel.prepare(zeros(shape, scheme))), (text, shape)
                nbytes = sum(tensor.nbytes for tensor in foretold.values())
                assert nbytes == kernel.nbytes(scheme, shape), (text, shape)
                cases += 1
    if not cases:
        pytest.skip(f"{kernel.name} does not run here")


@pytest.mark.parametrize("text", SCHEMES)
def test_a_layout_for_cards_is_what_is_prepared(text: str) -> None:
    scheme = Scheme.parse(text)
    if scheme.is_float:
        return
    for shape in SHAPES:
        if shape[1] % (scheme.group_size or 1) == 0:
            made = triton_layout.laid_out(zeros(shape, scheme))
            assert told(triton_layout.empty(scheme, shape)) == told(made)
