"""Multiple-choice scoring: log-likelihoods of an item's continuations, as in lm-eval.

The ids shared by all choices are run once, the rest in one batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgelm.budget.parts import PartName
from edgelm.evaluation.tasks import Item
from edgelm.model import LanguageModel
from edgelm.ops.cache import KVCache
from edgelm.progress import Count
from edgelm.text.tokenizer import Tokenizer

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Encoded:
    """Ids of one prompt and continuation; the last ``count`` ids are the continuation's."""

    ids: tuple[int, ...]
    count: int


def encode_pair(tokenizer: Tokenizer, prompt: str, continuation: str) -> Encoded:
    """Encode as lm-eval: spaces at the prompt's end go to the continuation; both encoded whole."""
    start = prompt.rstrip()
    first = tokenizer.encode(start)
    whole = tokenizer.encode(f"{prompt}{continuation}")
    return Encoded(tuple(whole), len(whole) - len(first))


def encode_item(tokenizer: Tokenizer, item: Item) -> list[Encoded]:
    return [encode_pair(tokenizer, prompt, f" {choice}") for prompt, choice in item.pairs]


def split_item(item: list[Encoded], context: int) -> tuple[Ids, list[Ids]]:
    """Split into the ids that all choices begin with, and the remaining ids of each.

    All ids of a choice except the last are run, cut on the left to the context; ids that predict
    a continuation are never shared.
    """
    inputs = [choice.ids[:-1][-context:] for choice in item]
    kept = min(len(ids) - choice.count for ids, choice in zip(inputs, item, strict=True))
    shared = 0
    while shared < kept and len({ids[shared] for ids in inputs}) == 1:
        shared += 1
    return inputs[0][:shared], [ids[shared:] for ids in inputs]


@dataclass(frozen=True)
class Picks:
    """Choice picked in each item: by log-likelihood, and by log-likelihood per character."""

    plain: tuple[int, ...]
    by_length: tuple[int, ...]


class Scorer:
    """Scores the items of one task on a loaded model, within its budget.

    Raises:
        BudgetExceededError: the rows and logits do not fit the budget.
    """

    def __init__(self, lm: LanguageModel, items: Sequence[list[Encoded]]) -> None:
        self._lm, self._items = lm, items
        rows = max(len(item) for item in items)
        context = lm.plan.context
        widest = max(len(tail) for item in items for tail in split_item(item, context)[1])
        self._logits_bytes = 2 * rows * widest * lm.config.vocab_size * 4
        lm.ledger.extend({PartName.EVALUATION: self._logits_bytes})
        self._caches = [lm.new_cache(1), lm.new_cache(rows)]

    def close(self) -> None:
        self._caches.clear()
        self._lm.ledger.extend({PartName.EVALUATION: -self._logits_bytes})

    @torch.inference_mode()
    def log_likelihoods(self, item: list[Encoded]) -> list[float]:
        """Natural log-likelihood of each choice's continuation."""
        shared, own = split_item(item, self._lm.plan.context)
        cache = self._start(shared)
        tails = torch.zeros(cache.rows, max(map(len, own)), dtype=torch.long)
        mask = torch.zeros_like(tails, dtype=torch.bool)
        mask[:, 0] = True  # rows beyond the item's choices hold one id that is ignored
        for row, ids in enumerate(own):
            tails[row, : len(ids)] = torch.tensor(ids)
            mask[row, : len(ids)] = True
        logits = self._lm.forward(tails, attention_mask=mask, cache=cache).logits
        assert logits is not None
        return [
            _sum_of(logits[row, : len(ids)], choice)
            for row, (ids, choice) in enumerate(zip(own, item, strict=True))
        ]

    def _start(self, shared: Sequence[int]) -> KVCache:
        """Make the rows, each holding the ids shared by all choices."""
        one, many = self._caches
        one.truncate(0, 0)
        if shared:
            self._lm.forward(torch.tensor([shared]), cache=one, logits_to_keep=1)
        snapshot = one.snapshot(0)
        for row in range(many.rows):
            many.truncate(row, 0)
            many.restore(row, snapshot)
        return many


def _sum_of(logits: Tensor, choice: Encoded) -> float:
    """Log-likelihood from logits [T, V], whose last ``count`` rows predict the continuation."""
    wanted = torch.tensor(choice.ids[-choice.count :])
    scores = logits[-choice.count :].log_softmax(-1)
    return float(scores.gather(1, wanted[:, None]).sum())


def pick(
    lm: LanguageModel, items: Sequence[Item], encoded: Sequence[list[Encoded]],
    progress: Count | None,
) -> Picks:  # fmt: skip
    """The likeliest choice of each item; ties go to the first."""
    scorer, scores = Scorer(lm, encoded), []
    try:
        for choices in encoded:
            scores.append(scorer.log_likelihoods(choices))
            if progress:
                progress(len(scores), len(items))
    finally:
        scorer.close()
    return picks_of(items, scores)


def picks_of(items: Sequence[Item], scores: Sequence[Sequence[float]]) -> Picks:
    """The choices picked by the log-likelihoods of each item."""
    plain, by_length = [], []
    for item, own in zip(items, scores, strict=True):
        lengths = [len(choice) for _, choice in item.pairs]
        plain.append(own.index(max(own)))
        normed = [s / max(1, n) for s, n in zip(own, lengths, strict=True)]
        by_length.append(normed.index(max(normed)))
    return Picks(tuple(plain), tuple(by_length))


def accuracy(picks: Sequence[int], items: Sequence[Item]) -> tuple[float, float | None]:
    """Share of correct picks and its standard error (of a sample, as lm-eval; None for one)."""
    n, right = len(items), sum(p == item.gold for p, item in zip(picks, items, strict=True))
    share = right / n
    return share, math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else None
