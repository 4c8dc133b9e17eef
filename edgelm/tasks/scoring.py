"""Log-likelihoods of continuations under a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from edgelm.budget.ledger import Ledger
from edgelm.budget.parts import PartName
from edgelm.budget.units import BLOCK_BYTES
from edgelm.engine.engine import Engine, RowTokens
from edgelm.errors import BudgetExceededError, ContextLengthError, UsageError
from edgelm.ops.cache import KVCache
from edgelm.progress import Count
from edgelm.text.continuation import Encoded, Ids, split_shared
from edgelm.values import shown

MAX_ROWS = 8
"""Continuations of one context that run side by side."""


@dataclass(frozen=True)
class Score:
    """Natural log-likelihood of a continuation: 0 for '', else at most 0.

    ``is_greedy``: each of its tokens is the likeliest one at its place.
    ``token_log_likelihoods``: of each of ``token_ids``.
    """

    log_likelihood: float
    is_greedy: bool
    token_ids: tuple[int, ...]
    token_log_likelihoods: tuple[float, ...]


class Scorer:
    """Scores continuations with an engine, within the budget of its ledger; see ``opened``.

    Args:
        logits: [block, V] float32, of as many tokens as are judged at once.
        context, rows: a cache of one row for what choices share, and one of several rows.
    """

    def __init__(self, engine: Engine, logits: Tensor, context: KVCache, rows: KVCache) -> None:
        self._engine, self._logits, self._context, self._rows = engine, logits, context, rows

    @classmethod
    @contextmanager
    def opened(
        cls, engine: Engine, ledger: Ledger, new_cache: Callable[[int, int], KVCache],
        items: Sequence[Sequence[Encoded]],
    ) -> Iterator[Scorer]:  # fmt: skip
        """One for these items, whose memory is given back when the context ends.

        Raises:
            BudgetExceededError: one row and a block of logits do not fit the budget.
        """
        vocab, length = engine.config.vocab_size, max(len(c.ids) for own in items for c in own) - 1
        block = max(1, BLOCK_BYTES // (4 * vocab))
        nbytes = 3 * 4 * block * vocab  # the logits, and what log_softmax makes of them
        ledger.extend({PartName.EVALUATION: nbytes})
        try:
            context = new_cache(1, length)
            rows = _widest(new_cache, min(MAX_ROWS, max(map(len, items))), length)
            yield cls(engine, torch.empty(block, vocab, device=engine.device), context, rows)
        finally:
            ledger.extend({PartName.EVALUATION: -nbytes})

    @torch.inference_mode()
    def score(self, choices: Sequence[Encoded]) -> list[Score]:
        """Of each choice; the ids that all of them begin with run once."""
        shared, own = split_shared(choices)
        self._context.truncate(0, 0)
        for start in range(0, len(shared), self._engine.plan.chunk):
            ids = torch.tensor(shared[start : start + self._engine.plan.chunk])
            self._engine.run(self._context, [RowTokens(0, ids)])
        snapshot, found, rows = self._context.snapshot(0), [], self._rows.rows
        for first in range(0, len(choices), rows):
            group = range(first, min(first + rows, len(choices)))
            for row in range(len(group)):
                self._rows.restore(row, snapshot)
            found += self._run([choices[i] for i in group], [own[i] for i in group], len(shared))
        return found

    def _run(self, choices: Sequence[Encoded], own: Sequence[Ids], held: int) -> list[Score]:
        """Run each choice's own ids in its row, which holds ``held`` ids already."""
        judged: list[list[tuple[float, bool]]] = [[] for _ in choices]
        for entries in _steps(own, self._engine.plan.chunk):
            step = [RowTokens(row, torch.tensor(ids)) for row, _, ids in entries]
            states, at = self._engine.run(self._rows, step).states, 0
            for row, start, ids in entries:
                choice, next_id = choices[row], held + start + 1
                skipped = max(0, len(choice.ids) - choice.count - next_id)  # they predict context
                wanted = choice.ids[next_id + skipped : next_id + len(ids)]
                judged[row] += self._judge(states[at + skipped : at + len(ids)], wanted)
                at += len(ids)
        return [_score(c, tokens) for c, tokens in zip(choices, judged, strict=True)]

    def _judge(self, states: Tensor, wanted: Ids) -> Iterator[tuple[float, bool]]:
        """Log-likelihood of each wanted id, and whether it is the likeliest one."""
        block = len(self._logits)
        for start in range(0, len(wanted), block):
            part = states[start : start + block]
            ids = torch.tensor(wanted[start : start + block], device=self._engine.device)
            logits = self._engine.logits(part, out=self._logits[: len(part)])
            scores = logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]
            yield from zip(scores.tolist(), (logits.argmax(-1) == ids).tolist(), strict=True)


def score_choices(
    engine: Engine, ledger: Ledger, new_cache: Callable[[int, int], KVCache],
    items: Sequence[Sequence[Encoded]], progress: Count | None = None,
) -> list[list[Score]]:  # fmt: skip
    """Score of each choice of each item; choices of an item may share their first ids.

    Raises:
        UsageError: no language model. ContextLengthError: a choice does not fit the context.
        BudgetExceededError: one row and a block of logits do not fit the budget.
    """
    engine.require_language_model("Scoring")
    _check(items, engine.config.vocab_size)
    limit = engine.plan.context
    longest = max((len(choice.ids) for own in items for choice in own), default=0)
    if longest - 1 > limit:
        raise ContextLengthError(
            f"A text to be scored has {longest} tokens; this model was loaded with a context of "
            f"{limit}. Shorten the text or load with a larger context.",
            longest - 1,
            limit,
        )
    asked = [[choice for choice in own if choice.count] for own in items]
    if not any(asked):
        return [[_score(choice, []) for choice in own] for own in items]
    found: list[list[Score]] = []
    with Scorer.opened(engine, ledger, new_cache, asked) as scorer:
        for own, some in zip(items, asked, strict=True):
            scored = iter(scorer.score(some) if some else [])
            found.append([next(scored) if c.count else _score(c, []) for c in own])
            if progress:
                progress(len(found), len(items))
    return found


def _check(items: Sequence[Sequence[Encoded]], vocab_size: int) -> None:
    """Raise UsageError for what is no list of lists of ``Encoded`` with ids of the model."""
    rows = isinstance(items, Sequence) and all(isinstance(own, Sequence) for own in items)
    if not rows or not all(isinstance(choice, Encoded) for own in items for choice in own):
        raise UsageError(f"items is {shown(items)}; allowed: a list of lists of Encoded.")
    for choice in (choice for own in items for choice in own):
        wrong = next((i for i in choice.ids if not 0 <= i < vocab_size), None)
        if wrong is not None:
            raise UsageError(f"Token id {wrong} is out of range; allowed: 0-{vocab_size - 1}.")
        if not 0 <= choice.count < max(1, len(choice.ids)):
            raise UsageError(
                f"{choice.count} of {len(choice.ids)} ids are to be scored; allowed: 0 up to all "
                "but the first."
            )


def _score(choice: Encoded, judged: Sequence[tuple[float, bool]]) -> Score:
    scores = tuple(score for score, _ in judged)
    ids = choice.ids[len(choice.ids) - choice.count :]
    return Score(sum(scores), all(best for _, best in judged), ids, scores)


def _widest(new_cache: Callable[[int, int], KVCache], rows: int, length: int) -> KVCache:
    """A cache of this number of rows, or of half of it as often as the budget asks for."""
    while True:
        try:
            return new_cache(rows, length)
        except BudgetExceededError:
            if rows == 1:
                raise
            rows //= 2


def _steps(own: Sequence[Ids], chunk: int) -> Iterator[list[tuple[int, int, Ids]]]:
    """(row, its first index, ids) of steps of at most ``chunk`` tokens over all rows."""
    rows = min(len(own), chunk)
    per_row = chunk // rows
    for start in range(0, max(map(len, own)), per_row):
        pieces = [(row, start, ids[start : start + per_row]) for row, ids in enumerate(own)]
        left = [piece for piece in pieces if piece[2]]
        for first in range(0, len(left), rows):
            yield left[first : first + rows]
