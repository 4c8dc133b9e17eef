"""Attention of all families: grouped queries, rotary or ALiBi positions, full or ring caches."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from edgelm.config import ModelConfig
from edgelm.models.layers import LayerNorm, Projection
from edgelm.ops.position import Alibi, Rope
from edgelm.ops.reference import Scoring
from edgelm.ops.step import Step


class Attention(nn.Module):
    """H query heads share G key/value heads of size D.

    Args:
        position: the position encoding; the table of a Rope comes with the step.
        out_bias: whether o has a bias; q, k and v follow the config.
        qk_norm_eps: eps of a LayerNorm over each head of q and k, None without such norms.
    """

    def __init__(
        self, config: ModelConfig, layer: int, position: Rope | Alibi, *, out_bias: bool,
        qk_norm_eps: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        heads, groups, size = config.num_heads, config.num_kv_heads, config.head_size
        self.heads, self.size, self.layer = heads, size, layer
        self.position = position
        slopes = position.slopes if isinstance(position, Alibi) else None
        self.scoring = Scoring(config.scale, config.attention_softcap, slopes)
        parts = {"q": heads * size, "k": groups * size, "v": groups * size}
        self.qkv = Projection(parts, config.hidden_size, config.attention_bias)
        self.out = Projection({"o": config.hidden_size}, heads * size, out_bias)
        self.q_norm = None if qk_norm_eps is None else LayerNorm(size, qk_norm_eps)
        self.k_norm = None if qk_norm_eps is None else LayerNorm(size, qk_norm_eps)

    def move(self, device: torch.device) -> None:
        """Move the slopes of ALiBi, which are not weights, to the device of the scores."""
        if self.scoring.slopes is not None:
            self.scoring = replace(self.scoring, slopes=self.scoring.slopes.to(device))

    def forward(self, x: Tensor, out: Tensor, step: Step) -> Tensor:
        """x [M, N] -> out [M, N]; first writes the tokens' keys and values to the cache."""
        buffers = step.buffers
        self.qkv(x, buffers.qkv, step.ops)
        by_head = buffers.qkv.view(x.shape[0], -1, self.size)
        count = buffers.rotated.shape[1]
        queries = self._place(by_head[:, :count], by_head[:, count:], buffers.rotated, step)
        mixed = buffers.attended.view(-1, self.heads, self.size)
        step.ops.attend(step, self.layer, queries, self.scoring, mixed)
        return self.out(buffers.attended, out, step.ops)

    def _place(self, both: Tensor, values: Tensor, other: Tensor, step: Step) -> Tensor:
        """Norm and rotate queries and keys [M, H + G, D] in either buffer, and write the cache.

        Returns the queries [M, H, D].
        """
        if self.q_norm is not None and self.k_norm is not None:
            self.q_norm(both[:, : self.heads], other[:, : self.heads], step)
            self.k_norm(both[:, self.heads :], other[:, self.heads :], step)
            both, other = other, both
        if isinstance(self.position, Alibi):
            step.ops.store(step, self.layer, both[:, self.heads :], values)
            return both[:, : self.heads]
        return step.ops.rotate_and_store(step, self.layer, both, values, self.position, other)
