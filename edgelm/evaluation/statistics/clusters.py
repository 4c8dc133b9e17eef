"""Means whose error is that of clusters: values of one cluster are not independent evidence.

The formula is the cluster-robust one of a regression on a constant, as in Miller, "Adding error
bars to evals" (arXiv 2411.00640).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

LEVEL = 0.95
"""Coverage of every interval of an evaluation."""
BLOCKS = 30
"""Blocks of a long text: enough for an error, each long enough to be independent of the next."""


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error, None if there is only one cluster."""

    value: float
    stderr: float | None
    clusters: int

    def interval(self) -> tuple[float, float] | None:
        """The interval that covers the truth in ``LEVEL`` of all samples, by Student's t."""
        if self.stderr is None:
            return None
        reach = reach_of(self.clusters) * self.stderr
        return self.value - reach, self.value + reach


def reach_of(clusters: int) -> float:
    """Standard errors from an estimate to the end of its interval, by Student's t."""
    from scipy.stats import t  # takes a second to import

    return float(t.ppf((1 + LEVEL) / 2, clusters - 1))


def numbered(clusters: Sequence[Hashable]) -> list[int]:
    """The clusters' names as numbers from 0 on, in order of appearance."""
    known: dict[Hashable, int] = {}
    return [known.setdefault(name, len(known)) for name in clusters]


def clustered_mean(values: ArrayLike, clusters: Sequence[int]) -> Estimate:
    """Mean of values [N] with the error of their clusters, numbered from 0 on, [N]."""
    given, own = np.asarray(values, dtype=np.float64), np.asarray(clusters)
    mean = float(given.mean())
    sums = np.bincount(own, weights=given - mean)
    count = len(sums)
    if count == 1:
        return Estimate(mean, None, 1)
    error = math.sqrt(count / (count - 1) * float(sums @ sums)) / len(given)
    return Estimate(mean, error, count)


def blocks_of(windows: Sequence[int]) -> list[int]:
    """Block of each window of several texts, given how many windows each text has.

    A block is a number of consecutive windows of one text: neighbours are alike, which a window as
    a cluster of its own would not count. There are about ``BLOCKS``, or a window is one.
    """
    size = max(1, math.ceil(sum(windows) / BLOCKS))
    found: list[int] = []
    for count in windows:
        first = found[-1] + 1 if found else 0
        found += [first + window // size for window in range(count)]
    return found
