"""Codebooks of 16 numbers: a 4-bit code selects one, a scale per group multiplies it.

nf4 and fp4, with numbers in [-1, 1], are bitsandbytes' (functional.get_4bit_type). nf4: quantiles
of the normal distribution (Dettmers et al. 2023, arXiv:2305.14314). fp4: floats of a sign and three
bits, divided by their largest, 12. iq4: the signed bytes of GGUF's IQ4_NL and IQ4_XS (kvalues_iq4nl
of ggml-common.h), which have no zero.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

_FP4 = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)

CODEBOOKS: dict[str, tuple[float, ...]] = {
    "nf4": (
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ),
    "fp4": (*(value / 12 for value in _FP4), *(-value / 12 for value in _FP4)),
    "iq4": (
        *(-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0),
        *(1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0),
    ),
}


@cache
def numbers(codebook: str, device: torch.device) -> Tensor:
    """The 16 numbers, float32, by code."""
    return torch.tensor(CODEBOOKS[codebook], device=device)


@cache
def number_pairs(codebook: str, device: torch.device) -> Tensor:
    """The two numbers of each byte of ``qweight``, float32 [256, 2], the low nibble's first."""
    table = numbers(codebook, device)
    byte = torch.arange(256, device=device)
    return torch.stack([table[byte & 15], table[byte >> 4]], dim=1)


def nearest_codes(values: Tensor, codebook: str) -> Tensor:
    """Code of the number nearest to each of ``values``; ties go to the smaller number."""
    ordered, codes = numbers(codebook, values.device).sort(stable=True)
    middles = (ordered[1:] + ordered[:-1]) / 2
    return codes[torch.bucketize(values, middles)]
