"""Engine: runs steps of a loaded decoder over static buffers. Knows ids, not text or sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgelm.budget.dtypes import DTYPES, KV_DTYPES
from edgelm.budget.ledger import Ledger
from edgelm.budget.parts import PartName
from edgelm.budget.placement import host_layers
from edgelm.budget.plan import Plan, judged_tokens
from edgelm.engine.cuda_graphs import GraphedSteps
from edgelm.engine.host_layers import HostLayers
from edgelm.engine.steps import Places, Steps
from edgelm.engine.tapes import RecordedSteps
from edgelm.errors import NonFiniteError, UsageError
from edgelm.machine import accelerators
from edgelm.models.assembled import Assembled
from edgelm.models.layers import all_finite
from edgelm.ops import reference
from edgelm.ops.cache import KVCache, LayerStore
from edgelm.ops.native import NativeOps, holds_natively, workspaces
from edgelm.ops.position import Angles
from edgelm.ops.step import Seen, Segment, Step, Workspace, rope_table, widened_elements
from edgelm.ops.triton import TritonOps, workspace_elements

if TYPE_CHECKING:
    from edgelm.ops import Ops


_DAMAGED_HEAD = "The head produced NaN or infinity; its weights are damaged."


@dataclass(frozen=True)
class RowTokens:
    """Tokens that continue one row: ids, as a list or [T], or embeddings [T, N].

    ``positions`` [T] for the rotary table where they differ from the row's own count. Steps of a
    few tokens that come as lists are recorded and replayed.
    """

    row: int
    tokens: list[int] | Tensor
    positions: Tensor | None = None


@dataclass
class Recording:
    """Values of a step that a caller asks for beside its result."""

    hidden_states: list[Tensor] | None = None
    attentions: list[list[Tensor]] | None = None


@dataclass(frozen=True)
class Hidden:
    """Result of a step: hidden states [M, N] after the final norm, rows one after another.

    They lie in a buffer that the next step overwrites. ``recorded``: by a step that was recorded,
    so that its head may be replayed too.
    """

    states: Tensor
    recorded: bool


class Engine:
    """One decoder with its buffers; a step is at most ``plan.chunk`` tokens over all rows."""

    def __init__(self, model: Assembled, plan: Plan, ledger: Ledger) -> None:
        self.decoder, self.config, self.plan = model.decoder, model.config, plan
        config = model.config
        self.dtype = DTYPES[plan.dtype]
        self._ledger = ledger
        self._owner = object()  # of caches and snapshots, which may outlive the engine
        self.device = accelerators.torch_device(plan.device)
        self._recorded: Steps | None = None
        self.ops = self._operations()
        self.workspace = Workspace(
            config, plan.chunk, plan.context, self.dtype, KV_DTYPES[plan.kv], ledger.empty
        )
        self._host = HostLayers(model, plan, ledger) if host_layers(plan) else None
        self._rope_table = rope_table(config, plan.context, self.dtype, ledger.empty)
        self._positions = torch.arange(plan.context, device=self.device)
        self._distances = torch.arange(1.0 - plan.context, 1.0, device=self.device)
        judged = judged_tokens(plan.rows, plan.draft_depth)
        self._logits = ledger.empty(PartName.LOGITS, (judged, self.decoder.outputs), torch.float32)

    def _operations(self) -> Ops:
        """The operations that the plan names, their workspaces, and records of decode steps."""
        plan, execution, take = self.plan, self.plan.execution, self._ledger.empty
        tokens = execution.decode_tokens
        if execution.ops == "native":
            sizes = workspaces(self.config, execution, plan.chunk, plan.context, plan.products)
            taken = {part: take(part, (size,), torch.uint8) for part, size in sizes.items()}
            attention = taken[PartName.ATTENTION]
            if execution.recorded:
                products = taken[PartName.RECORDED_STEP]
                self._recorded = RecordedSteps(tokens, attention, products)
            return NativeOps(attention)
        if execution.ops == "triton":
            room = workspace_elements(self.config, tokens, plan.chunk, plan.context)
            ops = TritonOps(take(PartName.ATTENTION, (room,), torch.float32), tokens)
            if execution.recorded:
                self._recorded = GraphedSteps(tokens, ops, self.device)
            return ops
        return reference

    def make_cache(self, rows: int, context: int, dtype: torch.dtype) -> KVCache:
        """A cache within the plan, and the scratch that its dtype needs."""
        scratch = self.workspace.scratch
        if dtype != torch.float32 and scratch.widened is None:
            elements = widened_elements(self.config, self.plan.context)
            self._ledger.extend({PartName.ATTENTION: elements * torch.float32.itemsize})
            scratch.widened = self._ledger.empty(PartName.ATTENTION, (elements,), torch.float32)
        chunk = self.plan.chunk
        ledger = self._ledger
        return KVCache(
            self.config, rows, context, chunk, dtype, ledger.empty, self._owner, ledger.lend,
            host_layers(self.plan),
        )  # fmt: skip

    def forget(self) -> None:
        """Drop recorded steps and their memory; they are recorded again when needed."""
        if self._recorded is not None:
            self._recorded.forget()

    def require_language_model(self, what: str) -> None:
        """Raises UsageError unless the head makes logits of the next token."""
        head = self.decoder.head
        if head is None or not head.is_language_model:
            task = "base" if head is None else head.task
            raise UsageError(
                f"{what} needs a language model; this one was loaded with task={task!r}. Load it "
                "with task='causal-lm'."
            )

    def run(
        self, cache: KVCache, batch: Sequence[RowTokens], recording: Recording | None = None
    ) -> Hidden:
        """One step.

        Raises:
            ContextLengthError: a row has no room left. Nothing is changed then.
            NonFiniteError: a layer produced NaN or infinity, named in the message.
        """
        for entry in batch:
            cache.check_room(entry.row, len(entry.tokens))
        recorded = recording is None and self._is_recorded(cache, batch)
        if recorded:
            out, finite = self._replay(cache, batch)
        else:
            out = self._run_eagerly(cache, batch, recording or Recording())
            finite = all_finite(out)
        if not finite:
            self._run_eagerly(cache, batch, Recording(), find_nonfinite=True)
            raise NonFiniteError("The final norm produced NaN or infinity.")
        for entry in batch:
            cache.advance(entry.row, len(entry.tokens))
        return Hidden(out, recorded)

    @torch.inference_mode()
    def _run_eagerly(
        self, cache: KVCache, batch: Sequence[RowTokens], recording: Recording,
        find_nonfinite: bool = False,
    ) -> Tensor:  # fmt: skip
        # Probabilities of attention, and caches of other types, are the reference's.
        own = recording.attentions is None and (
            not isinstance(self.ops, NativeOps) or holds_natively(cache.dtype)
        )
        ops = self.ops if own else reference
        step = self._step(cache, batch, recording, ops)
        step.find_nonfinite = find_nonfinite
        tokens = [torch.as_tensor(entry.tokens, device=self.device) for entry in batch]
        return self.decoder(torch.cat(tokens) if len(tokens) > 1 else tokens[0], step)

    def _is_recorded(self, cache: KVCache, batch: Sequence[RowTokens]) -> bool:
        return self._recorded is not None and self._recorded.admits(
            cache, (entry.tokens for entry in batch)
        )

    def _replay(self, cache: KVCache, batch: Sequence[RowTokens]) -> tuple[Tensor, bool]:
        """(hidden states [M, N], whether all are finite) of a step that is recorded."""
        assert self._recorded is not None

        def decode(ops: Ops, places: Places) -> Tensor:
            return self.decoder(places.ids, self._step(cache, batch, Recording(), ops, places))

        rows = [(e.row, e.tokens) for e in batch if isinstance(e.tokens, list)]
        return self._recorded.run(cache, rows, decode)

    def judge(
        self, hidden: Hidden, tokens: Sequence[int] | None = None
    ) -> tuple[Tensor, list[int]]:
        """(logits [M, V], the likeliest id of each) of some of a step's tokens, M as in ``logits``.

        Args:
            tokens: indices of those that are asked for; None: all.

        Raises:
            NonFiniteError: a logit is NaN or infinite.
        """
        head, states = self.decoder.head, hidden.states
        assert head is not None
        if tokens is not None and len(tokens) < len(states):
            hidden = Hidden(states[list(tokens)], recorded=False)
        if not hidden.recorded:
            logits = self.logits(hidden.states)
            return logits, logits.argmax(-1).tolist()
        assert self._recorded is not None
        logits, best = self._recorded.judge(head, states, self._logits)
        if min(best) < 0:
            raise NonFiniteError(_DAMAGED_HEAD)
        return logits, best

    @torch.inference_mode()
    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """Head over hidden states [M, N]: float32 [M, V], on the engine's device.

        Without ``out`` M is at most the plan's rows, or its draft depth and one, and the result
        lies in the static buffer.
        """
        head = self.decoder.head
        assert head is not None
        logits = self._logits[: hidden.shape[0]] if out is None else out
        head.logits(hidden, logits, self.ops)
        if not all_finite(logits):
            raise NonFiniteError(_DAMAGED_HEAD)
        return logits

    def _step(
        self, cache: KVCache, batch: Sequence[RowTokens], recording: Recording, ops: Ops,
        places: Places | None = None,
    ) -> Step:  # fmt: skip
        """``places``: for a step to be recorded."""
        count = sum(len(entry.tokens) for entry in batch)
        assert 0 < count <= self.plan.chunk
        segments: list[Segment] = []
        slots: list[list[int]] = [[] for _ in cache.stores]
        start = masked = 0
        for entry in batch:
            length, position = len(entry.tokens), cache.lengths[entry.row]
            seen = []
            for number, store in enumerate(cache.stores if ops is reference else ()):
                if (
                    store.where == "host"
                ):  # beside an accelerator: they come last, and its operations make no masks
                    break
                slots[number] += store.flat_slots(entry.row, position, length)
                seen.append(self._seen(store, position, length, masked))
                masked += 0 if seen[-1].mask is None else seen[-1].mask.numel()
            segments.append(Segment(entry.row, start, length, position, seen))
            start += length
        rows, positions = (
            (places.rows, places.positions) if places else self._rows_and_positions(segments)
        )
        step = Step(
            ops=ops,
            buffers=self.workspace.buffers(count),
            scratch=self.workspace.scratch,
            cache=cache,
            segments=segments,
            slots=[torch.tensor(own, device=self.device) for own in slots if own],
            rows=rows,
            positions=positions,
            angles=self._angles(batch, positions, ops),
            hidden_states=recording.hidden_states,
            attentions=recording.attentions,
        )
        if self._host is not None:
            step.host = self._host.step(cache, step)
        return step

    def _rows_and_positions(self, segments: list[Segment]) -> tuple[Tensor, Tensor]:
        """Row and position of every token."""
        rows = [
            torch.full((segment.count,), segment.row, device=self.device) for segment in segments
        ]
        places = [self._positions[s.position : s.position + s.count] for s in segments]
        return torch.cat(rows), torch.cat(places)

    def _seen(self, store: LayerStore, position: int, count: int, masked: int) -> Seen:
        """Keys of a store that ``count`` tokens from ``position`` see; masks follow one another."""
        length = position + count
        if length <= store.slots:
            positions, distances = self._positions[:length], self._distances[-length:]
        else:
            positions = store.key_positions(length, self.device)
            distances = (positions - (length - 1)).float()
        if count == 1 and (store.window is None or length <= store.window):
            return Seen(None, distances, length)
        mask = self.workspace.mask(masked, count, len(positions))
        queries = self._positions[position:length]
        reference.causal_mask(queries, positions, store.window, mask)
        return Seen(mask, distances, length)

    def _angles(self, batch: Sequence[RowTokens], positions: Tensor, ops: Ops) -> Angles | None:
        """Positions of the tokens in the rotary table, gathered for operations that need that."""
        if self._rope_table is None:
            return None
        start = 0
        for entry in batch:
            stop = start + len(entry.tokens)
            if entry.positions is not None:
                positions = positions.clone()
                positions[start:stop] = entry.positions
            start = stop
        if ops is not reference:
            return Angles(self._rope_table, positions)
        cos, sin = self.workspace.angles(len(positions))
        torch.index_select(self._rope_table[0], 0, positions, out=cos[:, 0])
        torch.index_select(self._rope_table[1], 0, positions, out=sin[:, 0])
        return Angles(self._rope_table, positions, cos, sin)
