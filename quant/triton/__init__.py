"""Products over packed matrices on CUDA devices, written in Triton.

``layout`` says how a matrix lies in memory; ``decoding``, ``gemv``, ``gemm`` and ``rows`` are the kernels,
imported at first use because they need Triton; ``configs`` has the tiles to choose from, ``choices``
what was measured to be fastest on a card, ``tuning`` measures; ``launch`` is what the backend calls.

On CPU tensors the kernels run under TRITON_INTERPRET=1 alone, as the tests do it.
"""

from __future__ import annotations

from functools import cache

import torch

from ..backends.library import library

# Part of the key of kept choices: to be raised whenever a kernel changes what is fastest.
VERSION = 1
# Triton dropped older cards than Ampere, and bfloat16 begins there.
_CAPABILITY = (8, 0)


def missing(device: torch.device) -> str | None:
    """Why these kernels are not to run on ``device``; None if they are."""
    if device.type != "cuda":
        return f"runs on CUDA devices, not on {device}"
    return _unfit(device) or uninstalled()


def uninstalled() -> str | None:
    """What to do where Triton is not installed."""
    return None if library("triton") else "Triton is not installed; pip install 'edgelm[gpu]'"


@cache
def _unfit(device: torch.device) -> str | None:
    if not torch.cuda.is_available():
        return "torch sees no CUDA device here (no driver, one too old, or a CPU build of torch)"
    own = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and own < _CAPABILITY:
        name, wanted = torch.cuda.get_device_name(device), ".".join(map(str, _CAPABILITY))
        return f"needs compute capability {wanted} (Ampere), {name} has {own[0]}.{own[1]}"
    return None
