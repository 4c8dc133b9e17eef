"""Modules over packed matrices."""

from __future__ import annotations

import pytest
import torch

from quant import QuantEmbedding, QuantLinear, Scheme, choose, dequantize, find, pack

SHAPE = (96, 64)


@pytest.mark.parametrize("text", ["int4-g32", "int8", "int8-g32", "float32"])
def test_linear_is_its_kernel_over_named_buffers(text: str) -> None:
    scheme = Scheme.parse(text)
    packed, _ = pack([(0, torch.randn(SHAPE))], SHAPE, scheme)
    kernel = choose(scheme, SHAPE, "cpu")
    bias = torch.randn(SHAPE[0])
    linear = QuantLinear(packed, kernel, bias)
    x, wide = torch.randn(5, 64), torch.zeros(5, 100)
    out = linear(x, wide[:, 2:98])
    assert out.data_ptr() == wide[:, 2:].data_ptr()
    expected = torch.empty(5, 96)
    kernel.multiply(x, kernel.prepare(packed), scheme, bias, expected)
    assert torch.equal(out, expected)
    assert set(linear.state_dict()) == {*kernel.prepare(packed), "bias"}
    assert not list(linear.parameters())
    assert linear.nbytes == kernel.nbytes(scheme, SHAPE) + bias.nbytes
    assert (linear.scheme, linear.shape, linear.kernel) == (scheme, SHAPE, kernel)
    assert kernel.name in repr(linear) and text in repr(linear)


@pytest.mark.parametrize("text", ["int4-g32", "int8", "int8-g32", "bfloat16"])
def test_a_tied_head_is_stored_once(text: str) -> None:
    scheme = Scheme.parse(text)
    packed, _ = pack([(0, torch.randn(SHAPE))], SHAPE, scheme)
    embedding = QuantEmbedding(packed, choose(scheme, SHAPE, "cpu", lookup=True))
    head = embedding.as_linear()
    assert head.tensors.keys() == embedding.tensors.keys()
    for name, tensor in embedding.tensors.items():
        assert head.tensors[name].data_ptr() == tensor.data_ptr()
    ids = torch.tensor([95, 0, 3])
    rows = embedding(ids, torch.empty(3, 64))
    assert torch.equal(rows, dequantize(packed)[ids])
    logits = head(rows, torch.empty(3, 96))
    expected = rows @ dequantize(packed).t()
    assert float((logits - expected).abs().max()) < 0.02 * float(expected.abs().max())


def test_a_prepared_layout_is_taken_as_it_is() -> None:
    scheme = Scheme.parse("int8-g32")
    packed, _ = pack([(0, torch.randn(SHAPE))], SHAPE, scheme)
    kernel = find("reference")
    tensors = kernel.prepare(packed)
    linear = QuantLinear((tensors, scheme, SHAPE), kernel)
    assert linear.tensors["qweight"] is tensors["qweight"]
    assert linear.nbytes == packed.nbytes
