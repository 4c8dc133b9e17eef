"""Dequantized rows of a matrix: those selected by ids (an embedding), or a contiguous block."""

from __future__ import annotations

import triton
import triton.language as tl

from .decoding import group_numbers, load_words, plane_values


@triton.jit
def read_rows(
    ids: tl.tensor, words: tl.tensor, upper: tl.tensor, scales: tl.tensor, zeros: tl.tensor,
    supers: tl.tensor, table: tl.tensor, out: tl.tensor, first: tl.tensor, outputs: tl.tensor,
    inputs: tl.tensor, pieces: tl.tensor, out_stride: tl.tensor,
    BITS: tl.constexpr, UPPER: tl.constexpr, SPAN: tl.constexpr, GROUPED: tl.constexpr,
    ZEROS: tl.constexpr, SHARED: tl.constexpr, BLOCK_W: tl.constexpr,
) -> None:  # fmt: skip
    """Write row ids[i], or first + i without ids, to out[i]; scaled in float32 and rounded once.

    An id out of range gives zeros: reporting it would require a device synchronization.
    """
    PLANES: tl.constexpr = 32 // BITS
    target = tl.program_id(0).to(tl.int64)
    row = first + target
    if ids is not None:
        row = tl.load(ids + target).to(tl.int64)
    word = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    live = (word < pieces * SPAN) & (row >= 0) & (row < outputs)
    packed = load_words(words, upper, row * (pieces * SPAN) + word, live)
    if GROUPED:
        at = row * pieces + word // SPAN
        k = word // SPAN * (SPAN * PLANES) + word % SPAN
        plane_stride = SPAN
    else:
        at = row + tl.zeros_like(word)
        k = word
        plane_stride = tl.multiple_of(pieces * SPAN, 16)
    grid = (scales, zeros, supers)
    scale, offset, shift = group_numbers(grid, at, live, BITS, UPPER, ZEROS, SHARED)
    for i in tl.static_range(PLANES):
        values = plane_values(packed, offset, table, 1, i, BITS, UPPER) * scale
        if ZEROS == "float":
            values += shift
        at_out = k + i * plane_stride
        mask = (word < pieces * SPAN) & (at_out < inputs)
        tl.store(out + target * out_stride + at_out, values, mask=mask)
