"""Token perplexity over windows that do not overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgelm.errors import UsageError
from edgelm.model import LanguageModel


def perplexity(lm: LanguageModel, ids: Sequence[int], window: int = 512) -> float:
    """exp of the mean negative log-likelihood of a text's tokens.

    Each window of ``window`` ids starts from an empty cache and gives ``window - 1`` predictions;
    ids that do not fill a last window are left out.
    """
    if not 2 <= window <= len(ids):
        raise UsageError(f"window is {window}; allowed: 2 to the text's {len(ids)} tokens.")
    starts = range(0, len(ids) - window + 1, window)
    total = sum(float(lm.log_likelihoods(ids[i : i + window]).double().sum()) for i in starts)
    return math.exp(-total / (len(starts) * (window - 1)))
