"""Logits processors: small objects that change one row's logits in place before sampling.

Definitions and order are those of ``transformers`` (generation/logits_process.py); presence and
frequency penalties are OpenAI's: over the answer alone, not over its prompt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

NEVER = float("-inf")


@dataclass
class SoFar:
    """The ids of one row: its prompt and its answer so far.

    Args:
        ends: ids that end the answer. limit: the most ids that it may have.
    """

    prompt: tuple[int, ...] = ()
    new: list[int] = field(default_factory=list)
    ends: frozenset[int] = frozenset()
    limit: int | None = None

    def ends_with(self, wanted: tuple[int, ...]) -> bool:
        """True if prompt and answer together end with ``wanted``."""
        count = min(len(wanted), len(self.new))
        split = len(wanted) - count
        before = self.prompt[max(0, len(self.prompt) - split) :]
        own = tuple(self.new[len(self.new) - count :])
        return before == wanted[:split] and own == wanted[split:]


class LogitsProcessor(Protocol):
    def __call__(self, logits: Tensor, ids: SoFar) -> None:
        """Change ``logits`` [V] float32 in place; ``ids`` are those before the next token."""


@dataclass(frozen=True)
class LogitBias:
    """Add numbers to some ids' logits, all of them where an id has several; ``-inf`` bans an id."""

    bias: tuple[tuple[int, float], ...]

    def __call__(self, logits: Tensor, ids: SoFar) -> None:
        tokens, values = zip(*self.bias, strict=True)
        added = torch.tensor(values, dtype=logits.dtype, device=logits.device)
        logits.index_add_(0, torch.tensor(tokens, device=logits.device), added)


@dataclass(frozen=True)
class SequenceBias:
    """Add a number to the logit of each sequence's last id where the ids before it came last.

    ``-inf`` bans a sequence.
    """

    biases: tuple[tuple[tuple[int, ...], float], ...]

    def __call__(self, logits: Tensor, ids: SoFar) -> None:
        found = [(own[-1], bias) for own, bias in self.biases if ids.ends_with(own[:-1])]
        if found:
            LogitBias(tuple(found))(logits, ids)


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
class NoRepeatedNgram:
    """Never choose an id that would end a run of ``size`` ids which prompt or answer hold."""

    size: int

    def __call__(self, logits: Tensor, ids: SoFar) -> None:
        held = torch.tensor([*ids.prompt, *ids.new])
        if len(held) >= self.size:
            last = held[len(held) + 1 - self.size :]
            runs = held.unfold(0, self.size, 1)
            logits[runs[(runs[:, :-1] == last).all(1), -1].to(logits.device)] = NEVER


@dataclass(frozen=True)
class NoEndBefore:
    """Never choose an id that ends the answer before it has ``count`` ids."""

    count: int

    def __call__(self, logits: Tensor, ids: SoFar) -> None:
        if len(ids.new) < self.count:
            logits[_ends(logits, ids)] = NEVER


@dataclass(frozen=True)
class Forced:
    """Choose among ``first`` after a prompt of one id, among ``last`` where the limit is near."""

    first: tuple[int, ...] = ()
    last: tuple[int, ...] = ()

    def __call__(self, logits: Tensor, ids: SoFar) -> None:
        if self.first and len(ids.prompt) == 1 and not ids.new:
            logits.fill_(NEVER)[list(self.first)] = 0.0
        if self.last and ids.limit == len(ids.new) + 1:
            logits.fill_(NEVER)[list(self.last)] = 0.0


@dataclass(frozen=True)
class SoonerEnd:
    """Raise the logits of ending ids by ``|logit| * (factor ** n - 1)``, n ids after ``start``."""

    start: int
    factor: float

    def __call__(self, logits: Tensor, ids: SoFar) -> None:
        late = len(ids.new) - self.start
        if late > 0:
            ends = _ends(logits, ids)
            # Bounded far above any logit: a power that float32 does not hold would give no number.
            power = math.exp(min(late * math.log(self.factor), 60.0))
            own = logits[ends]
            logits[ends] = torch.where(own.isfinite(), own + own.abs() * (power - 1), own)


@dataclass(frozen=True)
class Banned:
    """Never choose these ids."""

    tokens: tuple[int, ...]

    def __call__(self, logits: Tensor, ids: SoFar) -> None:
        logits[list(self.tokens)] = NEVER


@dataclass(frozen=True)
class NotFirst:
    """Do not begin an answer with these ids.

    Args:
        forced: how many ids are forced on an answer to a prompt of one id; they come first.
    """

    tokens: tuple[int, ...]
    forced: int

    def __call__(self, logits: Tensor, ids: SoFar) -> None:
        if len(ids.new) == (self.forced if len(ids.prompt) == 1 else 0):
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


@dataclass(frozen=True)
class Epsilon:
    """Keep tokens at least as likely as ``least``, and the likeliest.

    Hewitt et al. 2022, arXiv:2210.15191.
    """

    least: float

    def __call__(self, logits: Tensor, ids: SoFar) -> None:
        likely = logits.double().softmax(0)
        logits.masked_fill_((likely < self.least) & (logits < logits.max()), NEVER)


@dataclass(frozen=True)
class Eta:
    """Keep tokens at least as likely as the smaller of ``least`` and sqrt(least) * exp(-entropy).

    Hewitt et al. 2022, arXiv:2210.15191; the likeliest is kept as well.
    """

    least: float

    def __call__(self, logits: Tensor, ids: SoFar) -> None:
        surprise = -logits.double().log_softmax(0)
        likely = (-surprise).exp()
        expected = (surprise * likely).nansum()  # the entropy; 0 x inf has no share of it
        bound = (math.sqrt(self.least) * (-expected).exp()).clamp(max=self.least)
        logits.masked_fill_((likely < bound) & (logits < logits.max()), NEVER)


def _ends(logits: Tensor, ids: SoFar) -> list[int]:
    """The ids that end an answer, without those that no logit is for."""
    return [token for token in sorted(ids.ends) if 0 <= token < len(logits)]
