"""Products with one to eight rows of activations: weights are dequantized in registers, sums are
float32.

A program takes BLOCK_N outputs and one of SPLITS ranges of their words; a second kernel adds up
the results of the ranges in a fixed order. Every row of activations goes through the same
operations in the same order, with explicit fused multiply-adds, so that its result does not
depend on the number of rows.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .decoding import group_numbers, load_words, plane_values


@triton.jit(do_not_specialize=["one"])
def multiply_rows(
    x: tl.tensor, words: tl.tensor, upper: tl.tensor, scales: tl.tensor, zeros: tl.tensor,
    supers: tl.tensor, table: tl.tensor, bias: tl.tensor, out: tl.tensor, partial: tl.tensor,
    rows: tl.tensor, outputs: tl.tensor, inputs: tl.tensor, pieces: tl.tensor, one: tl.tensor,
    x_stride: tl.tensor, out_stride: tl.tensor,
    BITS: tl.constexpr, UPPER: tl.constexpr, SPAN: tl.constexpr, GROUPED: tl.constexpr,
    ZEROS: tl.constexpr, SHARED: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
    EACH: tl.constexpr, PIECES: tl.constexpr, SPLITS: tl.constexpr, STEPS: tl.constexpr,
) -> None:  # fmt: skip
    """Multiply x [rows, K] by the transposed matrix into out [rows, N], or its sums into partial.

    A block is words [SPAN, LANES * PIECES, EACH]: threads take 4 words each (2 where a piece has
    no more) and are arranged along PIECES pieces of LANES outputs, and each thread has EACH
    outputs. This way the compiler gives all loads one layout (it orders dimensions that are equal
    by position), and activations are read once for EACH outputs. STEPS: blocks in a range. If the
    compiler knew that ``one`` is 1, it would load scales in another layout to have several at once.
    """
    row_blocks = tl.cdiv(rows, ROWS)  # neighbours in time: the second finds words in the cache
    first = tl.program_id(0) % row_blocks * ROWS
    lane = tl.arange(0, LANES * PIECES) // PIECES
    base = tl.program_id(0) // row_blocks * (LANES * EACH)
    n = base + lane[:, None] + tl.arange(0, EACH)[None, :] * LANES
    exists = n < outputs
    row_words = words + n.to(tl.int64)[None, :, :] * (pieces * SPAN)
    row_words = row_words + tl.arange(0, SPAN)[:, None, None]
    row_upper = upper
    if UPPER > 0:
        row_upper = upper + n.to(tl.int64)[None, :, :] * (pieces * SPAN)
        row_upper = row_upper + tl.arange(0, SPAN)[:, None, None]
    grid = (scales, zeros, supers)
    if not GROUPED:
        stretch = group_numbers(grid, n.to(tl.int64), exists, BITS, UPPER, ZEROS, SHARED)
    x0 = _row(x, first, rows, x_stride)
    x1 = _row(x, first + 1, rows, x_stride)
    x2 = _row(x, first + 2, rows, x_stride)
    x3 = _row(x, first + 3, rows, x_stride)
    acc0 = tl.zeros([LANES * PIECES, EACH], tl.float32)
    acc1 = acc0
    acc2 = acc0
    acc3 = acc0
    for step in range(STEPS):
        piece = tl.arange(0, LANES * PIECES) % PIECES + (tl.program_id(1) * STEPS + step) * PIECES
        live = exists & (piece < pieces)[:, None]
        at_words = (piece * SPAN)[None, :, None]
        packed = load_words(row_words, row_upper, at_words, live[None, :, :])
        if GROUPED:
            at = n.to(tl.int64) * pieces + (piece * one)[:, None]
            stretch = group_numbers(grid, at, live, BITS, UPPER, ZEROS, SHARED)
        block = (packed, stretch, table, piece, pieces, inputs, one)
        acc0 = _add_row(acc0, x0, block, BITS, UPPER, SPAN, GROUPED, ZEROS)
        if ROWS > 1:
            acc1 = _add_row(acc1, x1, block, BITS, UPPER, SPAN, GROUPED, ZEROS)
        if ROWS > 2:
            acc2 = _add_row(acc2, x2, block, BITS, UPPER, SPAN, GROUPED, ZEROS)
            acc3 = _add_row(acc3, x3, block, BITS, UPPER, SPAN, GROUPED, ZEROS)
    target = (out, partial, bias, base, rows, outputs, out_stride)
    _store_row(acc0, target, first, LANES, PIECES, SPLITS)
    if ROWS > 1:
        _store_row(acc1, target, first + 1, LANES, PIECES, SPLITS)
    if ROWS > 2:
        _store_row(acc2, target, first + 2, LANES, PIECES, SPLITS)
        _store_row(acc3, target, first + 3, LANES, PIECES, SPLITS)


@triton.jit
def _row(x: tl.tensor, row: tl.tensor, rows: tl.tensor, x_stride: tl.tensor) -> tl.tensor:
    # A row beyond the last repeats the last, and is not stored.
    return x + tl.minimum(row, rows - 1).to(tl.int64) * x_stride


@triton.jit
def _add_row(
    acc: tl.tensor, x: tl.tensor, block: tl.tuple,
    BITS: tl.constexpr, UPPER: tl.constexpr, SPAN: tl.constexpr, GROUPED: tl.constexpr,
    ZEROS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Add to acc the products of a row of activations with a block of words."""
    packed, stretch, table, piece, pieces, inputs, one = block
    scale, offset, shift = stretch
    PLANES: tl.constexpr = 32 // BITS
    j = tl.arange(0, SPAN)[:, None, None]
    if GROUPED:
        k = piece[None, :, None] * (SPAN * PLANES) + j
        plane_stride = SPAN
    else:
        k = piece[None, :, None] * SPAN + j
        plane_stride = tl.multiple_of(pieces * SPAN, 16)
    products = tl.zeros(packed[0].shape, tl.float32)
    total = tl.zeros(k.shape, tl.float32)
    for i in tl.static_range(PLANES):
        values = plane_values(packed, offset[None, :, :], table, one, i, BITS, UPPER)
        at = k + i * plane_stride
        mask = (piece < pieces)[None, :, None]
        if not GROUPED:
            mask = mask & (at < inputs)
        numbers = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        products = tl.fma(values, numbers, products)
        total += numbers
    acc = tl.fma(tl.sum(products, 0), scale, acc)
    if ZEROS == "float":
        acc = tl.fma(tl.sum(total, 0), shift, acc)
    return acc


@triton.jit
def _store_row(
    acc: tl.tensor, target: tl.tuple, row: tl.tensor,
    LANES: tl.constexpr, PIECES: tl.constexpr, SPLITS: tl.constexpr,
) -> None:  # fmt: skip
    out, partial, bias, base, rows, outputs, out_stride = target
    EACH: tl.constexpr = acc.shape[1]
    sums = tl.sum(tl.reshape(acc, [LANES, PIECES, EACH]), 1)
    n = base + tl.arange(0, LANES)[:, None] + tl.arange(0, EACH)[None, :] * LANES
    mask = (n < outputs) & (row < rows)
    if SPLITS > 1:
        at = (tl.program_id(1) * rows + row).to(tl.int64) * outputs
        tl.store(partial + at + n, sums, mask=mask)
    else:
        if bias is not None:
            sums += tl.load(bias + n, mask=mask, other=0.0).to(tl.float32)
        tl.store(out + row.to(tl.int64) * out_stride + n, sums, mask=mask)


@triton.jit
def add_splits(
    partial: tl.tensor, bias: tl.tensor, out: tl.tensor, rows: tl.tensor, outputs: tl.tensor,
    out_stride: tl.tensor,
    SPLITS: tl.constexpr, BLOCK_N: tl.constexpr,
) -> None:  # fmt: skip
    """Add up partial [SPLITS, rows, N] from first to last, plus bias, into out."""
    row = tl.program_id(1)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = n < outputs
    sums = tl.zeros([BLOCK_N], tl.float32)
    for split in range(SPLITS):
        at = (split * rows + row).to(tl.int64) * outputs
        sums += tl.load(partial + at + n, mask=mask, other=0.0)
    if bias is not None:
        sums += tl.load(bias + n, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row.to(tl.int64) * out_stride + n, sums, mask=mask)
