"""The clipping search: never worse than round-to-nearest, and by how much better."""

from __future__ import annotations

import pytest
import torch

from quant import QuantError, Scheme, dequantize, sqnr_db
from quant.methods.mse import mse
from quant.methods.rtn import rtn

# Gain in dB over rtn on Gaussian weights of 384 inputs, a little under what is measured.
GAIN_DB = {
    "int4-g32": 0.45,
    "int4-g64": 0.4,
    "int4-g128": 0.45,
    "int4-g64-zint": 0.3,
    "int4-g64-zfloat": 0.7,
    "int8": 0.03,
    "int8-g32-zfloat": 0.45,
    "nf4": 0.5,
    "fp4": 0.55,
}
# Relative room for the order in which float32 sums run.
ROUNDING = 1e-4


@pytest.mark.parametrize("text", GAIN_DB)
@pytest.mark.parametrize("magnitude", [1e-6, 0.02, 30.0])
@pytest.mark.parametrize("spread", ["normal", "outlier", "shifted", "two", "zeros"])
def test_no_group_is_worse_than_round_to_nearest(text: str, magnitude: float, spread: str) -> None:
    scheme, weights = Scheme.parse(text), torch.randn(7, 384)
    if spread == "outlier":
        weights[:, ::50] *= 30
    elif spread == "shifted":
        weights += 3
    elif spread in ("two", "zeros"):
        weights = weights.sign() * (spread == "two")
    weights *= magnitude

    def errors(method: object) -> torch.Tensor:
        lost = dequantize(method(weights, scheme)).double() - weights  # type: ignore[operator]
        groups = weights.double().view(7, scheme.groups(384), -1)
        importance = groups.abs() + groups.square().mean(-1, keepdim=True).sqrt()
        return (lost.square().view(groups.shape) * importance).sum(-1)

    nearest, searched = errors(rtn), errors(mse)
    worst = float((searched / nearest.clamp(min=1e-300)).where(nearest > 0, 0).max())
    print(f"{text} {spread}: worst group {worst:.6f} of rtn's error")
    assert bool((searched <= nearest * (1 + ROUNDING)).all())


@pytest.mark.parametrize("text", GAIN_DB)
def test_gain_on_gaussian_weights(text: str) -> None:
    scheme, weights = Scheme.parse(text), torch.randn(64, 384) * 0.02
    gain = sqnr_db(weights, dequantize(mse(weights, scheme))) - sqnr_db(
        weights, dequantize(rtn(weights, scheme))
    )
    print(f"{text}: {gain:.2f} dB gained, floor {GAIN_DB[text]}")
    assert gain >= GAIN_DB[text]


@pytest.mark.parametrize("text", ["int4-g32", "int4-g32-zfloat", "nf4"])
def test_bad_numbers_are_refused(text: str) -> None:
    weights = torch.randn(3, 128)
    weights[1, 77] = float("nan")
    with pytest.raises(QuantError, match="NaN, infinite"):
        mse(weights, Scheme.parse(text))
