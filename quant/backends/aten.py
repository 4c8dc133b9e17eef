"""What ATen's CPU products need of a machine, and the end that all of them share."""

from __future__ import annotations

import sys
from functools import cache

import torch
from torch import Tensor

# Products through ATen agree with the reference's to this many dB: what the roundings of
# activations, scales and results to bfloat16 leave. Gaussian numbers measure 49 to 53.
BFLOAT16_FLOOR_DB = 46.0


@cache
def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 by itself; elsewhere such products are emulated."""
    return bool(torch.cpu._is_avx512_bf16_supported())


def no_vector_code(device: torch.device) -> str | None:
    """Why ATen's packed products are not to be used on ``device``; None if they are."""
    if device.type != "cpu":
        return f"runs on CPUs, not on {device}"
    vectors = torch.backends.cpu.get_cpu_capability()
    if sys.platform == "win32" or vectors not in ("AVX2", "AVX512"):
        return f"ATen has vector code for AVX2 and AVX512 outside Windows only, here {vectors}"
    return None


def finish(product: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """product [M, N] plus bias [N] into out, rounded to its dtype."""
    if bias is None:
        out.copy_(product)
    else:
        torch.add(product, bias, out=out)
