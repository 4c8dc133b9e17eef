"""Speculation: several tokens for one step, where guessing them is likely to pay.

A guess is run behind the newest token in one step, and every token is then chosen from its own
logits as without a guess (Leviathan et al. 2023, arXiv:2211.17192; a guess is one token, not a
distribution, so taking it when the draw agrees is their exact rule). What is right was made for
less than a step; what is wrong cost the difference between a step of many rows and of one. So the
text never depends on guesses, but time does, and what they may lose is bounded: they spend from an
account that plain steps fill.
"""

from __future__ import annotations

from typing import Protocol

from edgelm.generation.answer import Answer
from edgelm.generation.processors import SoFar
from edgelm.generation.request import Request
from edgelm.generation.sampling import SamplingSettings

_EARNED = 0.01  # of a plain step: what guesses may lose of it in the long run
_START = 0.5  # steps that may be lost before anything was earned, and are carried between answers
_MOST = 8.0  # steps: what one answer's right guesses may later lose to wrong ones
_GUESSED_COST = 0.15  # of a guessed token, in steps, until it was measured
_WEIGHT = 0.25  # of a new measurement
_FORGET = 0.95  # of what is known about guesses, with each new one
_PRIOR_WEIGHT = 2.0


class Drafter(Protocol):
    """Source of guesses."""

    greedy_only: bool

    def begin(self, ids: SoFar, sampling: SamplingSettings) -> None:
        """A new answer begins after ``ids``."""

    def strength(self, ids: SoFar) -> int:
        """Certainty of a guess after ``ids``: 0 for none, larger for a more certain one."""

    def guess(self, ids: SoFar, count: int) -> list[int]:
        """At most ``count`` tokens; ``strength`` was asked before."""


class Speculation:
    """When to guess and how much, learnt from what guesses cost and how often they are right.

    Costs are in steps: how much longer a step with guesses takes than one without.

    Args:
        depth: the most tokens guessed at once.
    """

    def __init__(self, drafter: Drafter, depth: int) -> None:
        self.drafter, self.depth = drafter, depth
        self.balance = _START
        self._idle = 0  # plain steps since the last guess
        self._step_s: float | None = None
        self._costs: dict[int, float] = {}  # by tokens guessed
        self._right: dict[int, float] = {}  # by strength
        self._wrong: dict[int, float] = {}
        self._strength = 0

    def serves(self, request: Request) -> bool:
        """True if the request allows guesses."""
        greedy = request.sampling.temperature == 0 or not self.drafter.greedy_only
        return request.speculate == "auto" and greedy

    def begin(self, answer: Answer) -> None:
        self.balance = min(self.balance, _START)
        self.drafter.begin(answer.ids, answer.request.sampling)

    def guess(self, answer: Answer) -> list[int]:
        """Tokens to run behind the newest one; none where they would hardly pay."""
        room = min(self.depth, answer.limit - len(answer.ids.new) - 1)
        if self._step_s is None or room < 1 or self.balance < self._cost(1):
            return []
        self._strength = self.drafter.strength(answer.ids)
        count = self._count(room) if self._strength else 0
        return self.drafter.guess(answer.ids, count) if count else []

    def stepped(self, seconds: float) -> None:
        """A step without guesses took so long."""
        known = self._step_s or seconds
        self._step_s = known + _WEIGHT * (min(seconds, 2 * known) - known)
        self.balance = min(self.balance + _EARNED, _MOST)
        self._idle += 1

    def verified(self, count: int, right: int, seconds: float) -> None:
        """A step with ``count`` guesses, the first ``right`` of them right, took so long."""
        assert self._step_s is not None
        known = self._cost(count)
        cost = min(max(0.0, seconds / self._step_s - 1), 2 * known + 1)  # a hiccup says little
        weight = _WEIGHT if count in self._costs else 1.0
        self._costs[count] = known + weight * (cost - known)
        self.balance = min(self.balance + right - cost, _MOST)
        kind = self._strength
        self._right[kind] = _FORGET * self._right.get(kind, 0.0) + right
        self._wrong[kind] = _FORGET * self._wrong.get(kind, 0.0) + (right < count)
        self._idle = 0

    def _count(self, room: int) -> int:
        """Number of tokens to guess: the most profitable one within what may be lost.

        Where none would win, what plain steps have earned since the last guess buys another look.
        """
        rate, hoped = self._rate(), 0.0
        best, most = 0, float("-inf")
        for count in range(1, room + 1):
            hoped += rate**count
            cost = self._cost(count)
            if hoped - cost > most and cost <= self.balance:
                best, most = count, hoped - cost
        return best if most > 0 or self._cost(best) <= _EARNED * self._idle else 0

    def _cost(self, count: int) -> float:
        """Cost of ``count`` guesses in steps: measured, or scaled from the nearest measurement."""
        if count in self._costs:
            return self._costs[count]
        if not self._costs:
            return _GUESSED_COST * count
        nearest = min(self._costs, key=lambda known: abs(known - count))
        return self._costs[nearest] * count / nearest

    def _rate(self) -> float:
        """The share of guessed tokens of this strength that were right where all before were."""
        kind = self._strength
        prior = kind / (kind + 2)
        right = self._right.get(kind, 0.0) + _PRIOR_WEIGHT * prior
        return right / (right + self._wrong.get(kind, 0.0) + _PRIOR_WEIGHT * (1 - prior))
