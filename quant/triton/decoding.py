"""Device functions shared by all kernels: decoding the codes of a word, and scales.

The bits of a code, placed in the mantissa of a float32 whose exponent makes its lowest bit worth
one, read as 2^e + code: an ``and``, an ``or`` and an exact subtraction, four times as fast as a
conversion of integers.

``one`` is 1, hidden from the compiler: constants times ``one`` stay in registers, so the ``and``
and the ``or`` become one instruction, which takes a single literal.

Codes of 5 and 6 bits have their upper bits beside the word, and are joined in the mantissa.

Names in capitals are compile-time constants, as are tensors that are None.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_words(
    words: tl.tensor, upper: tl.tensor, at: tl.tensor, live: tl.tensor
) -> tl.tuple:  # fmt: skip
    """(words, upper bits of their codes) at ``at``; without any the words stand for them."""
    packed = tl.load(words + at, mask=live, other=0)
    high = packed
    if upper is not None:
        high = tl.load(upper + at, mask=live, other=0).to(tl.int32)
    return packed, high


@triton.jit
def plane_values(
    packed: tl.tuple, offset: tl.tensor, table: tl.tensor, one: tl.tensor,
    PLANE: tl.constexpr, BITS: tl.constexpr, UPPER: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Codes of a plane minus ``offset`` as exact float32, or the numbers of ``table``."""
    words, high = packed
    if table is not None:
        values = tl.load(table + ((words >> (BITS * PLANE)) & 15))
    else:
        # Bits beyond the mantissa's 23 come from the upper half of the word.
        HIGH: tl.constexpr = BITS * PLANE + BITS + UPPER > 23
        AT: tl.constexpr = BITS * PLANE - 16 * HIGH
        half = words >> (16 * HIGH)
        mantissa = (half & (((1 << BITS) - 1) << AT)) | (one * ((150 - AT) << 23))
        if UPPER > 0:
            # ``layout.upper_place`` has them so that one shift serves 2 * UPPER planes.
            PLACE: tl.constexpr = 4 * (PLANE % (2 * UPPER)) + UPPER * (PLANE // (2 * UPPER))
            mantissa |= (high << (AT + 4 - PLACE)) & (((1 << UPPER) - 1) << (AT + 4))
        values = mantissa.to(tl.float32, bitcast=True) - (offset + (1 << (23 - AT)))
    return values


@triton.jit
def group_numbers(
    grid: tl.tuple, at: tl.tensor, live: tl.tensor,
    BITS: tl.constexpr, UPPER: tl.constexpr, ZEROS: tl.constexpr, SHARED: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """(scale, offset subtracted from codes, minimum added to scaled codes) of the groups ``at``.

    SHARED: groups that share a super-scale; 0 where scales are not coded.
    """
    scales, zeros, supers = grid
    scale = tl.load(scales + at, mask=live, other=0).to(tl.float32)
    if SHARED > 0:
        at_super = at // SHARED * (2 if ZEROS == "float" else 1)
        scale *= tl.load(supers + at_super, mask=live, other=0.0).to(tl.float32)
    shift = tl.zeros_like(scale)
    if ZEROS == "int":
        offset = tl.load(zeros + at, mask=live, other=0).to(tl.float32)
    elif ZEROS == "float":
        # Minima belong to the codes as they were packed: int8 has 128 added since.
        offset = shift + (128 if BITS == 8 else 0)
        shift = tl.load(zeros + at, mask=live, other=0).to(tl.float32)
        if SHARED > 0:
            shift *= tl.load(supers + at_super + 1, mask=live, other=0.0).to(tl.float32)
    else:
        offset = shift + (1 << (BITS + UPPER - 1))
    return scale, offset, shift
