"""Intervals of a share, for samples of any size."""

from __future__ import annotations

import math
from statistics import NormalDist

from edgelm.evaluation.statistics.student import LEVEL


def wilson(right: float, count: float) -> tuple[float, float]:
    """Wilson's interval (1927) of the share that ``right`` of ``count`` estimate.

    Unlike the usual one it is within 0 and 1 and does not vanish where all are right.
    """
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    share, scale = right / count, 1 + z * z / count
    middle = (share + z * z / (2 * count)) / scale
    reach = z / scale * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - reach), min(1.0, middle + reach)
