"""The parts of a plan: every lasting share of memory has a name from one list, and a place."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple

Where = Literal["host", "device", "disk"]
"""``disk`` takes no memory."""


class PartName(StrEnum):
    """Purposes of memory. Memory for a purpose that is not listed here cannot be taken."""

    EMBED = "weights.embed"
    ATTENTION_WEIGHTS = "weights.attn"
    MLP = "weights.mlp"
    HEAD = "weights.head"
    VECTORS = "weights.other"  # norms and biases
    STREAMED = "weights.streamed"  # on the disk, read in every step
    STREAM_BUFFERS = "streaming buffers"
    LAYOUT_CACHE = "layout cache"  # in the cache folder
    ACTIVATIONS = "activations"
    ATTENTION = "attention"  # scores, masks, workspaces
    ROPE_TABLE = "rope table"
    KV_FULL = "kv cache.full"
    KV_WINDOW = "kv cache.window"
    RESTORE_POINTS = "restore points"
    SNAPSHOTS = "snapshots"
    LOGITS = "logits"
    KERNEL_SCRATCH = "kernel scratch"
    RECORDED_STEP = "recorded step"
    SPECULATION = "speculation"
    EVALUATION = "evaluation"
    HIDDEN_STATES = "hidden states"
    RUNTIME = "runtime"  # the process without a model
    RUNTIME_LEARNED = "runtime, learned"  # what earlier runs took beyond it


WEIGHTS = frozenset(
    {
        *(PartName.EMBED, PartName.ATTENTION_WEIGHTS, PartName.MLP, PartName.HEAD),
        *(PartName.VECTORS, PartName.STREAMED),
    }
)
KV_CACHE = frozenset({PartName.KV_FULL, PartName.KV_WINDOW})
PROCESS = frozenset({PartName.RUNTIME, PartName.RUNTIME_LEARNED})


class Share(NamedTuple):
    """A part in one place. A split model has some parts on the host and on the device."""

    name: str
    where: Where


@dataclass(frozen=True)
class Part:
    """One named share of memory, in bytes.

    ``name`` is a ``PartName``; those of a draft model begin with ``draft.``.
    """

    name: str
    bytes: int
    where: Where = "host"

    @property
    def share(self) -> Share:
        return Share(self.name, self.where)
