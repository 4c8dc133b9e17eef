"""The one attention: grouped queries, rotary positions, keys and values from the cache."""

from __future__ import annotations

from torch import Tensor, nn

from edgelm.layers import Projection
from edgelm.position import Rope
from edgelm.step import Step


class Attention(nn.Module):
    """H query heads share G key/value heads of size D.

    Args:
        scale: factor on the scores, D ** -0.5 in most families.
        rope: how queries and keys are rotated; its table is read through the step.
        qkv_bias, out_bias: whether q, k, v and o have biases.
    """

    def __init__(
        self, hidden: int, heads: int, groups: int, size: int, *, scale: float, rope: Rope,
        qkv_bias: bool, out_bias: bool, layer: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, size
        self.scale = scale
        self.rope = rope
        self.layer = layer
        parts = {"q": heads * size, "k": groups * size, "v": groups * size}
        self.qkv = Projection(parts, hidden, qkv_bias)
        self.out = Projection({"o": hidden}, heads * size, out_bias)

    def forward(self, x: Tensor, out: Tensor, step: Step) -> Tensor:
        """x [M, N] -> out [M, N]; writes the tokens' keys and values into the cache first."""
        buffers = step.buffers
        self.qkv(x, buffers.qkv)
        count = self.heads + self.groups
        by_head = buffers.qkv.view(x.shape[0], -1, self.size)
        step.ops.rotate(by_head[:, :count], self.rope, step.cos, step.sin, buffers.rotated)
        step.cache.write(
            self.layer, step.slots, buffers.rotated[:, self.heads :], by_head[:, count:]
        )
        self._attend(buffers.rotated[:, : self.heads], step)
        return self.out(buffers.attended, out)

    def _attend(self, queries: Tensor, step: Step) -> None:
        mixed = step.buffers.attended.view(-1, self.heads, self.size)
        wanted: list[Tensor] = []
        for segment in step.segments:
            tokens = slice(segment.start, segment.start + segment.count)
            keys, values = step.cache.read(self.layer, segment.row, segment.count)
            probabilities = None
            if step.attentions is not None:
                probabilities = queries.new_empty(self.heads, segment.count, keys.shape[0])
                wanted.append(probabilities)
            step.ops.attend(
                queries[tokens], keys, values, segment.mask, self.scale, mixed[tokens],
                step.scratch, probabilities,
            )  # fmt: skip
        if step.attentions is not None:
            step.attentions.append(wanted)
