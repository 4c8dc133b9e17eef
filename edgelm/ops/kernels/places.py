"""Kernels for positions: rotary embedding, and writing keys and values to the cache.

Rows and positions are read on the device, so a captured step can be replayed for every token.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rotate_and_store(
    x: tl.tensor, values: tl.tensor, out: tl.tensor, table: tl.tensor, table_places: tl.tensor,
    cached_keys: tl.tensor, cached_values: tl.tensor, key_scales: tl.tensor,
    value_scales: tl.tensor, rows: tl.tensor, positions: tl.tensor, context: tl.tensor,
    queries: tl.tensor, slots: tl.tensor, groups: tl.tensor, size: tl.tensor, pairs: tl.tensor,
    x_stride: tl.tensor, value_stride: tl.tensor, out_stride: tl.tensor,
    INTERLEAVED: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Rotate x [M, queries + G, size]: queries to out, keys and values [M, G, size] to the cache.

    One program per token and head. table [2, context, pairs]: cosines, sines. PAIRS, REST, BLOCK:
    at least the pairs, the dimensions that are not rotated (0 for none), and the size.
    """
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = tl.load(table_places + token).to(tl.int64)
    pair = tl.arange(0, PAIRS)
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
    first = tl.load(source + first_at, mask=live, other=0.0).to(tl.float32)
    second = tl.load(source + second_at, mask=live, other=0.0).to(tl.float32)
    turned = (first * cos - second * sin).to(out.dtype.element_ty)
    other = (second * cos + first * sin).to(out.dtype.element_ty)
    if head < queries:
        target = out + token * out_stride + head * size
        tl.store(target + first_at, turned, mask=live)
        tl.store(target + second_at, other, mask=live)
        if REST:
            rest = 2 * pairs + tl.arange(0, REST)
            alive = rest < size
            tl.store(target + rest, tl.load(source + rest, mask=alive), mask=alive)
    else:
        group = head - queries
        slot = slot_of(rows, positions, token, group, slots, groups)
        largest = tl.maximum(magnitude(turned), magnitude(other))
        if REST:
            rest = 2 * pairs + tl.arange(0, REST)
            alive = rest < size
            straight = tl.load(source + rest, mask=alive, other=0.0)
            largest = tl.maximum(largest, magnitude(straight))
            put(straight, largest, cached_keys, key_scales, slot, size, rest, alive)
        put(turned, largest, cached_keys, key_scales, slot, size, first_at, live)
        put(other, largest, cached_keys, key_scales, slot, size, second_at, live)
        head_into(values + token * value_stride, group, cached_values, value_scales, slot, size,
                  BLOCK)  # fmt: skip


@triton.jit
def store(
    keys: tl.tensor, values: tl.tensor, cached_keys: tl.tensor, cached_values: tl.tensor,
    key_scales: tl.tensor, value_scales: tl.tensor, rows: tl.tensor, positions: tl.tensor,
    slots: tl.tensor, groups: tl.tensor, size: tl.tensor, key_stride: tl.tensor,
    value_stride: tl.tensor, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Write keys and values [M, G, D] to slot position % slots of their rows.

    One program per token and group. With scales, rounded to 8 bits by the largest of each D
    numbers.
    """
    token, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = slot_of(rows, positions, token, group, slots, groups)
    head_into(keys + token * key_stride, group, cached_keys, key_scales, slot, size, BLOCK)
    head_into(values + token * value_stride, group, cached_values, value_scales, slot, size, BLOCK)


@triton.jit
def slot_of(
    rows: tl.tensor, positions: tl.tensor, token: tl.tensor, group: tl.tensor, slots: tl.tensor,
    groups: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """Start of a token's numbers of a group in the cache, in heads."""
    row, position = tl.load(rows + token).to(tl.int64), tl.load(positions + token).to(tl.int64)
    return (row * groups + group) * slots + position % slots


@triton.jit
def head_into(
    source: tl.tensor, group: tl.tensor, cached: tl.tensor, scales: tl.tensor, slot: tl.tensor,
    size: tl.tensor, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Copy a head's numbers to its slot."""
    at = tl.arange(0, BLOCK)
    live = at < size
    numbers = tl.load(source + group * size + at, mask=live, other=0.0)
    put(numbers, magnitude(numbers), cached, scales, slot, size, at, live)


@triton.jit
def magnitude(numbers: tl.tensor) -> tl.tensor:
    """The largest magnitude of a block."""
    return tl.max(tl.abs(numbers.to(tl.float32)), 0)


@triton.jit
def put(
    numbers: tl.tensor, largest: tl.tensor, cached: tl.tensor, scales: tl.tensor, slot: tl.tensor,
    size: tl.tensor, at: tl.tensor, live: tl.tensor,
) -> None:  # fmt: skip
    """Write some of a head's numbers to a slot; largest: the magnitude that sets its scale."""
    if scales is not None:
        scale = (largest / 127.0).to(scales.dtype.element_ty)
        tl.store(scales + slot, scale)
        codes = numbers.to(tl.float32) / tl.maximum(scale.to(tl.float32), 1e-30)
        # Adding 1.5 * 2^23 leaves no fractional digits: round to nearest, ties to even.
        codes = (codes + 12582912.0) - 12582912.0
        codes = tl.minimum(tl.maximum(codes, -127.0), 127.0)
        tl.store(cached + slot * size + at, codes.to(tl.int8), mask=live)
    else:
        tl.store(cached + slot * size + at, numbers, mask=live)
