"""Attention of many tokens of one row: tiles of queries over tiles of keys (Dao et al. 2022,
arXiv:2205.14135), where the mask comes from positions alone."""

from __future__ import annotations

import triton
import triton.language as tl

from edgelm.ops.kernels.decode import NEVER, read, scored, weighed


@triton.jit(do_not_specialize=["row", "position", "count"])
def attend_tile(
    queries: tl.tensor, cached_keys: tl.tensor, cached_values: tl.tensor, key_scales: tl.tensor,
    value_scales: tl.tensor, slopes: tl.tensor, out: tl.tensor, row: tl.tensor, position: tl.tensor,
    count: tl.tensor, slots: tl.tensor, groups: tl.tensor, share: tl.tensor, size: tl.tensor,
    query_stride: tl.tensor, out_stride: tl.tensor, window: tl.tensor, scale: tl.tensor,
    softcap: tl.tensor, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
    COMPUTE: tl.constexpr,
) -> None:  # fmt: skip
    """Attention out [T, H, size] of queries [T, H, size] from ``position`` on; keys are cached.

    A program takes BLOCK_T tokens of one head. window: None if all keys are visible.
    """
    first, head = tl.program_id(0) * BLOCK_T, tl.program_id(1)
    token, at = first + tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_D)
    exists = (token < count)[:, None] & (at < size)[None, :]
    offset = token.to(tl.int64)[:, None]
    q = queries + offset * query_stride + head * size + at[None, :]
    query = tl.load(q, mask=exists, other=0.0).to(COMPUTE)
    own = position + token
    last = position + count - 1  # all of the step's keys are written
    slope = None
    if slopes is not None:
        slope = tl.zeros([BLOCK_T], tl.float32) + tl.load(slopes + head)
    # Until the ring wraps around, a slot's number is its position.
    straight = last < slots
    end = tl.where(straight, tl.minimum(last, position + first + BLOCK_T - 1) + 1, slots)
    begin = last * 0
    if window is not None:
        oldest = tl.maximum(0, position + first - window + 1)
        begin = tl.where(straight, oldest // BLOCK_S * BLOCK_S, 0)
    largest = tl.full([BLOCK_T], NEVER, tl.float32)
    total = tl.zeros([BLOCK_T], tl.float32)
    mixed = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    for start in range(begin, end, BLOCK_S):
        slot = start + tl.arange(0, BLOCK_S)
        held = last - (last - slot + slots) % slots  # the position that the slot holds
        alive = (slot < end) & (held >= 0)
        place = (row.to(tl.int64) * groups + head // share) * slots + tl.where(alive, slot, 0)
        mask = alive[:, None] & (at < size)[None, :]
        key = read(cached_keys, key_scales, place, size, at, mask).to(COMPUTE)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee")
        distance = held[None, :] - own[:, None]
        scores = scored(scores, distance.to(tl.float32), slope, scale, softcap)
        seen = alive[None, :] & (distance <= 0)
        if window is not None:
            seen = seen & (distance > -window)
        scores = tl.where(seen, scores, NEVER)
        value = read(cached_values, value_scales, place, size, at, mask).to(COMPUTE)
        largest, total, mixed = weighed(scores, value, largest, total, mixed, COMPUTE)
    target = out + offset * out_stride + head * size + at[None, :]
    # Tokens beyond the last see no keys; they are not stored.
    tl.store(target, mixed / tl.where(total == 0.0, 1.0, total)[:, None], mask=exists)
