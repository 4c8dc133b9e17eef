"""Intervals of a share, for samples of any size."""

from __future__ import annotations

from edgelm.evaluation.statistics.clusters import LEVEL


def wilson(right: int, count: int) -> tuple[float, float]:
    """Wilson's interval (1927) of the share that ``right`` of ``count`` estimate.

    Unlike the usual one it is within 0 and 1 and does not vanish where all are right.
    """
    from scipy.stats import binomtest

    found = binomtest(right, count).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)
