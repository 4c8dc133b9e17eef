"""Kernel backends: the table of kernels, fastest first, and the choice among them.

Kernels after the reference need libraries that are slow to import: ``auto`` uses those only
where they were measured to be faster on this machine.

Modules:
    kernel: the protocol of a kernel. reference: plain torch, which defines what is right.
    native_backend: the native library. triton_backend: CUDA products written in Triton.
    torch_backend, torch_int8, aten: kernels of ATen. torchao_backend, bitsandbytes_backend: those
    of these libraries.
    timing: how long a kernel takes here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import KernelUnavailableError
from ..names import BACKENDS
from ..scheme import Scheme
from .bitsandbytes_backend import Dequantized4Bit, Fused4Bit, LlmInt8
from .kernel import Kernel, Shape
from .native_backend import KINDS, NativeProduct
from .reference import Reference
from .torch_backend import Int4Pack, Int4Tile, TorchMatmul
from .torch_int8 import Int8Groups, Int8Rows
from .torchao_backend import TorchaoInt8
from .triton_backend import KINDS as TRITON_KINDS
from .triton_backend import TritonProduct

__all__ = ["KERNELS", "Kernel", "choose", "find"]

REFERENCE = Reference()
NATIVE_FLOAT = NativeProduct("float", exact=True)
# Kernels that never round activations: they compute in float32 whatever the weights are.
EXACT_CODES: tuple[Kernel, ...] = tuple(NativeProduct(kind, exact=True) for kind in KINDS)
EXACT: tuple[Kernel, ...] = (*EXACT_CODES, NATIVE_FLOAT, REFERENCE)
KERNELS: tuple[Kernel, ...] = (
    *(NativeProduct(kind) for kind in KINDS),
    *(TritonProduct(kind) for kind in TRITON_KINDS),
    *(Int4Pack(), Int4Tile(), Int8Rows(), Int8Groups(), TorchMatmul(), NATIVE_FLOAT, REFERENCE),
    *(*EXACT_CODES, Fused4Bit(), Dequantized4Bit(), LlmInt8(), TorchaoInt8()),
)


def choose(
    scheme: Scheme,
    shape: Shape,
    device: torch.device | str,
    backend: str = "auto",
    lookup: bool = False,
    multiply: bool = True,
    ranking: Sequence[str] = (),
    exact: bool = False,
) -> Kernel:
    """The kernel that will hold a matrix of ``shape`` [N, K].

    backend: "auto" takes the first of the table that supports the matrix; a name takes the first
    of that backend. lookup: rows must be readable. multiply: False for a table that is only read
    by rows, which the reference does for every backend. ranking: names of kernels to try before
    the rest of the table, as ``timing.time_kernels`` ranks them; unknown names are ignored.
    exact: only kernels that do not round float32 activations.
    Raises KernelUnavailableError, with each kernel's reason, when the named backend has none.
    """
    if backend != "auto" and backend not in BACKENDS:
        raise KernelUnavailableError(
            f"unknown backend {backend!r}; allowed here: auto, {', '.join(BACKENDS)}"
        )
    if not multiply:
        return REFERENCE
    reasons = []
    table = EXACT if exact else KERNELS
    if exact:  # rankings are of products that may round
        ranking = ()
    ranked = [kernel for name in ranking for kernel in table if kernel.name == name]
    for kernel in (*ranked, *table):
        if backend not in ("auto", kernel.backend):
            continue
        reason = kernel.refusal(scheme, shape, torch.device(device), lookup)
        if reason is None:
            return kernel
        reasons.append(f"{kernel.name}: {reason}")
    raise KernelUnavailableError(
        f"backend {backend!r} has no kernel for {scheme} {list(shape)} on {device} "
        f"({'; '.join(reasons) or 'it rounds activations'}); use backend auto or reference"
    )


def find(name: str) -> Kernel:
    """The kernel named ``name`` in reports."""
    return next(kernel for kernel in KERNELS if kernel.name == name)
