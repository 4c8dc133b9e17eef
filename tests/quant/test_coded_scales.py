"""Codes of scales, codes of 5 and 6 bits, and iq4's table: what is stored is what was chosen."""

from __future__ import annotations

from dataclasses import replace

import gguf
import pytest
import torch

from quant import PackedWeight, QuantError, Scheme, dequantize, pack
from quant.codebooks import CODEBOOKS
from quant.groupwise import quantize
from quant.methods.mse import best_grid
from quant.packing import pack_codes, unpack_codes
from quant.scale_codes import encode
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


@pytest.mark.parametrize(
    ("bits", "byte", "value"), [(5, 64 + 41 // 8, 1 << 41 % 8), (6, 64 + 10, 3 << 2)]
)
def test_upper_bits_lie_where_the_layout_says(bits: int, byte: int, value: int) -> None:
    codes = torch.zeros(1, 128, dtype=torch.int64)
    codes[0, 41] = 2**bits - 16
    stored = pack_codes(codes, Scheme(bits, 32))
    assert stored.nonzero().tolist() == [[0, byte]] and int(stored[0, byte]) == value


@pytest.mark.parametrize("text", CODED)
def test_a_scale_is_its_code_times_its_super_scale(text: str) -> None:
    """Blocks of 256 inputs, or the whole row, have a super-scale each."""
    scheme = Scheme.parse(text)
    for inputs, blocks in ((512, 2), (384, 1)):
        packed, _ = pack([(0, weights(4, inputs))], (4, inputs), scheme, "mse")
        assert packed.scales is not None and packed.supers is not None
        assert packed.supers.shape == (4, blocks, scheme.super_parts)
        assert scheme.scale_codes[0] <= int(packed.scales.min())
        assert int(packed.scales.max()) <= scheme.scale_codes[1]
        groups = scheme.groups(inputs)
        for group in range(groups):
            factor = packed.supers[:, group * blocks // groups].double()
            expected = packed.scales[:, group].double() * factor[:, 0]
            assert torch.equal(packed.grid.steps()[:, group], expected.float())
            if scheme.zeros == "float":
                assert packed.zeros is not None
                expected = packed.zeros[:, group].double() * factor[:, 1]
                assert torch.equal(packed.grid.minima()[:, group], expected.float())


@pytest.mark.parametrize("text", ERRORS)
def test_errors_of_gaussian_weights(text: str) -> None:
    values, scheme = weights(), Scheme.parse(text)
    errors = {
        method: squared_error(pack([(0, values)], (64, 512), scheme, method)[0], values)
        for method in ("rtn", "mse", "hqq")
    }
    print(text, {method: round(error, 3) for method, error in errors.items()})
    assert errors["rtn"] < ERRORS[text][0] and errors["mse"] < ERRORS[text][1]
    assert errors["mse"] < errors["hqq"] < errors["rtn"]


@pytest.mark.parametrize("text", ["q4_k", "iq4_xs"])
def test_neighbours_of_a_scale_code_are_tried(text: str) -> None:
    """Rounding a scale to its code alone is not always the best."""
    values, scheme = weights(), Scheme.parse(text)
    floats = best_grid(values, replace(scheme, coded=False, scales="float32"))
    rounded = squared_error(quantize(values, encode(floats, scheme), scheme), values)
    searched = squared_error(quantize(values, best_grid(values, scheme), scheme), values)
    print(f"{rounded:.4f} {searched:.4f}")
    assert searched < rounded


@pytest.mark.parametrize("text", CODED)
@pytest.mark.parametrize("method", ["rtn", "mse", "hqq"])
def test_groups_of_all_sorts(text: str, method: str) -> None:
    """Zeros, one sign only, one large number: finite, and no group is worse than zeros would be."""
    scheme = Scheme.parse(text)
    values = weights(6, 256)
    values[0] = 0
    values[1, :128] = 0
    values[2].abs_().add_(0.1)
    values[3].abs_().neg_()
    values[4, 7] = 100.0
    values[5] *= 1e-2
    packed, _ = pack([(0, values)], (6, 256), scheme, method)
    found = dequantize(packed)
    assert bool(torch.isfinite(found).all()) and not found[0].any() and not found[1, :128].any()
    errors = (found - values).square().sum(1)
    assert bool((errors[[1, 2, 3]] < 0.3 * values[[1, 2, 3]].square().sum(1)).all()), errors
    assert bool((errors <= 1.01 * values.square().sum(1)).all())


def test_codes_of_scales_are_those_of_gguf() -> None:
    """What is quantized here can be written as GGUF's type of the same name."""
    allowed = {text: Scheme.parse(text).scale_codes for text in ("q4_k", "q5_k", "q6_k", "iq4_xs")}
    assert allowed == {"q4_k": (0, 63), "q5_k": (0, 63), "q6_k": (-127, 127), "iq4_xs": (-32, 31)}


@pytest.mark.parametrize("name", GGUF_NAMES)
def test_names_of_gguf(name: str) -> None:
    scheme = Scheme.parse(name)
    assert str(scheme) == GGUF_NAMES[name] and Scheme.parse(str(scheme)) == scheme
    kind = gguf.GGMLQuantizationType[name.upper()]
    assert scheme.codebook == ("iq4" if name.startswith("iq4") else None)
    assert kind in gguf.GGML_QUANT_SIZES


def test_the_table_is_that_of_gguf() -> None:
    assert CODEBOOKS["iq4"] == tuple(float(x) for x in gguf.quants.IQ4_NL.kvalues)


@pytest.mark.parametrize(
    "fields",
    [
        {"bits": 4, "coded": True}, {"bits": 7, "group_size": 32},
        {"bits": 5, "group_size": 32, "codebook": "iq4"},
        {"bits": 16, "codebook": "float16", "coded": True},
    ],
)  # fmt: skip
def test_combinations_without_a_layout(fields: dict) -> None:
    with pytest.raises(QuantError, match="no layout for"):
        Scheme(**fields)


def test_super_scales_beyond_their_type() -> None:
    with pytest.raises(QuantError, match=r"super-scale of .* is beyond float16"):
        pack([(0, weights() * 1e12)], (64, 512), Scheme.parse("q6_k"))


@pytest.mark.parametrize(("text", "inputs"), [("int5-row", 12), ("int6-row", 6), ("q4_k", 48)])
def test_rows_that_do_not_fit(text: str, inputs: int) -> None:
    with pytest.raises(QuantError, match="needs a row length divisible by"):
        Scheme.parse(text).nbytes((4, inputs))
