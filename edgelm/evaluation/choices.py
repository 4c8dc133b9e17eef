"""Multiple-choice tasks: the continuations of an item, and which is picked, as in lm-eval."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from edgelm.evaluation.tasks import Item
from edgelm.model import LanguageModel
from edgelm.progress import Count
from edgelm.text.continuation import Encoded, encode_pair
from edgelm.text.tokenizer import Tokenizer

logger = logging.getLogger("edgelm")


def encode_item(tokenizer: Tokenizer, item: Item) -> list[Encoded]:
    return [encode_pair(tokenizer, prompt, f" {choice}") for prompt, choice in item.pairs]


def cut_to_context(name: str, items: Sequence[list[Encoded]], context: int) -> list[list[Encoded]]:
    """The choices of a task without the first ids that the context has no room for, as in lm-eval.

    A warning says how many were cut.
    """
    cut = [[Encoded(c.ids[-context - 1 :], min(c.count, context)) for c in own] for own in items]
    pairs = zip(chain(*cut), chain(*items), strict=True)
    changed = sum(short != whole for short, whole in pairs)
    if changed:
        logger.warning(
            "%s: %d of %d choices do not fit the context of %d tokens: their first tokens are left "
            "out, as lm-eval does.",
            name, changed, sum(map(len, items)), context,
        )  # fmt: skip
    return cut


@dataclass(frozen=True)
class Picks:
    """Choice picked in each item: by log-likelihood, and by log-likelihood per character.

    ``scores``: natural log-likelihoods of each item's choices.
    """

    plain: tuple[int, ...]
    by_length: tuple[int, ...]
    scores: tuple[tuple[float, ...], ...] = ()


def pick(
    lm: LanguageModel, items: Sequence[Item], encoded: Sequence[list[Encoded]],
    progress: Count | None,
) -> Picks:  # fmt: skip
    """The likeliest choice of each item; ties go to the first."""
    scores = lm.score_choices(encoded, progress)
    return picks_of(items, [[score.log_likelihood for score in own] for own in scores])


def picks_of(items: Sequence[Item], scores: Sequence[Sequence[float]]) -> Picks:
    """The choices picked by the log-likelihoods of each item."""
    plain, by_length = [], []
    for item, own in zip(items, scores, strict=True):
        lengths = [len(choice) for _, choice in item.pairs]
        plain.append(own.index(max(own)))
        normed = [s / max(1, n) for s, n in zip(own, lengths, strict=True)]
        by_length.append(normed.index(max(normed)))
    return Picks(tuple(plain), tuple(by_length), tuple(map(tuple, scores)))


def accuracy(picks: Sequence[int], items: Sequence[Item]) -> tuple[float, float | None]:
    """Share of correct picks and its standard error (of a sample, as lm-eval; None for one)."""
    n, right = len(items), sum(p == item.gold for p, item in zip(picks, items, strict=True))
    share = right / n
    return share, math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else None
