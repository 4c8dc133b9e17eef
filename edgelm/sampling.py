"""Logits processors and the sampler: in place on one row's logits, random numbers by counter.

Processors are small objects called with (logits [V] float32, changed in place). The same seed and
token index always draw the same number, whatever was computed in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from edgelm.errors import UsageError


class LogitsProcessor(Protocol):
    def __call__(self, logits: Tensor) -> None:
        """Change ``logits`` [V] float32 in place."""


@dataclass(frozen=True)
class Temperature:
    """Divide by ``value``; below 1 sharper, above 1 flatter."""

    value: float

    def __call__(self, logits: Tensor) -> None:
        logits.div_(self.value)


@dataclass(frozen=True)
class TopK:
    """Keep the ``count`` largest logits; ties with the last one stay."""

    count: int

    def __call__(self, logits: Tensor) -> None:
        if self.count < logits.shape[0]:
            smallest = logits.topk(self.count).values[-1]
            logits.masked_fill_(logits < smallest, float("-inf"))


@dataclass(frozen=True)
class TopP:
    """Keep the smallest set of most likely tokens whose probability reaches ``mass``.

    Holtzman et al. 2019, arXiv:1904.09751: the token that crosses the mass is kept.
    """

    mass: float

    def __call__(self, logits: Tensor) -> None:
        ordered, order = logits.sort(descending=True, stable=True)
        before = ordered.double().softmax(0).cumsum(0).roll(1)
        before[0] = 0.0
        logits[order[before >= self.mass]] = float("-inf")


@dataclass(frozen=True)
class SamplingSettings:
    """How the next token is chosen; temperature 0 is greedy.

    Raises:
        UsageError: a value out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, allowed, ok in (
            ("temperature", self.temperature, "0 or above", 0 <= self.temperature < 1e6),
            ("top_k", self.top_k, "0 (off) or above", self.top_k >= 0),
            ("top_p", self.top_p, "above 0 and up to 1", 0 < self.top_p <= 1),
            ("seed", self.seed, "0 to 2**64 - 1", 0 <= self.seed < 1 << 64),
        ):
            if not ok:
                raise UsageError(f"{name} is {value}; allowed: {allowed}.")


class Sampler:
    """Chooses the next id of one row; which row does not matter, so batches change nothing."""

    def __init__(self, settings: SamplingSettings) -> None:
        self.settings = settings
        self.processors = _processors(settings)

    def __call__(self, logits: Tensor, index: int) -> int:
        """Id of the token number ``index``; ``logits`` [V] float32 are changed in place."""
        if self.settings.temperature == 0:
            return int(logits.argmax())
        for process in self.processors:
            process(logits)
        cumulative = logits.double().softmax(0).cumsum(0)
        drawn = uniform(self.settings.seed, index) * float(cumulative[-1])
        return int(torch.searchsorted(cumulative, drawn, right=True).clamp(max=len(logits) - 1))


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) that depends on nothing but its arguments.

    Philox (Salmon et al. 2011) as numpy has it: key ``seed``, counter ``index``.
    """
    from numpy.random import Generator, Philox

    return float(Generator(Philox(key=seed, counter=[0, index, 0, 0])).random())


def _processors(settings: SamplingSettings) -> Sequence[LogitsProcessor]:
    """In transformers' order: temperature, top-k, top-p."""
    chosen: list[LogitsProcessor] = []
    if settings.temperature not in (0.0, 1.0):
        chosen.append(Temperature(settings.temperature))
    if settings.top_k:
        chosen.append(TopK(settings.top_k))
    if settings.top_p < 1:
        chosen.append(TopP(settings.top_p))
    return chosen
