"""``forward``: runs padded batches and returns tensors in transformers' shapes.

Padding is removed before anything is computed and restored (as zeros) in the result, so that a
row gets the same result as alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from edgelm.engine.engine import Engine, Recording, RowTokens
from edgelm.errors import ContextLengthError, UsageError
from edgelm.models.layers import Head
from edgelm.ops.cache import KVCache
from edgelm.tasks.forward_options import ForwardOptions
from edgelm.tasks.losses import Loss, loss_for


@dataclass(frozen=True)
class Output:
    """Result of ``forward``, on the CPU; fields not requested or without a head are None.

    logits: [B, T or kept, V] float32, zeros at padding; [B, T, labels] of token and [B, labels] of
    sequence classification. start_logits, end_logits: [B, T], of question answering.
    last_hidden_state: [B, T, N], for ``task="base"``. hidden_states: layers + 1 tensors
    [B, T, N]. attentions: per layer [B, H, T, S]. loss: scalar float32.
    """

    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    loss: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None


@dataclass(frozen=True)
class _Batch:
    """A padded batch by row, with the positions of real tokens in the [B, T] grid."""

    tokens: Tensor  # [B, T] ids or [B, T, N] embeddings
    spans: list[tuple[int, int]]  # first column and count of each row's tokens
    positions: Tensor | None  # [B, T]

    def real(self) -> Tensor:
        """[B, T] bool, False at padding."""
        found = torch.zeros(self.tokens.shape[:2], dtype=torch.bool)
        for row, (first, count) in enumerate(self.spans):
            found[row, first : first + count] = True
        return found

    def step(self, row: int, start: int, count: int) -> tuple[RowTokens, slice] | None:
        """Tokens ``start`` to ``start + count`` of a row with their columns, None if none."""
        first, length = self.spans[row]
        columns = slice(first + start, first + min(start + count, length))
        if columns.start >= columns.stop:
            return None
        positions = None if self.positions is None else self.positions[row, columns]
        return RowTokens(row, self.tokens[row, columns], positions), columns


def forward(
    engine: Engine, cache: KVCache, input_ids: Tensor | None = None,
    **options: Unpack[ForwardOptions],
) -> Output:  # fmt: skip
    """Run a batch through the model, continuing the rows of ``cache``.

    The options are as ``read_forward`` gives them.

    Sequence classification uses each row's last real token: by ``attention_mask``, else the
    last one that is not the config's pad_token_id, else (embeddings) the last column.

    Raises:
        UsageError: shapes, ids, masks or options that do not match.
        ContextLengthError: a row does not fit the cache; nothing is changed then.
    """
    mask, kept = options.get("attention_mask"), options.get("logits_to_keep")
    logits_to_keep = 0 if kept is None else kept
    batch = _read_batch(
        engine, cache, input_ids, options.get("inputs_embeds"), mask, options.get("position_ids")
    )
    head = engine.decoder.head
    loss = loss_for(
        head, batch.real(), options.get("labels"), options.get("start_positions"),
        options.get("end_positions"),
    )  # fmt: skip
    if not _keeps_all(logits_to_keep) and (loss or (head and not head.is_language_model)):
        raise UsageError("logits_to_keep requires a language model's logits and no labels.")
    if head is not None and head.task == "sequence-classification":
        columns = _last_columns(batch, mask is not None, engine.config.pad_id)
    else:
        columns = _kept_columns(logits_to_keep, *batch.tokens.shape[:2])
    hidden, weights = options.get("output_hidden_states"), options.get("output_attentions")
    result = _Assembly(engine, cache, batch, columns, bool(hidden), bool(weights))
    for entries in _steps(batch, engine.plan.chunk):
        result.run(entries)
    return Output(
        **_results(head, result, loss),
        hidden_states=tuple(t.cpu() for t in result.hidden) if hidden else None,
        attentions=tuple(t.cpu() for t in result.attentions) if weights else None,
    )


def _results(head: Head | None, result: _Assembly, loss: Loss | None) -> dict[str, Tensor]:
    """The fields of an Output that depend on the head."""
    if head is None:
        return {"last_hidden_state": result.last_hidden.cpu()}
    logits = result.logits.cpu()
    if head.task == "sequence-classification":
        logits = logits[:, 0]
    fields = {"logits": logits}
    if head.task == "question-answering":
        fields = {"start_logits": logits[:, :, 0], "end_logits": logits[:, :, 1]}
    return fields if loss is None else fields | {"loss": loss(logits)}


def _steps(batch: _Batch, chunk: int) -> Iterator[list[tuple[RowTokens, slice]]]:
    """Split the batch into steps of at most ``chunk`` tokens, which may combine rows."""
    rows = len(batch.spans)
    for first in range(0, rows, chunk):
        group = range(first, min(first + chunk, rows))
        per_row = max(1, chunk // len(group))
        for start in range(0, max(batch.spans[row][1] for row in group), per_row):
            found = [batch.step(row, start, per_row) for row in group]
            yield [entry for entry in found if entry is not None]


class _Assembly:
    """Collects the steps' results on the [B, T] grid."""

    def __init__(
        self, engine: Engine, cache: KVCache, batch: _Batch, columns: Tensor,
        hidden_states: bool, attentions: bool,
    ) -> None:  # fmt: skip
        self.engine, self.cache, self.batch = engine, cache, batch
        rows, width = batch.tokens.shape[:2]
        config, device = engine.config, engine.device
        self.past = cache.lengths[:rows]
        self.columns = columns
        self.logits = torch.zeros(0, device=device)
        grid = (rows, width, config.hidden_size)
        if engine.decoder.head is not None:
            kept = columns.shape[1]
            self.logits = torch.zeros(rows, kept, engine.decoder.outputs, device=device)
        self.last_hidden = torch.zeros(grid if engine.decoder.head is None else 0, device=device)
        count = config.num_layers + 1 if hidden_states else 0
        self.hidden = [torch.zeros(grid, dtype=engine.dtype, device=device) for _ in range(count)]
        keys = max(self.past) + width
        shape = (rows, config.num_heads, width, keys)
        count = config.num_layers if attentions else 0
        self.attentions = [
            torch.zeros(shape, dtype=engine.dtype, device=device) for _ in range(count)
        ]

    def run(self, entries: Sequence[tuple[RowTokens, slice]]) -> None:
        recording = Recording(
            hidden_states=[] if self.hidden else None, attentions=[] if self.attentions else None
        )
        out = self.engine.run(self.cache, [entry for entry, _ in entries], recording).states
        start = 0
        for index, (entry, columns) in enumerate(entries):
            part = slice(start, start + len(entry.tokens))
            start = part.stop
            self._place_output(entry.row, columns, out[part])
            for grid, recorded in zip(self.hidden, recording.hidden_states or [], strict=True):
                grid[entry.row, columns] = recorded[part]
            for weights, layer in zip(self.attentions, recording.attentions or [], strict=True):
                self._place_attention(weights, entry.row, columns, layer[index])

    def _place_output(self, row: int, columns: slice, hidden: Tensor) -> None:
        if self.engine.decoder.head is None:
            self.last_hidden[row, columns] = hidden.float()
            return
        wanted = self.columns[row]
        inside = (wanted >= columns.start) & (wanted < columns.stop)
        kept = inside.nonzero()[:, 0]
        if len(kept) == 0:
            return
        source = hidden[wanted[kept] - columns.start]
        whole = len(kept) == int(kept[-1] - kept[0]) + 1
        target = self.logits[row, int(kept[0]) : int(kept[-1]) + 1] if whole else None
        logits = self.engine.logits(source, out=self.logits.new_empty(
            len(kept), self.logits.shape[-1]) if target is None else target)  # fmt: skip
        if target is None:
            self.logits[row, kept] = logits

    def _place_attention(self, grid: Tensor, row: int, columns: slice, weights: Tensor) -> None:
        past, longest = self.past[row], max(self.past)
        held = torch.arange(longest - past, longest)
        first = longest + self.batch.spans[row][0]
        keys = torch.cat([held, torch.arange(first, first + weights.shape[-1] - past)])
        block = grid.new_zeros(grid.shape[1], weights.shape[1], grid.shape[-1])
        block[:, :, keys] = weights.to(grid.dtype)
        grid[row, :, columns] = block


def _read_batch(
    engine: Engine, cache: KVCache, input_ids: Tensor | None, inputs_embeds: Tensor | None,
    attention_mask: Tensor | None, position_ids: Tensor | None,
) -> _Batch:  # fmt: skip
    if (input_ids is None) == (inputs_embeds is None):
        raise UsageError("Give either input_ids [B, T] or inputs_embeds [B, T, N], not both.")
    if input_ids is not None:
        tokens = _checked_ids(input_ids, engine.config.vocab_size)
    else:
        assert inputs_embeds is not None
        tokens = inputs_embeds.to(engine.dtype)
        if tokens.dim() != 3 or tokens.shape[-1] != engine.config.hidden_size:
            raise UsageError(
                f"inputs_embeds is {list(tokens.shape)}; expected [B, T, "
                f"{engine.config.hidden_size}]."
            )
    rows, width = tokens.shape[:2]
    if rows != cache.rows or width == 0:
        raise UsageError(
            f"The batch is {rows} rows of {width} tokens; the cache has {cache.rows} rows and "
            "expects at least one token."
        )
    spans = _spans(attention_mask, rows, width, max(cache.lengths))
    for row, (_, count) in enumerate(spans):
        cache.check_room(row, count)
    if position_ids is not None:
        if engine.config.rope is None:
            raise UsageError(
                f"position_ids is given; {engine.config.model_type} has no table of positions "
                "(ALiBi counts distances between tokens). Leave it out."
            )
        position_ids = _checked_positions(position_ids, rows, width, engine.plan.context)
    return _Batch(tokens, spans, position_ids)


def _checked_ids(ids: Tensor, vocab_size: int) -> Tensor:
    if ids.dim() != 2 or ids.is_floating_point():
        raise UsageError(f"input_ids is {list(ids.shape)} of {ids.dtype}; expected ids [B, T].")
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise UsageError(
            f"input_ids hold {int(ids.min())} to {int(ids.max())}; the model knows 0 to "
            f"{vocab_size - 1}."
        )
    return ids.long()


def _checked_positions(positions: Tensor, rows: int, width: int, context: int) -> Tensor:
    if positions.shape not in ((rows, width), (1, width)):
        raise UsageError(f"position_ids is {list(positions.shape)}; expected [{rows}, {width}].")
    if not 0 <= int(positions.min()) <= int(positions.max()) < context:
        raise ContextLengthError(
            f"position_ids reach {int(positions.max())}; this model was loaded with a context of "
            f"{context}.",
            int(positions.max()) + 1,
            context,
        )
    return positions.long().expand(rows, width)


def _spans(mask: Tensor | None, rows: int, width: int, past: int) -> list[tuple[int, int]]:
    """First column and count of each row's real tokens; a mask may include the cached tokens."""
    if mask is None:
        return [(0, width)] * rows
    if mask.dim() != 2 or mask.shape[0] != rows or mask.shape[1] not in (width, past + width):
        raise UsageError(
            f"attention_mask is {list(mask.shape)}; expected [{rows}, {width}] or, with what the "
            f"cache holds, [{rows}, {past + width}]."
        )
    spans = []
    for row, values in enumerate(mask[:, -width:].bool()):
        columns = values.nonzero()[:, 0]
        if len(columns) == 0 or int(columns[-1] - columns[0]) + 1 != len(columns):
            raise UsageError(
                f"attention_mask row {row} is empty or has holes; the ones of a row must stand "
                "together, with padding only on the left or right."
            )
        spans.append((int(columns[0]), len(columns)))
    return spans


def _keeps_all(logits_to_keep: int | Tensor) -> bool:
    return isinstance(logits_to_keep, int) and logits_to_keep == 0


def _kept_columns(logits_to_keep: int | Tensor, rows: int, width: int) -> Tensor:
    """[B, kept] columns whose logits are returned: the last n (0: all), or those of an index."""
    if isinstance(logits_to_keep, int):
        if logits_to_keep < 0:
            raise UsageError(f"logits_to_keep is {logits_to_keep}; expected 0 (all) or a count.")
        count = min(logits_to_keep, width) or width
        kept = torch.arange(width - count, width)
        return kept.expand(rows, -1)
    columns = logits_to_keep.long()
    if columns.dim() != 1 or not bool(((columns >= -width) & (columns < width)).all()):
        raise UsageError(
            f"logits_to_keep must be a count or a 1-D tensor of columns below {width}."
        )
    return (columns % width).expand(rows, -1)


def _last_columns(batch: _Batch, masked: bool, pad_id: int | None) -> Tensor:
    """[B, 1] column of each row's last real token."""
    if masked or (len(batch.spans) == 1 and pad_id is None):
        return torch.tensor([[first + count - 1] for first, count in batch.spans])
    if pad_id is None:
        raise UsageError(
            f"A batch of {len(batch.spans)} rows without attention_mask: config.json has no "
            "pad_token_id that would tell where each row ends. Give attention_mask."
        )
    rows, width = batch.tokens.shape[:2]
    if batch.tokens.is_floating_point():
        return torch.full((rows, 1), width - 1)
    real = batch.tokens != pad_id
    return (torch.arange(width) * real).argmax(1, keepdim=True)
