"""Each operation in plain torch, with ``out``: the definition that other versions are held to.

M tokens of any rows stand one after another in ``[M, ...]`` buffers; padding never gets here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgelm.position import Rope


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor, scale: Tensor) -> Tensor:
    """x / rms(x) * weight over the last dimension (Zhang & Sennrich 2019, arXiv:1910.07467).

    Args:
        x: [M, N]. weight: [N]. out: [M, N], may not be ``x``.
        scale: [M, 1] float32 scratch.
    """
    torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32, out=scale)
    scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    out.copy_(x).mul_(scale)
    return out.mul_(weight)


def rotate(x: Tensor, rope: Rope, cos: Tensor, sin: Tensor, out: Tensor) -> Tensor:
    """Rotary embedding (Su et al. 2021, arXiv:2104.09864) of queries and keys together.

    Args:
        x, out: [M, heads, D], not the same memory. cos, sin: [M, 1, rotary_size / 2].
    """
    first, second = rope.pairs(x)
    out_first, out_second = rope.pairs(out)
    torch.mul(first, cos, out=out_first)
    out_first.addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out_second)
    out_second.addcmul_(first, sin)
    if rope.rotary_size < x.shape[-1]:
        out[..., rope.rotary_size :].copy_(x[..., rope.rotary_size :])
    return out


def causal_mask(queries: Tensor, keys: Tensor, out: Tensor) -> Tensor:
    """0 where a key may be seen and the lowest number where not, from positions alone.

    Args:
        queries: [T] positions. keys: [S] positions. out: [T, S] floating.
    """
    torch.gt(keys, queries[:, None], out=out)  # 1 where hidden
    return out.mul_(torch.finfo(out.dtype).min)


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float,
    out: Tensor, scratch: AttentionScratch, probabilities: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """softmax(scale * q k^T + mask) v for the tokens of one row (Vaswani et al. 2017).

    Args:
        queries: [T, H, D]. keys, values: [S, G, D] with H a multiple of G, any float dtype.
        mask: [T, S] added to the scores, or None when every key is visible.
        out: [T, H, D]. probabilities: [H, T, S] to be filled when somebody asked for them.
    """
    heads, size = queries.shape[1:]
    groups = keys.shape[1]
    keys, values = scratch.widen(keys, values)
    for start in range(0, queries.shape[0], scratch.tile):
        tile = queries[start : start + scratch.tile]
        count = tile.shape[0]
        q, scores, mixed = scratch.views(count, heads, groups, keys.shape[0], size)
        q.view(groups, -1, count, size).copy_(tile.unflatten(1, (groups, -1)).permute(1, 2, 0, 3))
        torch.bmm(q, keys.permute(1, 2, 0), out=scores)
        scores.mul_(scale)
        if mask is not None:
            per_head = scores.view(groups, -1, count, scores.shape[-1])
            per_head.add_(mask[start : start + count])
        softmax_(scores)
        if probabilities is not None:
            probabilities[:, start : start + count].copy_(scores.view(heads, count, -1))
        torch.bmm(scores, values.permute(1, 0, 2), out=mixed)
        out[start : start + count].copy_(mixed.view(heads, count, size).permute(1, 0, 2))
    return out


def softmax_(scores: Tensor) -> Tensor:
    """Softmax over the last dimension, in place."""
    return torch.softmax(scores, dim=-1, out=scores)


class AttentionScratch:
    """Working memory of ``attend``, float32: a tile of queries, its scores and its result.

    Args:
        buffer: [elements(...)] float32. widened: scratch for keys and values in float32, or None
            when the cache holds float32 already.
    """

    def __init__(self, buffer: Tensor, tile: int, widened: Tensor | None) -> None:
        self.buffer = buffer
        self.tile = tile
        self.widened = widened

    @staticmethod
    def elements(tile: int, heads: int, context: int, size: int) -> int:
        """Elements of ``buffer`` for ``tile`` queries at once over ``context`` keys."""
        return tile * heads * (context + 2 * size)

    def views(
        self, count: int, heads: int, groups: int, visible: int, size: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [G, rep * T, D], scores [G, rep * T, S] and result [G, rep * T, D]."""
        rows = heads * count
        q, scores, mixed, _ = self.buffer.split(
            [
                rows * size,
                rows * visible,
                rows * size,
                self.buffer.numel() - rows * (2 * size + visible),
            ]
        )
        per_group = rows // groups
        return (
            q.view(groups, per_group, size),
            scores.view(groups, per_group, visible),
            mixed.view(groups, per_group, size),
        )

    def widen(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [S, G, D] in float32, converted only when stored in fewer bits."""
        if self.widened is None:
            return keys, values
        wide = self.widened[: 2 * keys.numel()].view(2, *keys.shape)
        return wide[0].copy_(keys), wide[1].copy_(values)


def _silu(gate: Tensor, out: Tensor) -> Tensor:
    return torch.sigmoid(gate, out=out).mul_(gate)


ACTIVATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"silu": _silu}


def gated_activation(gate_up: Tensor, activation: str, out: Tensor) -> Tensor:
    """activation(gate) * up (Shazeer 2020, arXiv:2002.05202).

    Args:
        gate_up: [M, 2 * I], gate first. out: [M, I].
    """
    gate, up = gate_up.chunk(2, dim=-1)
    return ACTIVATIONS[activation](gate, out).mul_(up)


def add_(x: Tensor, branch: Tensor) -> Tensor:
    """Residual addition in place, both [M, N]."""
    return x.add_(branch)
