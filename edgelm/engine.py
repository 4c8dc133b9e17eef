"""Engine: runs steps of a loaded decoder over static buffers. Knows ids, not text or sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from edgelm import accelerators
from edgelm.cache import KVCache, LayerStore
from edgelm.config import ModelConfig
from edgelm.errors import NonFiniteError, UsageError
from edgelm.layers import all_finite
from edgelm.loading import rope_table
from edgelm.memory import Ledger, Plan
from edgelm.models.decoder import Decoder
from edgelm.ops import reference
from edgelm.ops.native import (
    MOST_RECORDED,
    RECORDED_PART,
    NativeOps,
    holds_natively,
    runs_natively,
    workspaces,
)
from edgelm.ops.reference import Angles
from edgelm.placement import streamed_layers
from edgelm.settings import DTYPES, KV_DTYPES
from edgelm.step import Seen, Segment, Step, Workspace, widened_elements
from quant import native
from quant.native.tape import Tape

if TYPE_CHECKING:
    from edgelm.ops import Ops


@dataclass(frozen=True)
class RowTokens:
    """Tokens that continue one row: ids [T] or embeddings [T, N].

    ``positions`` [T] for the rotary table where they differ from the row's own count.
    """

    row: int
    tokens: Tensor
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
        self._tapes: WeakKeyDictionary[KVCache, dict[tuple[int, int], Tape]] = WeakKeyDictionary()
        if runs_natively(plan.products, self.dtype):
            sizes = workspaces(config, plan.rows, plan.chunk, plan.context, plan.products)
            taken = {part: ledger.empty(part, (n,), torch.uint8) for part, n in sizes.items()}
            self.ops = NativeOps(taken["attention"])
            self._recorder = (taken["attention"], taken[RECORDED_PART])
            self._inputs = torch.zeros(3, MOST_RECORDED, dtype=torch.int64)  # ids, rows, positions
        self.workspace = Workspace(
            config, plan.chunk, plan.context, self.dtype, KV_DTYPES[plan.kv], ledger.empty
        )
        self._rope_table = rope_table(config, plan, ledger)
        self._positions = torch.arange(plan.context, device=self.device)
        self._distances = torch.arange(1.0 - plan.context, 1.0, device=self.device)
        judged = max(plan.rows, plan.draft_depth + 1)
        self._logits = ledger.empty("logits", (judged, decoder.outputs), torch.float32)

    def make_cache(self, rows: int, context: int, dtype: torch.dtype, owner: object) -> KVCache:
        """A cache within the plan, and the scratch that its dtype needs."""
        scratch = self.workspace.scratch
        if dtype != torch.float32 and scratch.widened is None:
            elements = widened_elements(self.config, self.plan.context)
            self._ledger.extend("attention", elements * torch.float32.itemsize)
            scratch.widened = self._ledger.empty("attention", (elements,), torch.float32)
        chunk = self.plan.chunk
        return KVCache(self.config, rows, context, chunk, dtype, self._ledger.empty, owner)

    def require_language_model(self, what: str) -> None:
        """Raises UsageError unless the head makes logits of the next token."""
        head = self.decoder.head
        if head is None or not head.is_language_model:
            task = "base" if head is None else head.task
            raise UsageError(
                f"{what} needs a language model; this one was loaded with task={task!r}. Load it "
                "with task='causal-lm'."
            )

    @torch.inference_mode()
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
            cache.check_room(entry.row, entry.tokens.shape[0])
        if recording is None and self._is_recordable(cache, batch):
            out = self._replay(cache, batch)
        else:
            out = self._run_eagerly(cache, batch, recording or Recording())
        if not all_finite(out):
            self._run_eagerly(cache, batch, Recording(), find_nonfinite=True)
            raise NonFiniteError("The final norm produced NaN or infinity.")
        for entry in batch:
            cache.advance(entry.row, entry.tokens.shape[0])
        return out

    def _run_eagerly(
        self, cache: KVCache, batch: Sequence[RowTokens], recording: Recording,
        find_nonfinite: bool = False,
    ) -> Tensor:  # fmt: skip
        # Probabilities of attention, and caches of other types, are the reference's.
        own = holds_natively(cache.dtype) and recording.attentions is None
        ops = self.ops if own else reference
        step = self._step(cache, batch, recording, ops)
        step.find_nonfinite = find_nonfinite
        tokens = torch.cat([entry.tokens for entry in batch]) if len(batch) > 1 else batch[0].tokens
        return self.decoder(tokens.to(self.device), step)

    def _is_recordable(self, cache: KVCache, batch: Sequence[RowTokens]) -> bool:
        """Whether the step is one token for each of some rows, all operations being native."""
        return (
            isinstance(self.ops, NativeOps)
            and holds_natively(cache.dtype)
            and not streamed_layers(self.plan)
            and len(batch) <= min(self.plan.rows, MOST_RECORDED)
            and all(
                entry.tokens.shape[0] == 1
                and not entry.tokens.is_floating_point()
                and entry.positions is None
                for entry in batch
            )
        )

    def _replay(self, cache: KVCache, batch: Sequence[RowTokens]) -> Tensor:
        """A decode step: recorded the first time, afterwards one call of the native library."""
        count = len(batch)
        ids, rows, positions = self._inputs[:, :count]
        torch.cat([entry.tokens for entry in batch], out=ids)
        rows.copy_(torch.tensor([entry.row for entry in batch]))
        positions.copy_(torch.tensor([cache.lengths[entry.row] for entry in batch]))
        tapes, key = self._tapes.setdefault(cache, {}), (count, native.threads())
        if key in tapes:
            tapes[key]()
            return self.workspace.buffers(count).normed
        recorder = NativeOps(*self._recorder)
        step = self._step(cache, batch, Recording(), recorder, (rows, positions))
        out = self.decoder(ids, step)
        tapes[key] = Tape(recorder.calls, recorder.first)
        return out

    @torch.inference_mode()
    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """Head over hidden states [M, N]: float32 [M, V], on the engine's device.

        Without ``out`` M is at most the plan's rows, or its draft depth and one, and the result
        lies in the static buffer.
        """
        head = self.decoder.head
        assert head is not None
        logits = self._logits[: hidden.shape[0]] if out is None else out
        if self.dtype == torch.float32:
            head(hidden, logits, self.ops)
        else:
            logits.copy_(head(hidden, hidden.new_empty(logits.shape), self.ops))
        if head.softcap is not None:
            self.ops.softcap_(logits, head.softcap)
        if not all_finite(logits):
            raise NonFiniteError("The head produced NaN or infinity; its weights are damaged.")
        return logits

    def _step(
        self, cache: KVCache, batch: Sequence[RowTokens], recording: Recording, ops: Ops,
        places: tuple[Tensor, Tensor] | None = None,
    ) -> Step:  # fmt: skip
        """``places``: rows and positions in memory that stays, for a step to be recorded."""
        count = sum(entry.tokens.shape[0] for entry in batch)
        assert 0 < count <= self.plan.chunk
        segments: list[Segment] = []
        slots: list[list[int]] = [[] for _ in cache.stores]
        start = masked = 0
        for entry in batch:
            length, position = entry.tokens.shape[0], cache.lengths[entry.row]
            seen = []
            for number, store in enumerate(cache.stores if ops is reference else ()):
                slots[number] += store.flat_slots(entry.row, position, length)
                seen.append(self._seen(store, position, length, masked))
                masked += 0 if seen[-1].mask is None else seen[-1].mask.numel()
            segments.append(Segment(entry.row, start, length, position, seen))
            start += length
        rows, positions = places or self._places(segments)
        return Step(
            ops=ops,
            buffers=self.workspace.buffers(count),
            scratch=self.workspace.scratch,
            cache=cache,
            segments=segments,
            slots=[torch.tensor(own, device=self.device) for own in slots],
            rows=rows,
            positions=positions,
            angles=self._angles(batch, positions, ops),
            hidden_states=recording.hidden_states,
            attentions=recording.attentions,
        )

    def _places(self, segments: list[Segment]) -> tuple[Tensor, Tensor]:
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
            positions = store.key_positions(length)
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
            stop = start + entry.tokens.shape[0]
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
