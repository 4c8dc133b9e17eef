"""What families are built from: projections, embeddings, norms and the gated MLP.

Built without memory: a layer knows its shapes and names, the plan reads them, and the loader puts
the weights in. Names are canonical (``layers.3.attn.q``); a family's table ties them to files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from edgelm.step import Step
from quant import QuantEmbedding, QuantLinear


class Projection(nn.Module):
    """Matrices that multiply the same input, their outputs side by side.

    Args:
        parts: output size of each matrix by its name, in order; the loader fuses neighbours of
            one scheme into one product.
        in_size: K of all of them. bias: whether each has a bias.
    """

    def __init__(self, parts: dict[str, int], in_size: int, bias: bool = False) -> None:
        super().__init__()
        self.parts = parts
        self.in_size = in_size
        self.bias = bias
        self.products = nn.ModuleList()

    @property
    def out_size(self) -> int:
        return sum(self.parts.values())

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        """x [M, K] -> out [M, sum of parts]."""
        start = 0
        for product in self.products:
            assert isinstance(product, QuantLinear)
            stop = start + product.shape[0]
            product(x, out[:, start:stop])
            start = stop
        return out


class Embedding(nn.Module):
    """Token id -> row. ``tied_to_head`` asks the loader for a layout that can also multiply."""

    def __init__(self, rows: int, size: int, tied_to_head: bool = False) -> None:
        super().__init__()
        self.shape = (rows, size)
        self.tied_to_head = tied_to_head
        self.table: QuantEmbedding | None = None

    def forward(self, ids: Tensor, out: Tensor) -> Tensor:
        """ids [M] -> out [M, N]."""
        assert self.table is not None
        return self.table(ids, out)


class RMSNorm(nn.Module):
    """Weight [size] in the activations' dtype, statistics in float32."""

    weight: Tensor

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.size = size
        self.eps = eps
        self.register_buffer("weight", None)

    def forward(self, x: Tensor, out: Tensor, step: Step) -> Tensor:
        return step.ops.rms_norm(x, self.weight, self.eps, out, step.buffers.norm_scale)


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x))."""

    def __init__(self, hidden: int, intermediate: int, activation: str, bias: bool) -> None:
        super().__init__()
        self.activation = activation
        self.gate_up = Projection({"gate": intermediate, "up": intermediate}, hidden, bias)
        self.down = Projection({"down": hidden}, intermediate, bias)

    def forward(self, x: Tensor, out: Tensor, step: Step) -> Tensor:
        buffers = step.buffers
        self.gate_up(x, buffers.gate_up)
        step.ops.gated_activation(buffers.gate_up, self.activation, buffers.activated)
        return self.down(buffers.activated, out)


def part_names(prefix: str, parts: Sequence[str]) -> list[str]:
    """Canonical names of a projection's parts; the head stands alone, without a prefix."""
    return [f"{prefix}.{part}" if prefix else part for part in parts]


def norm_weights(model: nn.Module) -> Iterator[tuple[str, RMSNorm]]:
    """Every norm with its canonical name."""
    for path, module in model.named_modules():
        if isinstance(module, RMSNorm):
            yield path, module


def all_finite(x: Tensor) -> bool:
    """Whether all of ``x`` is finite; one reduction, no copy."""
    return bool(torch.isfinite(x.sum(dtype=torch.float64)))
