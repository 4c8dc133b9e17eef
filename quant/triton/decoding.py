"""Device functions shared by all kernels: decoding the codes of a word.

The bits of a code, placed in the mantissa of a float32 whose exponent makes its lowest bit worth
one, read as 2^e + code: an ``and``, an ``or`` and an exact subtraction, four times as fast as a
conversion of integers.

``one`` is 1, hidden from the compiler: constants times ``one`` stay in registers, so the ``and``
and the ``or`` become one instruction, which takes a single literal.

Names in capitals are compile-time constants, as are tensors that are None.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def plane_values(
    words: tl.tensor, offset: tl.tensor, table: tl.tensor, one: tl.tensor,
    PLANE: tl.constexpr, BITS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Codes of a plane minus ``offset`` as exact float32, or the numbers of ``table``."""
    if table is not None:
        values = tl.load(table + ((words >> (BITS * PLANE)) & 15))
    else:
        # Bits beyond the mantissa's 23 come from the upper half of the word.
        HIGH: tl.constexpr = BITS * PLANE + BITS > 23
        AT: tl.constexpr = BITS * PLANE - 16 * HIGH
        half = words >> (16 * HIGH)
        mantissa = (half & (((1 << BITS) - 1) << AT)) | (one * ((150 - AT) << 23))
        values = mantissa.to(tl.float32, bitcast=True) - (offset + (1 << (23 - AT)))
    return values


@triton.jit
def group_numbers(
    scales: tl.tensor, zeros: tl.tensor, at: tl.tensor, live: tl.tensor,
    BITS: tl.constexpr, ZEROS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """(scale, offset subtracted from codes, minimum added to scaled codes) of the groups ``at``."""
    scale = tl.load(scales + at, mask=live, other=0.0).to(tl.float32)
    shift = tl.zeros_like(scale)
    if ZEROS == "int":
        offset = tl.load(zeros + at, mask=live, other=0).to(tl.float32)
    elif ZEROS == "float":
        # Minima belong to the codes as they were packed: int8 has 128 added since.
        offset = shift + (128 if BITS == 8 else 0)
        shift = tl.load(zeros + at, mask=live, other=0.0).to(tl.float32)
    else:
        offset = shift + (1 << (BITS - 1))
    return scale, offset, shift
