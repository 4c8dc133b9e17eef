"""Attention of single tokens: keys in pieces of a fixed size, joined in a fixed order.

A program takes one token, the query heads of one group, and SPLIT slots of the row; ``join`` adds
up the results of the pieces (Dao et al. 2023, "Flash-Decoding"). The pieces are the same at every
length and in any batch, so a token's bits do not depend on other rows.
"""

from __future__ import annotations

import triton
import triton.language as tl

from edgelm.ops.kernels.rows import tanh

NEVER = tl.constexpr(float("-inf"))


@triton.jit
def read(
    cached: tl.tensor, scales: tl.tensor, slot: tl.tensor, size: tl.tensor, at: tl.tensor,
    mask: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """Numbers [S, D] of cached keys or values as float32; slot: where each begins, in D."""
    numbers = tl.load(cached + slot[:, None] * size + at[None, :], mask=mask, other=0)
    numbers = numbers.to(tl.float32)
    if scales is not None:
        numbers = numbers * tl.load(scales + slot).to(tl.float32)[:, None]
    return numbers


@triton.jit
def scored(
    scores: tl.tensor, distances: tl.tensor, slopes: tl.tensor, scale: tl.tensor,
    softcap: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """scale * q k^T, soft-capped unless ``softcap`` is None, plus slopes [H] * distance."""
    scores = scores * scale
    if softcap is not None:
        scores = softcap * tanh(scores / softcap)
    if slopes is not None:
        scores = scores + slopes[:, None] * distances
    return scores


@triton.jit
def weighed(
    scores: tl.tensor, value: tl.tensor, largest: tl.tensor, total: tl.tensor, mixed: tl.tensor,
    COMPUTE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """Update largest score [Q], sum of weights [Q] and weighted values [Q, D] by a tile of keys.

    scores: [Q, S], minus infinity for invisible keys. value: [S, D].
    """
    now = tl.maximum(largest, tl.max(scores, 1))
    safe = tl.where(now == NEVER, 0.0, now)
    weights, kept = tl.exp(scores - safe[:, None]), tl.exp(largest - safe)
    mixed = mixed * kept[:, None]
    mixed += tl.dot(weights.to(COMPUTE), value, input_precision="ieee")
    return now, total * kept + tl.sum(weights, 1), mixed


@triton.jit
def attend_piece(
    queries: tl.tensor, cached_keys: tl.tensor, cached_values: tl.tensor, key_scales: tl.tensor,
    value_scales: tl.tensor, rows: tl.tensor, positions: tl.tensor, slopes: tl.tensor,
    partial: tl.tensor, slots: tl.tensor, groups: tl.tensor, size: tl.tensor,
    query_stride: tl.tensor, window: tl.tensor, scale: tl.tensor, softcap: tl.tensor,
    SHARE: tl.constexpr, HEADS: tl.constexpr, SPLIT: tl.constexpr, BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr, COMPUTE: tl.constexpr,
) -> None:  # fmt: skip
    """Compute largest score, sum of weights and weighted values of one piece into ``partial``.

    partial: float32 [M, H, pieces, size + 2]. SHARE: query heads of a group; HEADS: at least that
    and 16, the minimum of the tensor cores. window: None if all keys are visible.
    """
    token, group, piece = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    row, position = tl.load(rows + token).to(tl.int64), tl.load(positions + token).to(tl.int32)
    at, own = tl.arange(0, BLOCK_D), tl.arange(0, HEADS)
    heads = group * SHARE + own
    exists = (own < SHARE)[:, None] & (at < size)[None, :]
    q = queries + token * query_stride + heads[:, None] * size + at[None, :]
    query = tl.load(q, mask=exists, other=0.0).to(COMPUTE)
    slope = None
    if slopes is not None:
        slope = tl.load(slopes + heads, mask=own < SHARE, other=0.0)
    largest = tl.full([HEADS], NEVER, tl.float32)
    total = tl.zeros([HEADS], tl.float32)
    mixed = tl.zeros([HEADS, BLOCK_D], tl.float32)
    # Slots beyond the newest position are empty until a ring wraps around.
    end = tl.minimum(tl.minimum((piece + 1) * SPLIT, slots), position + 1)
    for start in range(piece * SPLIT, end, BLOCK_S):
        slot = start + tl.arange(0, BLOCK_S)
        back = (position - slot + slots) % slots  # distance of the slot's position from the newest
        seen = (slot < end) & (back <= position)
        if window is not None:
            seen = seen & (back < window)
        place = (row * groups + group) * slots + tl.where(seen, slot, 0)
        mask = seen[:, None] & (at < size)[None, :]
        key = read(cached_keys, key_scales, place, size, at, mask).to(COMPUTE)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee")
        scores = scored(scores, -back.to(tl.float32)[None, :], slope, scale, softcap)
        scores = tl.where(seen[None, :], scores, NEVER)
        value = read(cached_values, value_scales, place, size, at, mask).to(COMPUTE)
        largest, total, mixed = weighed(scores, value, largest, total, mixed, COMPUTE)
    pieces = tl.num_programs(2)
    base = ((token * groups * SHARE + heads) * pieces + piece) * (size + 2)
    tl.store(partial + base, largest, mask=own < SHARE)
    tl.store(partial + base + 1, total, mask=own < SHARE)
    tl.store(partial + base[:, None] + 2 + at[None, :], mixed, mask=exists)


@triton.jit
def join(
    partial: tl.tensor, out: tl.tensor, pieces: tl.tensor, size: tl.tensor, out_stride: tl.tensor,
    BLOCK_D: tl.constexpr,
) -> None:  # fmt: skip
    """Join the pieces' results in order: out [M, H, size]. One program per token and head."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = tl.arange(0, BLOCK_D)
    live = at < size
    base = partial + (token * tl.num_programs(1) + head) * pieces * (size + 2)
    largest = tl.load(base)
    total = tl.load(base + 1)
    mixed = tl.load(base + 2 + at, mask=live, other=0.0)
    for piece in range(1, pieces):
        own = base + piece * (size + 2)
        theirs = tl.load(own)
        now = tl.maximum(largest, theirs)
        safe = tl.where(now == NEVER, 0.0, now)
        kept, added = tl.exp(largest - safe), tl.exp(theirs - safe)
        total = total * kept + tl.load(own + 1) * added
        mixed = mixed * kept + tl.load(own + 2 + at, mask=live, other=0.0) * added
        largest = now
    tl.store(out + token * out_stride + head * size + at, mixed / total, mask=live)
