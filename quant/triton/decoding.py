"""Device functions that every kernel shares: numbers from the bits of a word.

The bits of a code, put into the mantissa of a float32 whose exponent makes its lowest bit count
one, are 2^e + code: an ``and``, an ``or`` and an exact subtraction, where a conversion of integers
would run at a quarter of that speed.

``one`` is 1 where the compiler must not know it: constants times ``one`` stay in registers, and so the
``and`` and the ``or`` become one instruction, which takes a single literal.

What is named in capitals is known when a kernel is compiled, and so are tensors that are None.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def plane_values(
    words: tl.tensor, offset: tl.tensor, table: tl.tensor, one: tl.tensor,
    PLANE: tl.constexpr, BITS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """float32: the codes of a plane less ``offset``, exactly; or the numbers of ``table``."""
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
    """(scale, what is taken from codes, what is added to scaled codes) of the groups ``at``."""
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
