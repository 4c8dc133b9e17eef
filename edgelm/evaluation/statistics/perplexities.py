"""Perplexity and its paired difference to a baseline's, with errors by blocks of windows.

A perplexity is exp of a mean loss. Errors go through exp by its derivative (the delta method).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgelm.evaluation.statistics.clusters import Estimate, clustered_mean

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def perplexity(losses: ArrayLike, clusters: Sequence[int]) -> Estimate:
    """exp of the mean of losses [N] in nats, with its error."""
    mean = clustered_mean(losses, clusters)
    value = math.exp(mean.value)
    return replace(mean, value=value, stderr=None if mean.stderr is None else value * mean.stderr)


def perplexity_difference(
    losses: ArrayLike, baseline_losses: ArrayLike, clusters: Sequence[int]
) -> Estimate:
    """Perplexity less that of the baseline on the same tokens, with the error of the pairs.

    The error is that of what a token adds to the difference, exp(m) x - exp(b) y, m and b the
    means: what makes a token hard for both cancels out.
    """
    own, theirs = np.asarray(losses, np.float64), np.asarray(baseline_losses, np.float64)
    ppl, before = math.exp(own.mean()), math.exp(theirs.mean())
    return replace(clustered_mean(ppl * own - before * theirs, clusters), value=ppl - before)
