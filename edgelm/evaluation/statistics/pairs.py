"""Two models' answers to the same items: McNemar's test, differences of accuracy, verdicts."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from edgelm.evaluation.statistics.clusters import clustered_mean, numbered, reach_of

POWER = 0.8
"""Chance to see the smallest detectable difference."""
NOT_WORSE, WORSE, UNDECIDED = "not worse", "worse", "undecided"


@dataclass(frozen=True)
class Pairs:
    """Flags of the items answered correctly ``before`` and ``after``, and their passages if any."""

    before: Sequence[bool]
    after: Sequence[bool]
    passages: Sequence[Hashable] | None = None


@dataclass(frozen=True)
class PairedScore:
    """Answers after against those before; shares of all items.

    ``gained`` and ``lost`` are the flips: items turned right, and wrong. ``p`` is that of
    McNemar's exact test that both are as likely, ``p_holm`` corrected for the number of tasks.
    ``difference`` of the accuracies lies within ``low`` and ``high`` in ``LEVEL`` of all samples.
    ``detectable``: the smallest difference that such a sample shows with a chance of ``POWER``.
    ``verdict`` at ``margin``: "not worse" if the whole interval is above -margin, "worse" if it
    is below, else "undecided".
    """

    gained: int
    lost: int
    p: float
    p_holm: float
    difference: float
    low: float
    high: float
    detectable: float
    margin: float
    verdict: str


def paired_scores(tasks: Mapping[str, Pairs], margin: float) -> dict[str, PairedScore]:
    """Score of each task's pairs; ``margin`` is a share, 0.01 for one point."""
    scores = {name: _paired_score(pairs, margin) for name, pairs in tasks.items()}
    corrected = holm([score.p for score in scores.values()])
    return {
        name: replace(score, p_holm=p)
        for (name, score), p in zip(scores.items(), corrected, strict=True)
    }


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p of McNemar's exact test: is a flip as likely in either direction?"""
    from scipy.stats import binomtest

    flips = gained + lost
    return float(binomtest(gained, flips).pvalue) if flips else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) correction of p values for their number, in their order."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    found, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        found[index] = largest
    return found


def _paired_score(pairs: Pairs, margin: float) -> PairedScore:
    before, after = np.asarray(pairs.before, np.float64), np.asarray(pairs.after, np.float64)
    changes = after - before
    gained, lost = int((changes > 0).sum()), int((changes < 0).sum())
    own = range(len(changes)) if pairs.passages is None else pairs.passages
    middle, error, clusters = _smoothed(changes, numbered(own))
    quantile = reach_of(clusters)
    low, high = max(-1.0, middle - quantile * error), min(1.0, middle + quantile * error)
    p = mcnemar(gained, lost)
    return PairedScore(
        gained, lost, p, p, float(changes.mean()), low, high,
        (quantile + NormalDist().inv_cdf(POWER)) * error, margin, _verdict(low, high, margin),
    )  # fmt: skip


def _smoothed(changes: np.ndarray, clusters: list[int]) -> tuple[float, float, int]:
    """Mean of changes [N] of -1, 0 and 1, its error and the number of clusters.

    Half an item is added to each of the four cells of the table, as Agresti and Min (2005) advise:
    without flips the plain error would be 0, and of few it is too small. As items they are two
    that changed by half a flip each way (their squares add up to one flip).
    """
    half = math.sqrt(0.5)
    more = max(clusters) + 1
    found = clustered_mean([*changes.tolist(), half, -half], [*clusters, more, more + 1])
    assert found.stderr is not None
    return found.value, found.stderr, found.clusters


def _verdict(low: float, high: float, margin: float) -> str:
    if low > -margin:
        return NOT_WORSE
    return WORSE if high < -margin else UNDECIDED
