"""Requirements of ATen's CPU products, and the final step that all of them share."""

from __future__ import annotations

import sys
from functools import cache

import torch
from torch import Tensor

# Products through ATen agree with the reference's to at least this many dB, after rounding
# activations, scales and results to bfloat16. Gaussian numbers measure 49 to 53.
BFLOAT16_FLOOR_DB = 46.0


@cache
def has_bfloat16() -> bool:
    """True if this CPU multiplies bfloat16 in hardware; otherwise such products are emulated."""
    return bool(torch.cpu._is_avx512_bf16_supported())


def no_vector_code(device: torch.device) -> str | None:
    """Reason not to use ATen's packed products on ``device``; None if there is none."""
    if device.type != "cpu":
        return f"runs on CPUs, not on {device}"
    vectors = torch.backends.cpu.get_cpu_capability()
    if sys.platform == "win32" or vectors not in ("AVX2", "AVX512"):
        return f"ATen's vector code needs AVX2 or AVX512, and not Windows; here {vectors}"
    return None


def finish(product: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Write product [M, N] plus bias [N] into out, rounded to its dtype."""
    if bias is None:
        out.copy_(product)
    else:
        torch.add(product, bias, out=out)
