"""Engine: runs steps of a loaded decoder over static buffers. Knows ids, not text or sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgelm.budget.placement import host_layers, streamed_layers
from edgelm.budget.plan import Ledger, Plan
from edgelm.config import ModelConfig
from edgelm.engine.cuda_graphs import GraphedSteps, Steps, can_be_captured
from edgelm.engine.host_layers import HostLayers
from edgelm.engine.tapes import Places, RecordedSteps
from edgelm.errors import NonFiniteError, UsageError
from edgelm.machine import accelerators
from edgelm.models.decoder import Decoder
from edgelm.models.layers import all_finite
from edgelm.ops import reference
from edgelm.ops.cache import KVCache, LayerStore
from edgelm.ops.native import (
    RECORDED_PART,
    NativeOps,
    holds_natively,
    recorded_tokens,
    runs_natively,
    workspaces,
)
from edgelm.ops.position import Angles
from edgelm.ops.step import Seen, Segment, Step, Workspace, rope_table, widened_elements
from edgelm.ops.triton import TritonOps, serves, workspace_elements
from edgelm.planning.settings import DTYPES, KV_DTYPES

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
    """What a caller wants to see of a step beside its result."""

    hidden_states: list[Tensor] | None = None
    attentions: list[list[Tensor]] | None = None


class Engine:
    """One decoder with its buffers; a step is at most ``plan.chunk`` tokens over all rows."""

    def __init__(self, decoder: Decoder, config: ModelConfig, plan: Plan, ledger: Ledger) -> None:
        self.decoder, self.config, self.plan = decoder, config, plan
        self.dtype = DTYPES[plan.dtype]
        self._ledger = ledger
        self.device = accelerators.torch_device(plan.device)
        self.ops: Ops = reference
        self._recorded: Steps | None = None
        if runs_natively(plan.products, self.dtype):
            most = recorded_tokens(plan.rows, plan.draft_depth)
            sizes = workspaces(config, most, plan.chunk, plan.context, plan.products)
            taken = {part: ledger.empty(part, (n,), torch.uint8) for part, n in sizes.items()}
            self.ops = NativeOps(taken["attention"])
            if not streamed_layers(plan):
                self._recorded = RecordedSteps(most, taken["attention"], taken[RECORDED_PART])
        elif plan.device != "cpu" and serves(self.device) is None:
            most = recorded_tokens(plan.rows, plan.draft_depth)
            room = workspace_elements(config, most, plan.chunk, plan.context)
            self.ops = TritonOps(ledger.empty("attention", (room,), torch.float32), most)
            if can_be_captured(plan) and not host_layers(plan):
                self._recorded = GraphedSteps(most, self.ops, self.device)
        self.workspace = Workspace(
            config, plan.chunk, plan.context, self.dtype, KV_DTYPES[plan.kv], ledger.empty
        )
        self._host = HostLayers(decoder, config, plan, ledger) if host_layers(plan) else None
        self._rope_table = rope_table(config, plan.context, self.dtype, ledger.empty)
        self._positions = torch.arange(plan.context, device=self.device)
        self._distances = torch.arange(1.0 - plan.context, 1.0, device=self.device)
        judged = max(plan.rows, plan.draft_depth + 1)
        self._logits = ledger.empty("logits", (judged, decoder.outputs), torch.float32)

    def make_cache(self, rows: int, context: int, dtype: torch.dtype, owner: object) -> KVCache:
        """A cache within the plan, and the scratch that its dtype needs."""
        scratch = self.workspace.scratch
        if dtype != torch.float32 and scratch.widened is None:
            elements = widened_elements(self.config, self.plan.context)
            self._ledger.extend({"attention": elements * torch.float32.itemsize})
            scratch.widened = self._ledger.empty("attention", (elements,), torch.float32)
        chunk = self.plan.chunk
        ledger = self._ledger
        return KVCache(
            self.config, rows, context, chunk, dtype, ledger.empty, owner, ledger.lend,
            host_layers(self.plan),
        )  # fmt: skip

    def forget(self) -> None:
        """Drop what was recorded, with the memory it holds; it is recorded anew."""
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
    ) -> Tensor:
        """One step: hidden states [M, N] after the final norm, rows one after another.

        The result lies in a buffer that the next step overwrites.

        Raises:
            ContextLengthError: a row has no room left. Nothing is changed then.
            NonFiniteError: a layer produced NaN or infinity, named in the message.
        """
        for entry in batch:
            cache.check_room(entry.row, len(entry.tokens))
        if recording is None and self._is_recorded(cache, batch):
            out, finite = self._replay(cache, batch)
        else:
            out = self._run_eagerly(cache, batch, recording or Recording())
            finite = all_finite(out)
        if not finite:
            self._run_eagerly(cache, batch, Recording(), find_nonfinite=True)
            raise NonFiniteError("The final norm produced NaN or infinity.")
        for entry in batch:
            cache.advance(entry.row, len(entry.tokens))
        return out

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

    def judge(self, hidden: Tensor) -> tuple[Tensor, list[int]]:
        """(logits [M, V], the likeliest id of each) of hidden states [M, N], M as in ``logits``.

        Raises:
            NonFiniteError: a logit is NaN or infinite.
        """
        head = self.decoder.head
        assert head is not None
        is_whole_step = hidden.data_ptr() == self.workspace.buffers(1).normed.data_ptr()
        if self._recorded is None or not is_whole_step or len(hidden) > self._recorded.most:
            logits = self.logits(hidden)
            return logits, logits.argmax(-1).tolist()
        logits, best = self._recorded.judge(head, hidden, self._logits)
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
                if store.suffix:  # the host's come last, and its operations make no masks
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
        """What ``count`` tokens from ``position`` on see of a store; masks follow one another."""
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
        """Where the tokens stand in the rotary table, gathered for operations that want it so."""
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
