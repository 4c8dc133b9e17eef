"""Kernels that put tokens where they belong: rotation by position, keys and values into the cache.

Rows and positions are read on the device, so a captured step serves every token.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rotate(
    x: tl.tensor, out: tl.tensor, table: tl.tensor, positions: tl.tensor, context: tl.tensor,
    size: tl.tensor, pairs: tl.tensor, x_stride: tl.tensor, out_stride: tl.tensor,
    INTERLEAVED: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """x, out [M, heads, size]; table [2, context, pairs]: cosines, sines. A program a head."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = tl.load(positions + token).to(tl.int64)
    pair = tl.arange(0, BLOCK)
    live = pair < pairs
    cos = tl.load(table + place * pairs + pair, mask=live, other=0.0).to(tl.float32)
    sin = tl.load(table + (context + place) * pairs + pair, mask=live, other=0.0).to(tl.float32)
    if INTERLEAVED:
        first_at = 2 * pair
        second_at = first_at + 1
    else:
        first_at = pair
        second_at = pair + pairs
    source = x + token * x_stride + head * size
    target = out + token * out_stride + head * size
    first = tl.load(source + first_at, mask=live, other=0.0).to(tl.float32)
    second = tl.load(source + second_at, mask=live, other=0.0).to(tl.float32)
    tl.store(target + first_at, first * cos - second * sin, mask=live)
    tl.store(target + second_at, second * cos + first * sin, mask=live)
    for start in range(2 * pairs, size, BLOCK):
        rest = start + pair
        tl.store(target + rest, tl.load(source + rest, mask=rest < size), mask=rest < size)


@triton.jit
def store(
    keys: tl.tensor, values: tl.tensor, cached_keys: tl.tensor, cached_values: tl.tensor,
    key_scales: tl.tensor, value_scales: tl.tensor, rows: tl.tensor, positions: tl.tensor,
    slots: tl.tensor, groups: tl.tensor, size: tl.tensor, key_stride: tl.tensor,
    value_stride: tl.tensor, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Keys and values [M, G, D] into position % slots of their rows; a program a token and group.

    Rounded to 8 bits by the largest of each D numbers where there are scales.
    """
    token, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, position = tl.load(rows + token).to(tl.int64), tl.load(positions + token).to(tl.int64)
    slot = (row * groups + group) * slots + position % slots
    at = tl.arange(0, BLOCK)
    live = at < size
    key = tl.load(keys + token * key_stride + group * size + at, mask=live, other=0.0)
    value = tl.load(values + token * value_stride + group * size + at, mask=live, other=0.0)
    put(key, cached_keys, key_scales, slot, size, at, live)
    put(value, cached_values, value_scales, slot, size, at, live)


@triton.jit
def put(
    numbers: tl.tensor, cached: tl.tensor, scales: tl.tensor, slot: tl.tensor, size: tl.tensor,
    at: tl.tensor, live: tl.tensor,
) -> None:  # fmt: skip
    """One head's numbers into a slot."""
    if scales is not None:
        wide = numbers.to(tl.float32)
        scale = (tl.max(tl.abs(wide), 0) / 127.0).to(scales.dtype.element_ty)
        tl.store(scales + slot, scale)
        codes = wide / tl.maximum(scale.to(tl.float32), 1e-30)
        # Adding 1.5 * 2^23 leaves no digits after the point: round to nearest, ties to even.
        codes = (codes + 12582912.0) - 12582912.0
        codes = tl.minimum(tl.maximum(codes, -127.0), 127.0)
        tl.store(cached + slot * size + at, codes.to(tl.int8), mask=live)
    else:
        tl.store(cached + slot * size + at, numbers, mask=live)
