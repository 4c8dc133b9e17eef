"""Round to nearest: the bound on every number, the error on Gaussian weights, bad numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant import PackedWeight, QuantError, Scheme, dequantize, sqnr_db
from quant.methods.rtn import rtn

LAYOUTS = ("int4-g32", "int4-g64", "int4-g128", "int8", "int8-g32", "int8-g64", "int8-g128")
SCHEMES = [Scheme.parse(layout + zeros) for layout in LAYOUTS for zeros in ("", "-zint", "-zfloat")]

# Floors in dB on Gaussian weights of 384 inputs, a tenth of a dB or two under what is measured.
GAUSSIAN_FLOOR_DB = {
    "int4-g32": (21.1, 21.6, 21.9),
    "int4-g64": (20.2, 20.6, 20.7),
    "int4-g128": (19.4, 19.7, 19.8),
    "int8": (42.4, 43.1, 43.1),
    "int8-g32": (45.2, 46.2, 46.5),
    "int8-g64": (44.3, 45.2, 45.3),
    "int8-g128": (43.5, 44.2, 44.3),
}
# Rounding a scale or minimum to float16: relative, and absolute where float16 is subnormal.
FLOAT16_RELATIVE, FLOAT16_ABSOLUTE = 2**-11, 2**-25


def excess(weights: torch.Tensor, packed: PackedWeight) -> float:
    """How far the worst number lies beyond half a step; not above 0 when the bound holds."""
    scheme = packed.scheme
    assert packed.scales is not None
    size = scheme.group_size or weights.shape[1]
    step = packed.scales.float().abs().repeat_interleave(size, 1)
    largest = weights.view(weights.shape[0], -1, size).abs().amax(-1).repeat_interleave(size, 1)
    codes = 2**scheme.bits
    # A rounded scale moves the ends of the grid by `codes` roundings, a minimum by one of its own.
    slack = 2 * largest * FLOAT16_RELATIVE * 1.01 + (codes + 1) * FLOAT16_ABSOLUTE
    bound = step / 2 + slack
    if scheme.bits == 4 and scheme.zeros == "none":
        # No code +8: beyond +7.5 steps, on the side opposite to the extreme, the end is taken.
        opposite = weights * -packed.scales.float().sign().repeat_interleave(size, 1) < 0
        bound = torch.where(opposite, torch.maximum(bound, weights.abs() - 7 * step + slack), bound)
    return float(((weights - dequantize(packed)).abs() - bound).max())


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    magnitude=st.floats(-8, 2),
    offset=st.floats(-3, 3),
    spread=st.sampled_from(["normal", "outlier", "constant", "zeros", "two"]),
)
def test_every_number_comes_back_within_half_a_step(
    scheme: Scheme, seed: int, magnitude: float, offset: float, spread: str
) -> None:
    random = torch.Generator().manual_seed(seed)
    weights = torch.randn(3, 256, generator=random)
    if spread == "outlier":
        weights[:, ::50] *= 100
    elif spread == "two":
        weights = weights.sign()
    elif spread in ("constant", "zeros"):
        weights = torch.full((3, 256), 1.0 if spread == "constant" else 0.0)
    weights = (weights + (offset if spread == "normal" else 0)) * 10**magnitude
    beyond = excess(weights, rtn(weights, scheme))
    assert beyond <= 0, f"{scheme}: {beyond:.3g} beyond half a step"


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_error_on_gaussian_weights(scheme: Scheme) -> None:
    weights = torch.randn(61, 384) * 0.02
    layout = str(scheme).split("-z")[0]
    floor = GAUSSIAN_FLOOR_DB[layout][("none", "int", "float").index(scheme.zeros)]
    measured = sqnr_db(weights, dequantize(rtn(weights, scheme)))
    print(f"{scheme}: {measured:.2f} dB, floor {floor}")
    assert measured >= floor


@pytest.mark.parametrize("sign", [1, -1])
def test_symmetric_int4_keeps_the_extreme_exactly(sign: int) -> None:
    weights = torch.linspace(-0.5, 0.75, 32).view(1, 32) * sign
    packed = rtn(weights, Scheme.parse("int4-g32"))
    assert packed.scales is not None
    assert float(packed.scales[0, 0]) == -sign * 0.75 / 8
    assert float(dequantize(packed)[0, -1]) == sign * 0.75


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_zeros_and_constants_are_exact(scheme: Scheme) -> None:
    assert not dequantize(rtn(torch.zeros(2, 128), scheme)).any()
    if scheme.zeros == "float":
        constant = torch.full((2, 128), 0.37)
        assert torch.equal(dequantize(rtn(constant, scheme)), constant.half().float())


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused(scheme: Scheme, bad: float) -> None:
    weights = torch.randn(3, 128)
    weights[1, 77] = bad
    with pytest.raises(QuantError, match="NaN, infinite"):
        rtn(weights, scheme)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_scales_beyond_float16_are_refused(scheme: Scheme) -> None:
    weights = torch.randn(3, 128)
    weights[2, 5] = 1e8
    with pytest.raises(QuantError, match=r"e\+0\d is beyond float16"):
        rtn(weights, scheme)
