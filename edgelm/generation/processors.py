"""Logits processors: small objects that change one row's logits in place before sampling.

Definitions and order are those of ``transformers`` (generation/logits_process.py); presence and
frequency penalties are OpenAI's: over the answer alone, not over its prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

NEVER = float("-inf")


@dataclass
class SoFar:
    """The ids of one row: its prompt and its answer so far."""

    prompt: tuple[int, ...] = ()
    new: list[int] = field(default_factory=list)


class LogitsProcessor(Protocol):
    def __call__(self, logits: Tensor, ids: SoFar) -> None:
        """Change ``logits`` [V] float32 in place; ``ids`` are those before the next token."""


@dataclass(frozen=True)
class LogitBias:
    """Add a number to some ids' logits; ``-inf`` bans an id."""

    bias: tuple[tuple[int, float], ...]

    def __call__(self, logits: Tensor, ids: SoFar) -> None:
        tokens, values = zip(*self.bias, strict=True)
        logits[list(tokens)] += torch.tensor(values, dtype=logits.dtype, device=logits.device)


@dataclass(frozen=True)
class RepetitionPenalty:
    """Divide positive logits of ids in prompt or answer by ``value``, multiply negative ones.

    Keskar et al. 2019, arXiv:1909.05858, with signs handled as in transformers.
    """

    value: float

    def __call__(self, logits: Tensor, ids: SoFar) -> None:
        seen = torch.tensor(sorted({*ids.prompt, *ids.new}), device=logits.device)
        own = logits[seen]
        logits[seen] = torch.where(own < 0, own * self.value, own / self.value)


@dataclass(frozen=True)
class CountPenalty:
    """Subtract ``presence`` from ids of the answer, and ``frequency`` times their count."""

    presence: float
    frequency: float

    def __call__(self, logits: Tensor, ids: SoFar) -> None:
        if ids.new:
            seen, counts = torch.tensor(ids.new).unique(return_counts=True)
            penalties = self.presence + self.frequency * counts
            logits[seen.to(logits.device)] -= penalties.to(logits.device)


@dataclass(frozen=True)
class Banned:
    """Never choose these ids."""

    tokens: tuple[int, ...]

    def __call__(self, logits: Tensor, ids: SoFar) -> None:
        logits[list(self.tokens)] = NEVER


@dataclass(frozen=True)
class Temperature:
    """Divide logits by ``value``; below 1 the distribution is sharper, above 1 flatter."""

    value: float

    def __call__(self, logits: Tensor, ids: SoFar) -> None:
        logits.div_(self.value)


@dataclass(frozen=True)
class TopK:
    """Keep the ``count`` largest logits; ties with the last one are kept."""

    count: int

    def __call__(self, logits: Tensor, ids: SoFar) -> None:
        if self.count < logits.shape[0]:
            smallest = logits.topk(self.count).values[-1]
            logits.masked_fill_(logits < smallest, NEVER)


@dataclass(frozen=True)
class TopP:
    """Nucleus sampling: keep the smallest set of likeliest tokens with probability ``mass``.

    Holtzman et al. 2019, arXiv:1904.09751: the token that crosses the mass is kept.
    """

    mass: float

    def __call__(self, logits: Tensor, ids: SoFar) -> None:
        ordered, order = logits.sort(descending=True, stable=True)
        before = ordered.double().softmax(0).cumsum(0).roll(1)
        before[0] = 0.0
        least = torch.empty_like(order, dtype=torch.bool).scatter_(0, order, before >= self.mass)
        logits.masked_fill_(least, NEVER)


@dataclass(frozen=True)
class MinP:
    """Keep tokens at least ``share`` times as likely as the likeliest one.

    Nguyen et al. 2024, arXiv:2407.01082.
    """

    share: float

    def __call__(self, logits: Tensor, ids: SoFar) -> None:
        likely = logits.double().softmax(0)
        logits.masked_fill_(likely < self.share * likely.max(), NEVER)


@dataclass(frozen=True)
class Typical:
    """Locally typical sampling: keep tokens of nearly expected surprise, up to ``mass``.

    Meister et al. 2022, arXiv:2202.00666: the token that crosses the mass is kept, with its ties.
    """

    mass: float

    def __call__(self, logits: Tensor, ids: SoFar) -> None:
        surprise = -logits.double().log_softmax(0)
        likely = (-surprise).exp()
        distance = (surprise - (surprise * likely).nansum()).abs()  # 0 x inf: no share of the mean
        ordered, order = distance.sort(stable=True)
        crosses = (likely[order].cumsum(0) < self.mass).sum().clamp(max=len(ordered) - 1)
        logits.masked_fill_(distance > ordered.gather(0, crosses.view(1)), NEVER)
