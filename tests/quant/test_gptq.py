"""GPTQ and its Hessian: outputs come nearer than with each weight rounded alone."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

import quant.hessian as hessian_module
from quant import Hessian, PackedWeight, QuantError, Scheme, Sqnr, dequantize, pack_calibrated
from quant.hessian import DAMPING
from quant.methods.gptq import gptq
from quant.methods.mse import mse
from quant.methods.rtn import rtn

SCHEMES = (
    "int4-g32", "int4-g64-zint", "int4-g128-zfloat", "int4-row", "int8", "int8-g32-zfloat", "nf4",
)  # fmt: skip
SHARE = 0.7
"""Of rtn's error of outputs, at most; 0.60 to 0.67 are measured."""
FACTOR_ERROR = 1e-4
GROWTH = 0.5
"""Memory that making a factor may take, beside the Hessian's, as a share of it."""
MAKE_A_FACTOR = """
import torch
torch.set_num_threads(1)
from pathlib import Path
from quant import Hessian
def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))
for size in (64, 2560):
    hessian = Hessian(size)
    hessian.add(torch.randn(64, size))
    before = status("VmRSS")
    hessian.factor()
print((status("VmHWM") - before) / Hessian.nbytes(size))
"""


def correlated(tokens: int, size: int) -> Tensor:
    """Inputs [tokens, size] that lie near a space of fewer dimensions."""
    return torch.randn(tokens, size) @ (torch.eye(size) + 0.3 * torch.randn(size, size))


def factor_of(inputs: Tensor) -> Tensor:
    hessian = Hessian(inputs.shape[1])
    for rows in inputs.split(100):
        hessian.add(rows)
    return hessian.factor()


def same(one: PackedWeight, other: PackedWeight) -> bool:
    return all(torch.equal(t, other.tensors()[n]) for n, t in one.tensors().items())


@pytest.mark.parametrize("text", SCHEMES)
def test_without_correlations_it_is_mse(text: str) -> None:
    """With the identity as the Hessian nothing is made up for: the same scales, the same codes."""
    scheme, weights = Scheme.parse(text), torch.randn(24, 384) * 0.02
    assert same(gptq(weights, torch.eye(384), scheme), mse(weights, scheme))


@pytest.mark.parametrize("text", SCHEMES)
def test_outputs_of_correlated_inputs(text: str) -> None:
    scheme, weights = Scheme.parse(text), torch.randn(48, 640) * 0.02
    inputs = correlated(1500, 640)
    before, factor = weights.clone(), factor_of(inputs)

    def error(packed: PackedWeight) -> float:
        return float(((weights - dequantize(packed)) @ inputs.T).square().sum())

    share = (error(gptq(weights, factor, scheme)) / error(rtn(weights, scheme))) ** 0.5
    print(f"{text}: {share:.3f} of rtn's output error, at most {SHARE}")
    assert share <= SHARE and torch.equal(weights, before)


@pytest.mark.parametrize("size", [40, 700, 1100])
def test_the_factor(size: int) -> None:
    """C^T C (X^T X + d I) = I, C upper; sizes beside and beyond the blocks, few tokens."""
    inputs = correlated(300, size)
    factor = factor_of(inputs).double()
    wanted = inputs.double().T @ inputs.double()
    wanted.diagonal().add_(DAMPING * wanted.diagonal().mean())
    upper = torch.linalg.inv(factor)
    error = float((upper @ upper.T - wanted).norm() / wanted.norm())
    print(f"{size}: relative error {error:.1e}")
    assert torch.equal(factor, factor.triu()) and error <= FACTOR_ERROR


def test_inputs_that_are_always_zero() -> None:
    """Their columns are rounded alone and move no other; without any input all are."""
    scheme, weights = Scheme.parse("int8-g32"), torch.randn(8, 256)
    inputs = correlated(500, 256)
    inputs[:, 7] = 0
    factor = factor_of(inputs)
    one = dequantize(gptq(weights, factor, scheme))
    error = float((one[:, 7] - weights[:, 7]).abs().max())
    print(f"error of a column without inputs: {error:.4f}")
    assert float(factor[7].count_nonzero()) == 1 and error < 0.02
    nothing = factor_of(torch.zeros(5, 256))
    assert same(gptq(weights, nothing, scheme), mse(weights, scheme))


def test_inputs_that_are_nearly_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """One token outweighs all others, as the first of a text does in many models.

    The damping is what thousands of inputs leave of the usual one beside the largest eigenvalue.
    """
    monkeypatch.setattr(hessian_module, "DAMPING", 1e-9)
    inputs = torch.randn(200, 512)
    inputs[0] = 1e4
    factor = factor_of(inputs)
    assert bool(torch.isfinite(factor).all()) and bool((factor.diagonal() > 0).all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_bad_inputs_are_refused(bad: float) -> None:
    inputs = torch.randn(20, 64)
    inputs[3, 5] = bad
    with pytest.raises(QuantError, match="calibration inputs"):
        factor_of(inputs)


@pytest.mark.parametrize("text", ["int4-g32", "int8", "nf4"])
def test_bad_weights_are_refused(text: str) -> None:
    weights = torch.randn(3, 128)
    weights[1, 77] = float("nan")
    with pytest.raises(QuantError, match="NaN, infinite"):
        gptq(weights, torch.eye(128), Scheme.parse(text))


def test_error_of_the_weights_is_told() -> None:
    scheme, weights, error = Scheme.parse("int4-g32"), torch.randn(16, 128).bfloat16(), Sqnr()
    packed = pack_calibrated(weights, torch.eye(128), scheme, "gptq", error)
    expected = Sqnr()
    expected.add(weights, dequantize(packed))
    assert error.db == pytest.approx(expected.db)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_factor_lies_where_the_hessian_lay() -> None:
    done = subprocess.run([sys.executable, "-c", MAKE_A_FACTOR], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    share = float(done.stdout)
    print(f"{share:.2f} of the Hessian's bytes beside it, at most {GROWTH}")
    assert share <= GROWTH
