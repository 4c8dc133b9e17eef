"""Kernel timing: finds the fastest kernel on this machine with small products, in a few ms.

On a CUDA device only device time counts: captured steps avoid the cost of launches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from ..convert import pack
from ..metrics import sqnr_db
from ..scheme import Scheme
from . import EXACT_CODES, KERNELS, REFERENCE
from .bitsandbytes_backend import LlmInt8
from .kernel import Kernel, Shape

# The shape measured for each class of shapes. For small matrices the cost of a call outweighs
# that of the bytes, so the best kernel of one class may not be the best of the other.
PROBES: dict[str, Shape] = {"small": (512, 512), "large": (4096, 1024)}
_SMALL_ELEMENTS = 1 << 20
_ROUNDS = 5
# Products of Gaussian numbers agree with the reference's to more dB than this; a kernel that does
# not (a library changed its layout, a faulty device) must not be chosen for its speed.
_AGREES_DB = 30.0


def shape_class(shape: Shape) -> str:
    """The key of ``PROBES`` that stands for a matrix of ``shape`` [N, K]."""
    return "small" if shape[0] * shape[1] <= _SMALL_ELEMENTS else "large"


def time_kernels(scheme: Scheme, shape: Shape, device: torch.device | str) -> dict[str, float]:
    """Seconds of one product by one row of activations, fastest first, by kernel name.

    On the CPU it is the best of a few rounds in which the kernels alternate, on a CUDA device the
    median of a few. Left out are kernels that do not support the matrix or disagree with the
    reference, the one that rounds activations to 8 bits without handling outliers (speed alone
    does not make it the better choice), and exact products of codes, which must be requested.
    The caller sets the number of threads.
    """
    device = torch.device(device)
    source = torch.Generator().manual_seed(0)
    weights = torch.randn(shape, generator=source) * 0.02
    packed = pack([(0, weights)], shape, scheme, device=device)[0]
    x = torch.randn(1, shape[1], generator=source).to(device)
    out = torch.empty(1, shape[0], device=device)
    if device.type == "cuda":  # as activations are there
        x, out = x.bfloat16(), out.bfloat16()
    REFERENCE.multiply(x, REFERENCE.prepare(packed), scheme, None, out)
    expected = out.clone()
    works: dict[str, Callable[[], None]] = {}
    for kernel in _candidates(scheme, shape, device):
        works[kernel.name] = partial(kernel.multiply, x, kernel.prepare(packed), scheme, None, out)
        works[kernel.name]()
        if not sqnr_db(expected, out) >= _AGREES_DB:
            del works[kernel.name]
    seconds = _on_device(works, device) if device.type == "cuda" else _in_turns(works)
    return dict(sorted(seconds.items(), key=lambda item: item[1]))


def _in_turns(works: dict[str, Callable[[], None]]) -> dict[str, float]:
    best = dict.fromkeys(works, float("inf"))
    for _ in range(_ROUNDS):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def _on_device(works: dict[str, Callable[[], None]], device: torch.device) -> dict[str, float]:
    from ..triton.tuning import device_clock

    clock = device_clock(device)
    return {name: clock(work) for name, work in works.items()}


def _candidates(scheme: Scheme, shape: Shape, device: torch.device) -> list[Kernel]:
    return [
        kernel
        for kernel in KERNELS
        if not isinstance(kernel, LlmInt8)
        and kernel not in EXACT_CODES
        and kernel.refusal(scheme, shape, device, lookup=False) is None
    ]
