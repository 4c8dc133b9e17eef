"""Reference operations in plain torch, with ``out``: the definition other versions must match.

M tokens of any rows follow one another in ``[M, ...]`` buffers; there is no padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgelm.ops.position import Angles, Rope

if TYPE_CHECKING:
    from edgelm.ops.step import Step
    from quant import QuantEmbedding, QuantLinear


def linear(product: QuantLinear, x: Tensor, out: Tensor) -> Tensor:
    """Multiply x [M, K] by a matrix, plus its bias: out [M, N]."""
    return product.forward(x, out)


def embed(table: QuantEmbedding, ids: Tensor, out: Tensor) -> Tensor:
    """Look up rows ``ids`` [M] of a table: out [M, N]."""
    return table.forward(ids, out)


def scale_(x: Tensor, factor: float) -> Tensor:
    """Multiply x by factor in place, the factor rounded to x's dtype first."""
    return x.mul_(torch.tensor(factor, dtype=x.dtype))


def copy(x: Tensor, out: Tensor) -> Tensor:
    """out = x."""
    return out.copy_(x)


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor, scratch: Tensor) -> Tensor:
    """x / rms(x) * weight over the last dimension (Zhang & Sennrich 2019, arXiv:1910.07467).

    Args:
        x: [..., N]. weight: [N] float32. out: as ``x``, other memory.
        scratch: float32, at least two numbers for each vector of ``x``.
    """
    scale, _ = _statistics(x, scratch)
    torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32, out=scale)
    scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return out.copy_(x).mul_(scale).mul_(weight)


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, out: Tensor, scratch: Tensor
) -> Tensor:
    """(x - mean) / deviation * weight + bias over the last dimension (Ba et al. 2016).

    Arguments as for ``rms_norm``; bias: [N] float32.
    """
    scale, mean = _statistics(x, scratch)
    torch.mean(x, dim=-1, keepdim=True, dtype=torch.float32, out=mean)
    torch.sub(x, mean, out=out)
    torch.linalg.vector_norm(out, dim=-1, keepdim=True, dtype=torch.float32, out=scale)
    scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return out.mul_(scale).mul_(weight).add_(bias)


def _statistics(x: Tensor, scratch: Tensor) -> tuple[Tensor, Tensor]:
    """Two views [..., 1] of ``scratch``, one number for each vector of ``x``."""
    shape = (*x.shape[:-1], 1)
    count = x.numel() // x.shape[-1]
    return scratch[:count].view(shape), scratch[count : 2 * count].view(shape)


def rotate(x: Tensor, rope: Rope, angles: Angles, out: Tensor) -> Tensor:
    """Rotary embedding (Su et al. 2021, arXiv:2104.09864) of queries and keys together.

    x, out: [M, heads, D], not the same memory.
    """
    cos, sin = angles.cos, angles.sin
    assert cos is not None and sin is not None
    first, second = rope.pairs(x)
    out_first, out_second = rope.pairs(out)
    torch.mul(first, cos, out=out_first)
    out_first.addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out_second)
    out_second.addcmul_(first, sin)
    if rope.rotary_size < x.shape[-1]:
        out[..., rope.rotary_size :].copy_(x[..., rope.rotary_size :])
    return out


def causal_mask(queries: Tensor, keys: Tensor, window: int | None, out: Tensor) -> Tensor:
    """Mask: 0 where a key is visible, else the lowest number; computed from positions alone.

    Args:
        queries: [T] positions. keys: [S] positions, negative where a slot is empty.
        window: number of tokens a query sees, itself included; None: all.
        out: [T, S] floating.
    """
    hidden = keys > queries[:, None]
    hidden |= keys < 0
    if window is not None:
        hidden |= keys <= queries[:, None] - window
    return out.copy_(hidden).mul_(torch.finfo(out.dtype).min)


@dataclass(frozen=True)
class Scoring:
    """Score function of attention: scale * q k^T, soft-capped, plus slopes[head] * distance.

    softcap c: c * tanh(score / c) (Gemma 2, arXiv:2408.00118). slopes: [H] float32 of ALiBi
    (Press et al. 2022, arXiv:2108.12409).
    """

    scale: float
    softcap: float | None = None
    slopes: Tensor | None = None


def store(step: Step, layer: int, keys: Tensor, values: Tensor) -> None:
    """Write keys and values [M, G, D] of the step's tokens to the cache."""
    step.cache.write(layer, step.slots, keys, values)


def rotate_and_store(
    step: Step, layer: int, both: Tensor, values: Tensor, rope: Rope, out: Tensor
) -> Tensor:
    """Rotate queries and keys [M, H + G, D], and write keys and values [M, G, D] to the cache.

    Returns:
        The queries [M, H, D], in ``out`` [M, H + G, D], other memory than ``both``.
    """
    assert step.angles is not None
    heads = both.shape[1] - values.shape[1]
    rotate(both, rope, step.angles, out)
    store(step, layer, out[:, heads:], values)
    return out[:, :heads]


def attend(step: Step, layer: int, queries: Tensor, scoring: Scoring, out: Tensor) -> Tensor:
    """Attention of the step's tokens over the cached keys of their rows: queries, out [M, H, D].

    Probabilities are appended to the step's list if they were requested.
    """
    store = step.cache.store_of(layer)
    recorded: list[Tensor] = []
    for segment in step.segments:
        tokens = slice(segment.start, segment.start + segment.count)
        seen = segment.seen[store]
        stored = step.cache.read(layer, segment.row, segment.count)
        probabilities = None
        if step.attentions is not None:
            shape = (queries.shape[1], segment.count, stored.keys.shape[0])
            probabilities = queries.new_empty(shape)
        attend_row(
            queries[tokens], stored, seen.mask, seen.distances, scoring, out[tokens],
            step.scratch, probabilities,
        )  # fmt: skip
        if probabilities is not None:
            recorded.append(seen.by_position(probabilities))
    if step.attentions is not None:
        step.attentions.append(recorded)
    return out


def attend_row(
    queries: Tensor, stored: Stored, mask: Tensor | None, distances: Tensor, scoring: Scoring,
    out: Tensor, scratch: AttentionScratch, probabilities: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """softmax(scores + mask) v for the tokens of one row (Vaswani et al. 2017).

    Args:
        queries: [T, H, D]. stored: keys and values [S, G, D] with H a multiple of G.
        mask: [T, S] added to the scores, or None when every key is visible.
        distances: [S] float32, each key's position minus the last one's: those of ALiBi up to a
            constant, which softmax ignores.
        out: [T, H, D]. probabilities: [H, T, S], filled if they were requested.
    """
    heads, size = queries.shape[1:]
    keys, values = scratch.widen(stored)
    groups = keys.shape[1]
    for start in range(0, queries.shape[0], scratch.tile):
        tile = queries[start : start + scratch.tile]
        count = tile.shape[0]
        q, scores, mixed = scratch.views(count, heads, groups, keys.shape[0], size)
        q.view(groups, -1, count, size).copy_(tile.unflatten(1, (groups, -1)).permute(1, 2, 0, 3))
        torch.bmm(q, keys.permute(1, 2, 0), out=scores)
        _score_(scores, scoring)
        per_head = scores.view(heads, count, scores.shape[-1])
        if scoring.slopes is not None:
            per_head.addcmul_(scoring.slopes[:, None, None], distances)
        if mask is not None:
            per_head.add_(mask[start : start + count])
        softmax_(scores)
        if probabilities is not None:
            probabilities[:, start : start + count].copy_(scores.view(heads, count, -1))
        torch.bmm(scores, values.permute(1, 0, 2), out=mixed)
        out[start : start + count].copy_(mixed.view(heads, count, size).permute(1, 0, 2))
    return out


def _score_(scores: Tensor, scoring: Scoring) -> None:
    if scoring.softcap is None:
        scores.mul_(scoring.scale)
    else:
        softcap_(scores.mul_(scoring.scale), scoring.softcap)


def softcap_(x: Tensor, bound: float) -> Tensor:
    """bound * tanh(x / bound), in place."""
    return x.div_(bound).tanh_().mul_(bound)


def softmax_(scores: Tensor) -> Tensor:
    """Softmax over the last dimension, in place."""
    return torch.softmax(scores, dim=-1, out=scores)


@dataclass(frozen=True)
class Stored:
    """Keys and values [S, G, D] in the cache's dtype, with scales [S, G, 1] for int8."""

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None


class AttentionScratch:
    """Working memory of ``attend``, float32: a tile of queries, its scores and its result.

    Args:
        buffer: [elements(...)] float32. widened: scratch for keys and values in float32, or None
            if the cache is float32 already.
    """

    def __init__(self, buffer: Tensor, tile: int, widened: Tensor | None) -> None:
        self.buffer = buffer
        self.tile = tile
        self.widened = widened

    @staticmethod
    def elements(tile: int, heads: int, context: int, size: int) -> int:
        """Number of elements of ``buffer`` for ``tile`` queries at once over ``context`` keys."""
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

    def widen(self, stored: Stored) -> tuple[Tensor, Tensor]:
        """Return keys and values [S, G, D] in float32, converted only if stored in fewer bits."""
        if stored.keys.dtype == torch.float32:
            return stored.keys, stored.values
        assert self.widened is not None
        wide = self.widened[: 2 * stored.keys.numel()].view(2, *stored.keys.shape)
        wide[0].copy_(stored.keys)
        wide[1].copy_(stored.values)
        if stored.key_scales is not None and stored.value_scales is not None:
            wide[0].mul_(stored.key_scales)
            wide[1].mul_(stored.value_scales)
        return wide[0], wide[1]


def _silu(x: Tensor, out: Tensor) -> Tensor:
    return torch.sigmoid(x, out=out).mul_(x)


def _gelu_tanh(x: Tensor, out: Tensor) -> Tensor:
    return torch.ops.aten.gelu.out(x, approximate="tanh", out=out)


def _relu_squared(x: Tensor, out: Tensor) -> Tensor:
    return torch.clamp(x, min=0, out=out).square_()


ACTIVATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "silu": _silu,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu2": _relu_squared,
}


def activation(x: Tensor, name: str, out: Tensor) -> Tensor:
    """An element-wise function by transformers' name; x, out: [M, I], not the same memory."""
    return ACTIVATIONS[name](x, out)


def gated_activation(gate_up: Tensor, name: str, out: Tensor) -> Tensor:
    """activation(gate) * up (Shazeer 2020, arXiv:2002.05202).

    Args:
        gate_up: [M, 2 * I], gate first. out: [M, I].
    """
    gate, up = gate_up.chunk(2, dim=-1)
    return activation(gate, name, out).mul_(up)


def add_(x: Tensor, branch: Tensor) -> Tensor:
    """Residual addition in place, both [M, N]."""
    return x.add_(branch)
