"""The one forward of every family: embed, layers, final norm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from edgelm.attention import Attention
from edgelm.errors import NonFiniteError
from edgelm.layers import Embedding, GatedMLP, Projection, RMSNorm, all_finite, part_names
from edgelm.step import Step


class DecoderLayer(nn.Module):
    """x += attn(attn_norm(x)); x += mlp(mlp_norm(x))."""

    def __init__(self, attn_norm: RMSNorm, attn: Attention, mlp_norm: RMSNorm, mlp: GatedMLP):
        super().__init__()
        self.attn_norm, self.attn = attn_norm, attn
        self.mlp_norm, self.mlp = mlp_norm, mlp

    def forward(self, x: Tensor, step: Step) -> None:
        """x [M, N], changed in place."""
        buffers, add_ = step.buffers, step.ops.add_
        add_(x, self.attn(self.attn_norm(x, buffers.normed, step), buffers.branch, step))
        add_(x, self.mlp(self.mlp_norm(x, buffers.normed, step), buffers.branch, step))


class Decoder(nn.Module):
    """Token ids or embeddings -> final hidden states; ``head`` makes logits of them."""

    def __init__(
        self, embed: Embedding, layers: Iterable[nn.Module], norm: RMSNorm, head: Projection | None
    ) -> None:
        super().__init__()
        self.embed = embed
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.head = head

    def projections(self) -> Iterator[tuple[str, Projection]]:
        """Every projection with the canonical prefix of its parts, ``layers.3.attn``, in order."""
        for path, module in self.named_modules():
            if isinstance(module, Projection):
                yield path.rpartition(".")[0], module

    def matrices(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Canonical name and shape [N, K] of every stored matrix; a tied head has none."""
        yield "embed", self.embed.shape
        for prefix, projection in self.projections():
            if projection is self.head and self.embed.tied_to_head:
                continue
            names = part_names(prefix, list(projection.parts))
            for name, rows in zip(names, projection.parts.values(), strict=True):
                yield name, (rows, projection.in_size)

    def forward(self, tokens: Tensor, step: Step) -> Tensor:
        """ids [M] or embeddings [M, N] -> hidden states [M, N] after the final norm.

        Returned in a buffer that the next step overwrites. Hidden states are recorded as
        transformers does: the embedding, each layer's input after it, and the final norm last.
        """
        x = step.buffers.hidden
        if tokens.is_floating_point():
            x.copy_(tokens)
        else:
            self.embed(tokens, x)
        _check(x, "embed", step)
        for index, layer in enumerate(self.layers):
            if step.hidden_states is not None:
                step.hidden_states.append(x.clone())
            layer(x, step)
            _check(x, f"layers.{index}", step)
        out = self.norm(x, step.buffers.normed, step)
        if step.hidden_states is not None:
            step.hidden_states.append(out.clone())
        return out


def _check(x: Tensor, name: str, step: Step) -> None:
    if step.find_nonfinite and not all_finite(x):
        raise NonFiniteError(
            f"{name} produced NaN or infinity. The weights are damaged or overflow in "
            f"{str(x.dtype).removeprefix('torch.')}; load with dtype='float32', quant='none' to "
            "tell which."
        )
