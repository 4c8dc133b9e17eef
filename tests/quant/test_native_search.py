"""Quantizing in the native library: the bits of torch's rtn and mse, for every scheme."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from instruction_sets import in_use
from torch import Tensor

from quant import PackedWeight, QuantError, Scheme, Sqnr, dequantize, native, pack
from quant.methods import METHODS
from quant.methods.natively import NATIVE_METHODS, quantize_natively

SCHEMES = [
    "int4-g16-zint", "int4-g32", "int4-g64-zint", "int4-g128-zfloat", "int4-row", "int4-row-zint",
    "int4-g32-sfloat32", "int5-g32", "int5-g64-zfloat", "int5-row-zfloat", "int6-g16",
    "int6-g32-zint", "int6-g128-sbfloat16", "int8", "int8-zint", "int8-g16-zfloat", "int8-g64",
    "int8-g128-zint", "nf4", "nf4-g128", "fp4", "iq4-g32", "iq4-g128-sbfloat16", "int4-g32-coded",
    "int4-g32-zint-coded", "q4_k", "q5_k", "q6_k", "iq4_xs", "int5-g32-coded", "nf4-coded",
    "int6-g32-coded", "int8-g128-coded", "int4-g64-zfloat-coded-sbfloat16",
]  # fmt: skip
# Bundles of groups that are full and not, super-scales per 256 inputs and per row.
SHAPES = ((3, 512), (7, 128), (1, 896))
# Sums of errors run in another order than torch's.
ERROR_ROUNDING = 1e-5

pytestmark = pytest.mark.skipif(
    native.missing() is not None, reason=f"no native library: {native.missing()}"
)


@pytest.fixture(params=("generic", "avx2"))
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both loops that there are, where this CPU has them."""
    yield from in_use(request.param)


def natively(weights: Tensor, scheme: Scheme, method: str) -> tuple[PackedWeight, float, float]:
    packed = PackedWeight.empty((weights.shape[0], weights.shape[1]), scheme)
    sums = quantize_natively(weights, packed, method)
    assert sums is not None
    return packed, *sums


def check(weights: Tensor, text: str, method: str) -> None:
    """The library's bits are torch's, and its sums those of what it made."""
    scheme = Scheme.parse(text)
    expected = METHODS[method](weights, scheme)
    found, signal, noise = natively(weights, scheme, method)
    for name, tensor in expected.tensors().items():
        other = int((tensor != found.tensors()[name]).sum())
        assert not other, f"{text} {method} {list(weights.shape)}: {other} of {name} differ"
    exact = Sqnr()
    exact.add(weights.double(), dequantize(found).double())
    assert signal == pytest.approx(exact.signal, rel=ERROR_ROUNDING)
    assert noise == pytest.approx(exact.noise, rel=ERROR_ROUNDING)


def random(shape: tuple[int, int], seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02


@pytest.mark.parametrize("text", SCHEMES)
@pytest.mark.parametrize("method", NATIVE_METHODS)
def test_same_bits_as_torch(isa: str, text: str, method: str) -> None:
    for seed, shape in enumerate(SHAPES):
        check(random(shape, seed), text, method)


@pytest.mark.parametrize("text", SCHEMES)
@pytest.mark.parametrize("method", NATIVE_METHODS)
def test_odd_rows(isa: str, text: str, method: str) -> None:
    """Zeros, one number, two numbers, one sign, tiny and large numbers, a number far out."""
    weights = random((9, 256))
    weights[0] = 0
    weights[1] = 0.37
    weights[2] = weights[2].sign()
    weights[3] = weights[3].abs() + 0.1
    weights[4] *= 1e-6
    weights[5] *= 1e-30
    weights[6, 40:120] = 0
    weights[7] *= 1e4
    weights[8, 100] = -30
    check(weights, text, method)


@pytest.mark.parametrize(
    "text", ["int8-sfloat32", "int4-g32-zfloat-sfloat32", "int6-g16-sbfloat16"]
)
@pytest.mark.parametrize("size", [1e-40, 1e18, 1e30])
def test_numbers_at_the_ends_of_float32(isa: str, text: str, size: float) -> None:
    """Squares beyond float32 leave round-to-nearest's grid; tiny steps have no inverse."""
    weights, scheme = random((4, 256)) * 50 * size, Scheme.parse(text)
    for method in NATIVE_METHODS:
        found, _, _ = natively(weights, scheme, method)
        for name, tensor in METHODS[method](weights, scheme).tensors().items():
            assert torch.equal(tensor, found.tensors()[name])


@pytest.mark.parametrize("inputs", [16, 24, 40, 520, 1032])
@pytest.mark.parametrize("text", ["int4-row", "int5-row-zfloat", "int8-zint", "int8"])
def test_one_group_per_row_of_any_length(isa: str, text: str, inputs: int) -> None:
    for method in NATIVE_METHODS:
        check(random((21, inputs)), text, method)


@pytest.mark.parametrize("text", ["int4-g16", "int8-g16-zint", "int6-g16-coded", "iq4-g16"])
def test_rows_of_sixteen_inputs(isa: str, text: str) -> None:
    for method in NATIVE_METHODS:
        check(random((35, 16)), text, method)


@pytest.mark.parametrize("method", NATIVE_METHODS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 31, 255])
def test_numbers_that_are_not_finite_are_refused(method: str, bad: float, place: int) -> None:
    for text in ("int4-g32", "q4_k", "nf4", "int8", "int8-zint"):
        weights, scheme = random((20, 256)), Scheme.parse(text)
        weights[13, place] = bad
        packed = PackedWeight.empty((20, 256), scheme)
        assert quantize_natively(weights, packed, method) is None
        with pytest.raises(QuantError, match="NaN, infinite"):
            pack([(0, weights)], (20, 256), scheme, method)


@pytest.mark.parametrize("method", NATIVE_METHODS)
@pytest.mark.parametrize("text", ["int4-g32", "int8-zfloat", "q6_k", "q4_k"])
def test_scales_beyond_float16_are_refused(method: str, text: str) -> None:
    weights, scheme = random((3, 256)), Scheme.parse(text)
    weights[2, 5] = 3e9
    with pytest.raises(QuantError, match=r"e\+0\d is beyond float16"):
        pack([(0, weights)], (3, 256), scheme, method)


def test_threads_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, scheme = random((200, 512)), Scheme.parse("q4_k")
    alone = natively(weights, scheme, "mse")
    monkeypatch.setattr("quant.native.search.threads", lambda: 4)
    shared = natively(weights, scheme, "mse")
    assert alone[1:] == shared[1:]
    for name, tensor in alone[0].tensors().items():
        assert torch.equal(tensor, shared[0].tensors()[name])


@pytest.mark.parametrize("method", NATIVE_METHODS)
def test_packing_uses_the_library_where_it_is(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, scheme = random((40, 512)), Scheme.parse("int4-g32")

    def refuse(block: Tensor, scheme: Scheme) -> PackedWeight:
        raise AssertionError("torch was asked")

    with monkeypatch.context() as patch:
        patch.setitem(METHODS, method, refuse)
        there = pack([(0, weights)], (40, 512), scheme, method)
    monkeypatch.setattr("quant.native.search.missing", lambda: "absent")
    absent = pack([(0, weights)], (40, 512), scheme, method)
    assert there[1] == pytest.approx(absent[1], abs=1e-4)
    for name, tensor in there[0].tensors().items():
        assert torch.equal(tensor, absent[0].tensors()[name])
