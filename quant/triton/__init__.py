"""Products over packed matrices on CUDA devices, written in Triton.

``layout`` defines the memory layout of a matrix; ``decoding``, ``gemv``, ``gemm`` and ``rows`` are
the kernels, imported at first use because they need Triton; ``configs`` has the tiles to choose
from, ``choices`` those measured to be fastest on a card, ``tuning`` measures; the backend calls
``launch``; ``workspace`` has the memory that products on one device share.

On CPU tensors the kernels run only under TRITON_INTERPRET=1, as in the tests.
"""

from __future__ import annotations

from functools import cache

import torch

from ..library import library

# Part of the key of kept choices: raise it whenever a change to a kernel changes what is fastest.
VERSION = 1
# Triton dropped cards older than Ampere, which is also the first with bfloat16.
_CAPABILITY = (8, 0)


def missing(device: torch.device) -> str | None:
    """Reason why these kernels cannot run on ``device``; None if they can."""
    if device.type != "cuda":
        return f"runs on CUDA devices, not on {device}"
    return _unfit(device) or uninstalled()


def uninstalled() -> str | None:
    """Remedy if Triton is not installed, else None."""
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
