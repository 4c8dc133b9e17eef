"""One to eight rows of activations: weights become numbers in registers, sums stay in float32.

A program takes BLOCK_N outputs and one of SPLITS ranges of their words; what the ranges gave is
added up in one order by a second kernel. Every row of activations goes through the same
operations in the same order, fused multiply-adds among them by name, so that its result does not
depend on how many rows there are.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from .decoding import group_numbers, plane_values


@triton.jit
def multiply_rows(
    x: Any, words: Any, scales: Any, zeros: Any, table: Any, bias: Any, out: Any, partial: Any,
    rows: Any, outputs: Any, inputs: Any, pieces: Any, x_stride: Any, out_stride: Any,
    BITS: tl.constexpr, SPAN: tl.constexpr, GROUPED: tl.constexpr, ZEROS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, PIECES: tl.constexpr, SPLITS: tl.constexpr,
    STEPS: tl.constexpr,
) -> None:  # fmt: skip
    """x [rows, K] times the transposed matrix into out [rows, N], or its sums into partial.

    STEPS: blocks of PIECES pieces in a range.
    """
    row_blocks = tl.cdiv(rows, ROWS)  # neighbours in time: the second finds words in the cache
    first = tl.program_id(0) % row_blocks * ROWS
    n = tl.program_id(0) // row_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    exists = n < outputs
    j = tl.arange(0, SPAN)[None, None, :]
    row_words = words + n.to(tl.int64)[:, None, None] * (pieces * SPAN)
    if not GROUPED:
        at = n.to(tl.int64)[:, None]
        stretch = group_numbers(scales, zeros, at, exists[:, None], BITS, ZEROS)
    x0 = _row(x, first, rows, x_stride)
    x1 = _row(x, first + 1, rows, x_stride)
    x2 = _row(x, first + 2, rows, x_stride)
    x3 = _row(x, first + 3, rows, x_stride)
    acc0 = tl.zeros([BLOCK_N, PIECES], tl.float32)
    acc1 = acc0
    acc2 = acc0
    acc3 = acc0
    for step in range(STEPS):
        piece = (tl.program_id(1) * STEPS + step) * PIECES + tl.arange(0, PIECES)
        inside = piece < pieces
        live = inside[None, :, None] & exists[:, None, None]
        packed = tl.load(row_words + (piece * SPAN)[None, :, None] + j, mask=live, other=0)
        if GROUPED:
            at = n.to(tl.int64)[:, None] * pieces + piece[None, :]
            known = inside[None, :] & exists[:, None]
            stretch = group_numbers(scales, zeros, at, known, BITS, ZEROS)
        place = (piece, inside, pieces, inputs)
        acc0 = _add_row(acc0, x0, packed, stretch, place, table, BITS, SPAN, GROUPED, ZEROS)
        if ROWS > 1:
            acc1 = _add_row(acc1, x1, packed, stretch, place, table, BITS, SPAN, GROUPED, ZEROS)
        if ROWS > 2:
            acc2 = _add_row(acc2, x2, packed, stretch, place, table, BITS, SPAN, GROUPED, ZEROS)
            acc3 = _add_row(acc3, x3, packed, stretch, place, table, BITS, SPAN, GROUPED, ZEROS)
    target = (out, partial, rows, outputs, out_stride)
    _store_row(acc0, target, first, n, bias, SPLITS)
    if ROWS > 1:
        _store_row(acc1, target, first + 1, n, bias, SPLITS)
    if ROWS > 2:
        _store_row(acc2, target, first + 2, n, bias, SPLITS)
        _store_row(acc3, target, first + 3, n, bias, SPLITS)


@triton.jit
def _row(x: Any, row: Any, rows: Any, x_stride: Any) -> Any:
    # A row beyond the last repeats the last, and is not stored.
    return x + tl.minimum(row, rows - 1).to(tl.int64) * x_stride


@triton.jit
def _add_row(
    acc: Any, x: Any, packed: Any, stretch: Any, place: Any, table: Any,
    BITS: tl.constexpr, SPAN: tl.constexpr, GROUPED: tl.constexpr, ZEROS: tl.constexpr,
) -> Any:  # fmt: skip
    """acc [BLOCK_N, PIECES] plus the products of a row of activations with the pieces `packed`."""
    scale, offset, shift = stretch
    piece, inside, pieces, inputs = place
    PLANES: tl.constexpr = 32 // BITS
    j = tl.arange(0, SPAN)[None, None, :]
    if GROUPED:
        k = piece[None, :, None] * (SPAN * PLANES) + j
        plane_stride = SPAN
    else:
        k = piece[None, :, None] * SPAN + j
        plane_stride = tl.multiple_of(pieces * SPAN, 16)
    products = tl.zeros(packed.shape, tl.float32)
    total = tl.zeros(k.shape, tl.float32)
    for i in tl.static_range(PLANES):
        values = plane_values(packed, offset[:, :, None], table, i, BITS)
        at = k + i * plane_stride
        numbers = tl.load(x + at, mask=inside[None, :, None] & (at < inputs), other=0.0)
        products = tl.fma(values, numbers.to(tl.float32), products)
        total += numbers.to(tl.float32)
    acc = tl.fma(tl.sum(products, 2), scale, acc)
    if ZEROS == "float":
        acc = tl.fma(tl.sum(total, 2), shift, acc)
    return acc


@triton.jit
def _store_row(acc: Any, target: Any, row: Any, n: Any, bias: Any, SPLITS: tl.constexpr) -> None:
    out, partial, rows, outputs, out_stride = target
    sums = tl.sum(acc, 1)
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
    partial: Any, bias: Any, out: Any, rows: Any, outputs: Any, out_stride: Any,
    SPLITS: tl.constexpr, BLOCK_N: tl.constexpr,
) -> None:  # fmt: skip
    """partial [SPLITS, rows, N] added up from the first to the last, plus bias, into out."""
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
