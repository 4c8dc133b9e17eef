"""Products with many rows of activations on the tensor cores.

Weights are dequantized in registers and rounded once, to the activations' type. Each plane of the
words is a separate product, over the inputs in that plane. Tiles of words have the words as their
first dimension: among dimensions that it ranks equal, the compiler takes the first as the
fastest, and so gives scales and words one layout.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .decoding import group_numbers, load_words, plane_values


@triton.jit(do_not_specialize=["one"])
def multiply_tile(
    x: tl.tensor, words: tl.tensor, upper: tl.tensor, scales: tl.tensor, zeros: tl.tensor,
    supers: tl.tensor, table: tl.tensor, bias: tl.tensor, out: tl.tensor, partial: tl.tensor,
    rows: tl.tensor, outputs: tl.tensor, inputs: tl.tensor, pieces: tl.tensor, one: tl.tensor,
    x_stride: tl.tensor, out_stride: tl.tensor,
    BITS: tl.constexpr, UPPER: tl.constexpr, SPAN: tl.constexpr, GROUPED: tl.constexpr,
    ZEROS: tl.constexpr, SHARED: tl.constexpr, COMPUTE: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr, SPLITS: tl.constexpr, STEPS: tl.constexpr,
) -> None:  # fmt: skip
    """Multiply x [rows, K] by the transposed matrix into out [rows, N], or its sums into partial.

    BLOCK_W words of each of BLOCK_N rows at a time, STEPS times in a range. COMPUTE: the type of
    the tensor cores' operands, that of x (or float32 in the interpreter, which has no bfloat16).
    """
    PLANES: tl.constexpr = 32 // BITS
    row_blocks = tl.cdiv(rows, BLOCK_M)  # neighbours in time, over the same words
    m = tl.program_id(0) % row_blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) // row_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    exists = (n < outputs)[None, :]
    row_words = words + n.to(tl.int64)[None, :] * (pieces * SPAN)
    row_upper = upper
    if UPPER > 0:
        row_upper = upper + n.to(tl.int64)[None, :] * (pieces * SPAN)
    grid = (scales, zeros, supers)
    x_rows = x + tl.minimum(m, rows - 1).to(tl.int64)[:, None] * x_stride
    if not GROUPED:
        at = n.to(tl.int64)[None, :]
        stretch = group_numbers(grid, at, exists, BITS, UPPER, ZEROS, SHARED)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for step in range(STEPS):
        word = (tl.program_id(1) * STEPS + step) * BLOCK_W + tl.arange(0, BLOCK_W)
        inside = word < pieces * SPAN
        live = inside[:, None] & exists
        packed = load_words(row_words, row_upper, word[:, None], live)
        if GROUPED:
            at = n.to(tl.int64)[None, :] * pieces + (word // SPAN)[:, None]
            stretch = group_numbers(grid, at, live, BITS, UPPER, ZEROS, SHARED)
            k = word // SPAN * (SPAN * PLANES) + word % SPAN
            plane_stride = SPAN
        else:
            k = word
            plane_stride = tl.multiple_of(pieces * SPAN, 16)
        scale, offset, shift = stretch
        for i in tl.static_range(PLANES):
            at_x = k + i * plane_stride
            mask = (inside & (at_x < inputs))[None, :]
            numbers = tl.load(x_rows + at_x[None, :], mask=mask, other=0.0)
            weights = plane_values(packed, offset, table, one, i, BITS, UPPER) * scale
            if ZEROS == "float":
                weights += shift
            weights = weights.to(x.dtype.element_ty).to(COMPUTE)
            acc = tl.dot(numbers.to(COMPUTE), weights, acc, input_precision="ieee")
    _store_tile(acc, (out, partial, rows, outputs, out_stride), m, n, bias, SPLITS)


@triton.jit
def _store_tile(
    sums: tl.tensor, target: tl.tuple, m: tl.tensor, n: tl.tensor, bias: tl.tensor,
    SPLITS: tl.constexpr,
) -> None:  # fmt: skip
    out, partial, rows, outputs, out_stride = target
    mask = (m < rows)[:, None] & (n < outputs)[None, :]
    if SPLITS > 1:
        at = (tl.program_id(1) * rows + m).to(tl.int64)[:, None] * outputs
        tl.store(partial + at + n[None, :], sums, mask=mask)
    else:
        if bias is not None:
            sums += tl.load(bias + n, mask=n < outputs, other=0.0).to(tl.float32)[None, :]
        tl.store(out + m.to(tl.int64)[:, None] * out_stride + n[None, :], sums, mask=mask)
