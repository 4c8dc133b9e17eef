"""Step: one forward pass over a number of tokens, and the static buffers it uses.

A step holds M tokens of one or more rows, one row's tokens after another and never padding.
Lengths and positions live here and in the cache, outside the layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgelm.budget.ledger import Take
from edgelm.budget.parts import PartName
from edgelm.budget.plan import MOST_DECODE_TOKENS
from edgelm.config import ModelConfig
from edgelm.ops.position import Angles, Rope
from edgelm.ops.reference import AttentionScratch

if TYPE_CHECKING:
    from edgelm.ops import Ops
    from edgelm.ops.cache import KVCache

_QUERY_TILE = 64  # queries scored at once: bounds the score buffer, not the result


@dataclass(frozen=True)
class Seen:
    """Visible keys of one store for a segment's tokens.

    mask: [count, visible] added to the scores; None: all keys are visible.
    distances: [visible] float32, each key's position minus the last one's.
    length: number of tokens of the row, these included.
    """

    mask: Tensor | None
    distances: Tensor
    length: int

    def by_position(self, probabilities: Tensor) -> Tensor:
        """Probabilities [H, T, visible] by slot -> [H, T, positions], zeros at forgotten keys."""
        found = probabilities.new_zeros(*probabilities.shape[:2], self.length)
        found[:, :, self.distances.long() + self.length - 1] = probabilities
        return found


@dataclass(frozen=True)
class Segment:
    """Tokens ``start`` to ``start + count`` of a step, which continue ``row`` at ``position``.

    seen: one per store of the cache, since layers with a window hold other keys than those without.
    """

    row: int
    start: int
    count: int
    position: int
    seen: list[Seen]


@dataclass(frozen=True)
class Buffers:
    """Views for M tokens. N hidden size, H + 2G heads of D in ``qkv``, I intermediate size."""

    hidden: Tensor  # [M, N] the residual stream
    normed: Tensor  # [M, N] input of a branch
    branch: Tensor  # [M, N] output of a branch
    qkv: Tensor  # [M, (H + 2G) * D]
    rotated: Tensor  # [M, H + G, D] queries and keys
    attended: Tensor  # [M, H * D]
    gate_up: Tensor  # [M, 2 * I], or [M, I] in families without a gate
    activated: Tensor  # [M, I]
    statistics: Tensor  # float32 scratch of norms: two numbers for each token and head


@dataclass
class Step:
    """State that layers need in addition to their input."""

    ops: Ops
    buffers: Buffers
    scratch: AttentionScratch
    cache: KVCache
    segments: list[Segment]
    slots: list[Tensor]  # [M] per store: cache slot of each token's key and value
    rows: Tensor  # [M] int64: the cache row that each token continues
    positions: Tensor  # [M] int64: and its position there
    angles: Angles | None  # None without rotary positions
    hidden_states: list[Tensor] | None = None  # filled if requested: [M, N] each
    attentions: list[list[Tensor]] | None = None  # per layer and segment: [H, count, visible]
    host: Step | None = None  # the same on the CPU, if a model is split
    find_nonfinite: bool = False  # check every layer's output, to name the first bad one


class Workspace:
    """The buffers of one engine, allocated once at their largest size.

    Args:
        config, tokens, context, dtype, kv: sizes; ``tokens`` is the largest M of a step.
        take: the Ledger's function to allocate memory under a part's name.
    """

    def __init__(
        self, config: ModelConfig, tokens: int, context: int, dtype: torch.dtype,
        kv: torch.dtype, take: Take,
    ) -> None:  # fmt: skip
        self.config = config
        self.tokens = tokens
        self._memory = {
            name: take(part, (elements,), kind)
            for name, (part, elements, kind) in workspace_sizes(
                config, tokens, context, dtype, kv
            ).items()
        }
        self.scratch = AttentionScratch(
            self._memory["scores"], min(_QUERY_TILE, tokens), self._memory.get("widened")
        )
        self._buffers: dict[int, Buffers] = {}

    def mask(self, start: int, count: int, visible: int) -> Tensor:
        """Buffer for one segment's mask [count, visible]; ``start`` elements are already in use."""
        return self._memory["masks"][start : start + count * visible].view(count, visible)

    def angles(self, count: int) -> tuple[Tensor, Tensor]:
        """Buffers for cos and sin of ``count`` tokens: [M, 1, rotary_size / 2] each."""
        assert self.config.rope is not None
        pairs = self.config.rope.rotary_size // 2
        both = self._memory["angles"][: 2 * count * pairs].view(2, count, 1, pairs)
        return both[0], both[1]

    def buffers(self, count: int) -> Buffers:
        """Views for ``count`` tokens; those for the small counts of decode steps are cached."""
        if count in self._buffers:
            return self._buffers[count]
        views = {}
        for name, width in _widths(self.config).items():
            views[name] = self._memory[name][: count * width].view(count, width)
        heads = self.config.num_heads + self.config.num_kv_heads
        views["rotated"] = views["rotated"].view(count, heads, self.config.head_size)
        buffers = Buffers(**views, statistics=self._memory["statistics"])
        if count <= MOST_DECODE_TOKENS:
            self._buffers[count] = buffers
        return buffers


def _widths(config: ModelConfig) -> dict[str, int]:
    heads, groups, size = config.num_heads, config.num_kv_heads, config.head_size
    return {
        "hidden": config.hidden_size,
        "normed": config.hidden_size,
        "branch": config.hidden_size,
        "qkv": (heads + 2 * groups) * size,
        "rotated": (heads + groups) * size,
        "attended": heads * size,
        "gate_up": (2 if config.gated else 1) * config.intermediate_size,
        "activated": config.intermediate_size,
    }


def workspace_sizes(
    config: ModelConfig, tokens: int, context: int, dtype: torch.dtype, kv: torch.dtype
) -> dict[str, tuple[PartName, int, torch.dtype]]:
    """Name -> (plan part, elements, dtype) of every buffer, used by both plan and engine."""
    sizes = {k: (PartName.ACTIVATIONS, tokens * w, dtype) for k, w in _widths(config).items()}
    heads = config.num_heads + config.num_kv_heads
    sizes["statistics"] = (PartName.ACTIVATIONS, 2 * tokens * heads, torch.float32)
    pairs = config.rope.rotary_size // 2 if config.rope else 0
    sizes["angles"] = (PartName.ACTIVATIONS, 2 * tokens * pairs, dtype)
    tile = min(_QUERY_TILE, tokens)
    scores = AttentionScratch.elements(tile, config.num_heads, context, config.head_size)
    sizes["scores"] = (PartName.ATTENTION, scores, torch.float32)
    masks = tokens * context * len(set(config.windows))
    sizes["masks"] = (PartName.ATTENTION, masks, torch.float32)
    if kv != torch.float32:
        sizes["widened"] = (PartName.ATTENTION, widened_elements(config, context), torch.float32)
    return sizes


def widened_elements(config: ModelConfig, context: int) -> int:
    """Elements of the scratch for one row's keys and values of a layer in float32."""
    return 2 * context * config.num_kv_heads * config.head_size


def rope_table(config: ModelConfig, context: int, dtype: torch.dtype, take: Take) -> Tensor | None:
    """cos and sin of every position of a context, [2, context, rotary_size / 2]."""
    if config.rope is None:
        return None
    rope = Rope(config.rope)
    table = take(PartName.ROPE_TABLE, rope.table_shape(context), dtype)
    rope.fill_table(table)
    return table
