"""Building blocks of all families: projections, embeddings, norms and MLPs.

They are built without memory: a layer has shapes and names, the plan reads them, and the loader
adds the weights. Names are canonical (``layers.3.attn.q``); a family's table maps them to files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgelm.config import ModelConfig
from edgelm.ops.step import Step
from quant import QuantEmbedding, QuantLinear

if TYPE_CHECKING:
    from edgelm.ops import Ops


class Projection(nn.Module):
    """Matrices that multiply the same input; their outputs are concatenated.

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

    def forward(self, x: Tensor, out: Tensor, ops: Ops) -> Tensor:
        """x [M, K] -> out [M, sum of parts]."""
        start = 0
        for product in self.products:
            assert isinstance(product, QuantLinear)
            stop = start + product.shape[0]
            ops.linear(product, x, out[:, start:stop])
            start = stop
        return out


class Head(Projection):
    """Computes a task's results from final hidden states; its canonical name is ``head``.

    Args:
        task, source: the task, and the tensor's name in the file.
        tied: the matrix is the embedding's. softcap: bound of the results (Gemma 2's logits).
        labels: names of the rows, none for the language model. problem: regression or kind of
            classification, None if the config does not say.
    """

    def __init__(
        self, task: str, source: str, rows: int, in_size: int, bias: bool = False, *,
        tied: bool = False, softcap: float | None = None, labels: tuple[str, ...] = (),
        problem: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__({"head": rows}, in_size, bias)
        self.task, self.source, self.tied, self.softcap = task, source, tied, softcap
        self.labels, self.problem = labels, problem

    @property
    def is_language_model(self) -> bool:
        return self.task == "causal-lm"

    def logits(self, hidden: Tensor, out: Tensor, ops: Ops) -> Tensor:
        """hidden [M, N] -> float32 out [M, V], soft-capped."""
        if hidden.dtype == torch.float32:
            self(hidden, out, ops)
        else:
            out.copy_(self(hidden, hidden.new_empty(out.shape), ops))
        return out if self.softcap is None else ops.softcap_(out, self.softcap)


class Embedding(nn.Module):
    """Token id -> row. ``tied_to_head`` asks the loader for a layout that can also multiply."""

    def __init__(self, rows: int, size: int, tied_to_head: bool = False) -> None:
        super().__init__()
        self.shape = (rows, size)
        self.tied_to_head = tied_to_head
        self.table: QuantEmbedding | None = None

    @classmethod
    def for_head(cls, config: ModelConfig, head: Head | None) -> Embedding:
        """The embedding of a model, tied if its head is."""
        return cls(config.vocab_size, config.hidden_size, head is not None and head.tied)

    def forward(self, ids: Tensor, out: Tensor, ops: Ops) -> Tensor:
        """ids [M] -> out [M, N]."""
        assert self.table is not None
        return ops.embed(self.table, ids, out)


class Norm(nn.Module):
    """A norm over the last dimension; its vectors [size] and all statistics are float32.

    Args:
        offset: number to add to the stored weight (1 in Gemma, whose weight is 1 + w).
    """

    vectors: tuple[str, ...] = ("weight",)
    weight: Tensor

    def __init__(self, size: int, eps: float, offset: float = 0.0) -> None:
        super().__init__()
        self.size, self.eps, self.offset = size, eps, offset
        for vector in self.vectors:
            self.register_buffer(vector, None)


class RMSNorm(Norm):
    """x / rms(x) * weight; x [..., size] -> out, other memory."""

    def forward(self, x: Tensor, out: Tensor, step: Step) -> Tensor:
        return step.ops.rms_norm(x, self.weight, self.eps, out, step.buffers.statistics)


class LayerNorm(Norm):
    """(x - mean) / deviation * weight + bias; x [..., size] -> out, other memory."""

    vectors = ("weight", "bias")
    bias: Tensor

    def forward(self, x: Tensor, out: Tensor, step: Step) -> Tensor:
        return step.ops.layer_norm(
            x, self.weight, self.bias, self.eps, out, step.buffers.statistics
        )


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.activation = config.activation
        self.gate_up = Projection({"gate": inner, "up": inner}, hidden, bias)
        self.down = Projection({"down": hidden}, inner, bias)

    def forward(self, x: Tensor, out: Tensor, step: Step) -> Tensor:
        buffers = step.buffers
        self.gate_up(x, buffers.gate_up, step.ops)
        step.ops.gated_activation(buffers.gate_up, self.activation, buffers.activated)
        return self.down(buffers.activated, out, step.ops)


class MLP(nn.Module):
    """down(activation(up(x))), with biases."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.up = Projection({"up": config.intermediate_size}, config.hidden_size, True)
        self.down = Projection({"down": config.hidden_size}, config.intermediate_size, True)

    def forward(self, x: Tensor, out: Tensor, step: Step) -> Tensor:
        buffers = step.buffers
        self.up(x, buffers.gate_up, step.ops)
        step.ops.activation(buffers.gate_up, self.activation, buffers.activated)
        return self.down(buffers.activated, out, step.ops)


def part_names(prefix: str, parts: Sequence[str]) -> list[str]:
    """Canonical names of a projection's parts; that of the head has no prefix."""
    return [f"{prefix}.{part}" if prefix else part for part in parts]


def all_finite(x: Tensor) -> bool:
    """True if all of ``x`` is finite; one reduction, no copy."""
    if x.device.type == "mps":  # MPS has no float64
        return bool(torch.isfinite(x).all())
    return bool(torch.isfinite(x.sum(dtype=torch.float64)))
