"""Which kernel is fastest on this machine: each one timed on a small product, a few ms in all."""

from __future__ import annotations

import time

import torch

from ..convert import pack
from ..scheme import Scheme
from . import EXACT_CODES, KERNELS
from .bitsandbytes_backend import LlmInt8
from .kernel import Kernel, Shape

# What stands for each class of shapes. They are told apart because calls cost more than bytes in
# small matrices: a kernel that is best in one class need not be in the other.
PROBES: dict[str, Shape] = {"small": (512, 512), "large": (4096, 1024)}
_SMALL_ELEMENTS = 1 << 20
_ROUNDS = 5


def shape_class(shape: Shape) -> str:
    """The key of ``PROBES`` that stands for a matrix of `shape` [N, K]."""
    return "small" if shape[0] * shape[1] <= _SMALL_ELEMENTS else "large"


def time_kernels(scheme: Scheme, shape: Shape, device: torch.device | str) -> dict[str, float]:
    """Seconds of one product by one row of activations, fastest first, by kernel name.

    The best of a few rounds in which the kernels take turns. Kernels that cannot hold the matrix
    are left out, and so is the one that rounds activations to 8 bits without a second look: speed
    alone does not make it the better choice. Exact products of codes are for those who ask.
    The caller sets the number of threads.
    """
    device = torch.device(device)
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02
    packed = pack([(0, weights)], shape, scheme, device=device)[0]
    x = torch.ones(1, shape[1], device=device)
    out = torch.empty(1, shape[0], device=device)
    layouts = [(kernel, kernel.prepare(packed)) for kernel in _candidates(scheme, shape, device)]
    best = {kernel.name: float("inf") for kernel, _ in layouts}
    for _ in range(_ROUNDS):
        for kernel, layout in layouts:
            start = time.perf_counter()
            kernel.multiply(x, layout, scheme, None, out)
            float(out[0, 0])  # waits for a device that works on its own
            best[kernel.name] = min(best[kernel.name], time.perf_counter() - start)
    return dict(sorted(best.items(), key=lambda item: item[1]))


def _candidates(scheme: Scheme, shape: Shape, device: torch.device) -> list[Kernel]:
    return [
        kernel
        for kernel in KERNELS
        if not isinstance(kernel, LlmInt8)
        and kernel not in EXACT_CODES
        and kernel.supports(scheme, shape, device, lookup=False) is None
    ]
