"""Decoder: the forward pass shared by all families: embedding, layers, final norm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from edgelm.errors import NonFiniteError
from edgelm.models.attention import Attention
from edgelm.models.layers import (
    MLP,
    Embedding,
    GatedMLP,
    Head,
    Norm,
    Projection,
    all_finite,
    part_names,
)
from edgelm.ops.step import Step


class DecoderLayer(nn.Module):
    """x += attn(attn_norm(x)); x += mlp(mlp_norm(x)).

    Args:
        attn_out_norm, mlp_out_norm: norms of a branch's result (Gemma 2).
        keep_normed: the normed input, not x, is added to the branch (some BLOOMs).
    """

    def __init__(
        self, attn_norm: Norm, attn: Attention, mlp_norm: Norm, mlp: GatedMLP | MLP, *,
        attn_out_norm: Norm | None = None, mlp_out_norm: Norm | None = None,
        keep_normed: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.attn_norm, self.attn, self.attn_out_norm = attn_norm, attn, attn_out_norm
        self.mlp_norm, self.mlp, self.mlp_out_norm = mlp_norm, mlp, mlp_out_norm
        self.keep_normed = keep_normed

    def forward(self, x: Tensor, step: Step) -> None:
        """x [M, N], changed in place."""
        self._branch(x, self.attn_norm, self.attn, self.attn_out_norm, step)
        self._branch(x, self.mlp_norm, self.mlp, self.mlp_out_norm, step)

    def _branch(
        self, x: Tensor, norm: Norm, block: nn.Module, out_norm: Norm | None, step: Step
    ) -> None:
        normed = norm(x, step.buffers.normed, step)
        if self.keep_normed:
            step.ops.copy(normed, x)
        out = block(normed, step.buffers.branch, step)
        if out_norm is not None:
            out = out_norm(out, step.buffers.normed, step)
        step.ops.add_(x, out)


class Decoder(nn.Module):
    """Token ids or embeddings -> final hidden states, from which ``head`` computes logits.

    Args:
        embed_scale: factor on looked-up embeddings, in the activations' dtype (Gemma).
        embed_norm: norm of the embeddings, including those passed as input (BLOOM).
    """

    def __init__(
        self, embed: Embedding, layers: Iterable[nn.Module], norm: Norm, head: Head | None,
        *, embed_scale: float | None = None, embed_norm: Norm | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embed, self.embed_scale, self.embed_norm = embed, embed_scale, embed_norm
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.head = head

    @property
    def outputs(self) -> int:
        """Number of outputs of the head per token, 0 without a head."""
        return self.head.out_size if self.head is not None else 0

    def projections(self) -> Iterator[tuple[str, Projection]]:
        """Every projection with the canonical prefix of its parts, ``layers.3.attn``, in order."""
        for path, module in self.named_modules():
            if isinstance(module, Projection):
                yield path.rpartition(".")[0], module

    def norms(self) -> Iterator[tuple[str, Norm]]:
        """Every norm with its canonical name."""
        for path, module in self.named_modules():
            if isinstance(module, Norm):
                yield path, module

    def matrices(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Canonical name and shape [N, K] of every stored matrix; a tied head is not stored."""
        yield "embed", self.embed.shape
        for prefix, projection in self.projections():
            if projection is self.head and self.embed.tied_to_head:
                continue
            names = part_names(prefix, list(projection.parts))
            for name, rows in zip(names, projection.parts.values(), strict=True):
                yield name, (rows, projection.in_size)

    def biases(self) -> Iterator[tuple[str, int]]:
        """Canonical name and size of every bias."""
        for prefix, projection in self.projections():
            if projection.bias:
                yield from zip(
                    part_names(prefix, list(projection.parts)), projection.parts.values(),
                    strict=True,
                )  # fmt: skip

    def forward(self, tokens: Tensor, step: Step) -> Tensor:
        """ids [M] or embeddings [M, N] -> hidden states [M, N] after the final norm.

        Returned in a buffer that the next step overwrites. Hidden states are recorded as
        transformers does: the embedding, each layer's input after it, and the final norm last.
        """
        x = self._embedded(tokens, step)
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

    def _embedded(self, tokens: Tensor, step: Step) -> Tensor:
        x = step.buffers.hidden
        if tokens.is_floating_point():
            x.copy_(tokens)
        else:
            self.embed(tokens, x, step.ops)
            if self.embed_scale is not None:
                step.ops.scale_(x, self.embed_scale)
        if self.embed_norm is not None:
            step.ops.copy(self.embed_norm(x, step.buffers.normed, step), x)
        return x


def _check(x: Tensor, name: str, step: Step) -> None:
    if step.find_nonfinite and not all_finite(x):
        raise NonFiniteError(
            f"{name} produced NaN or infinity. The weights are damaged or overflow in "
            f"{str(x.dtype).removeprefix('torch.')}; load with dtype='float32', quant='none' to "
            "tell which."
        )
