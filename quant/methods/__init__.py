"""Rounding methods: a table from a method's name to its function.

A method takes rows of a matrix, float32 [n, K], and a Scheme, and returns those rows packed. A
calibrated method also takes the curvature that ``quant.hessian`` computes from their inputs.

Modules:
    rtn: to the nearest. mse: the grid of least error. hqq: half-quadratic. gptq: with Hessians.
    natively: rtn and mse in the native library, as ``quant.convert`` runs them where it can.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..hessian import Curvature
from ..packing import PackedWeight
from ..scheme import Scheme
from .gptq import gptq
from .hqq import hqq
from .mse import mse
from .rtn import rtn

Method = Callable[[Tensor, Scheme], PackedWeight]

CalibratedMethod = Callable[[Tensor, Curvature, Scheme], PackedWeight]

METHODS: dict[str, Method] = {"rtn": rtn, "mse": mse, "hqq": hqq}
CALIBRATED_METHODS: dict[str, CalibratedMethod] = {"gptq": gptq}
