"""The canonical layout: round trips, views, and equality with GGUF's blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize as gguf_dequantize
from gguf.quants import quantize as gguf_quantize

from quant import PackedWeight, Scheme, dequantize
from quant.packing import pack_codes, unpack_codes

LAYOUTS = ("int4-g32", "int4-g64", "int4-g128", "int8", "int8-g32", "int8-g64", "int8-g128")
SCHEMES = [Scheme.parse(layout + zeros) for layout in LAYOUTS for zeros in ("", "-zint", "-zfloat")]
OUTPUTS, INPUTS = 61, 384


def random_packed(scheme: Scheme, shape: tuple[int, int] = (OUTPUTS, INPUTS)) -> PackedWeight:
    """A matrix of random bytes, with scales of both signs."""
    packed = PackedWeight.empty(shape, scheme)
    low, high = (0, 256) if scheme.bits == 4 else (-128, 128)
    packed.qweight.random_(low, high)
    assert packed.scales is not None
    packed.scales.normal_()
    if scheme.zeros == "float":
        assert packed.zeros is not None
        packed.zeros.normal_()
    elif packed.zeros is not None:
        packed.zeros.random_(scheme.code_range[0], scheme.code_range[1] + 1)
    return packed


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_survive_packing(bits: int) -> None:
    scheme = Scheme(bits, 32)
    first, last = scheme.code_range
    codes = torch.randint(first, last + 1, (OUTPUTS, INPUTS))
    qweight = pack_codes(codes, scheme)
    assert qweight.dtype == scheme.dtype
    assert torch.equal(unpack_codes(qweight, scheme, torch.empty_like(codes)), codes)


def test_even_inputs_lie_in_the_low_nibble() -> None:
    codes = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 15]])
    qweight = pack_codes(codes, Scheme(4, 32))
    assert qweight.tolist() == [[0x21, 0x43, 0x65, 0xF7]]
    # Read as compressed-tensors' little-endian words, input k is bits 4 k to 4 k + 3.
    assert qweight.numpy().view("<u4").tolist() == [[0xF7654321]]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_values_follow_the_written_formula(scheme: Scheme) -> None:
    packed = random_packed(scheme)
    codes = unpack_codes(packed.qweight, scheme, torch.empty(OUTPUTS, INPUTS))
    assert packed.scales is not None
    size = scheme.group_size or INPUTS
    expected = torch.empty(OUTPUTS, INPUTS)
    for k in range(INPUTS):
        scale = packed.scales[:, k // size].float()
        zero = torch.tensor(8.0 if scheme.bits == 4 else 0.0)
        if packed.zeros is not None:
            zero = packed.zeros[:, k // size].float()
        is_minimum = scheme.zeros == "float"
        expected[:, k] = codes[:, k] * scale + zero if is_minimum else (codes[:, k] - zero) * scale
    assert torch.equal(dequantize(packed), expected)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_rows_and_dtypes_agree_with_the_whole(scheme: Scheme) -> None:
    packed = random_packed(scheme)
    whole = dequantize(packed)
    assert torch.equal(dequantize(packed.rows(7, 20)), whole[7:20])
    ids = torch.tensor([60, 0, 60])
    assert torch.equal(dequantize(packed.take(ids)), whole[ids])
    assert torch.equal(dequantize(packed, dtype=torch.bfloat16), whole.bfloat16())
    wide = torch.zeros(OUTPUTS, INPUTS + 5)
    dequantize(packed, out=wide[:, 3:-2])
    assert torch.equal(wide[:, 3:-2], whole)
    assert not wide[:, :3].any() and not wide[:, -2:].any()


def test_rows_is_a_view_and_copy_rows_fills_it() -> None:
    scheme = Scheme.parse("int4-g32-zint")
    source, target = random_packed(scheme), PackedWeight.empty((OUTPUTS, INPUTS), scheme)
    target.copy_rows_(0, source.rows(0, 33))
    target.copy_rows_(33, source.rows(33, OUTPUTS))
    for name, tensor in source.tensors().items():
        assert torch.equal(target.tensors()[name], tensor)
    assert target.rows(5, 9).qweight.data_ptr() == target.qweight[5:].data_ptr()


def from_blocks(raw: np.ndarray, kind: GGMLQuantizationType) -> PackedWeight:
    """GGUF blocks [N, bytes] -> canonical; Q4 blocks keep inputs 0-15 in low, 16-31 in high."""
    heads = {
        GGMLQuantizationType.Q4_0: ("int4-g32", 2),
        GGMLQuantizationType.Q4_1: ("int4-g32-zfloat", 4),
        GGMLQuantizationType.Q8_0: ("int8-g32", 2),
    }
    text, head = heads[kind]
    scheme = Scheme.parse(text)
    size = head + (16 if scheme.bits == 4 else 32)
    blocks = raw.reshape(raw.shape[0], -1, size)
    floats = torch.from_numpy(blocks[..., :head].copy().view(np.float16))
    body = torch.from_numpy(blocks[..., head:].copy())
    codes = torch.cat([body & 15, body >> 4], -1) if scheme.bits == 4 else body.view(torch.int8)
    shape = (codes.shape[0], codes.shape[1] * 32)
    qweight = pack_codes(codes.reshape(shape), scheme)
    zeros = floats[..., 1] if head == 4 else None
    return PackedWeight(scheme, shape, qweight, floats[..., 0], zeros)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_gguf_blocks_have_exactly_these_values(kind: str) -> None:
    quant_type = GGMLQuantizationType[kind]
    weights = torch.randn(OUTPUTS, INPUTS).numpy()
    raw = gguf_quantize(weights, quant_type)
    packed = from_blocks(raw, quant_type)
    assert packed.nbytes == raw.nbytes
    difference = np.abs(dequantize(packed).numpy() - gguf_dequantize(raw, quant_type)).max()
    print(f"{kind}: largest difference {difference}")
    assert difference == 0
