"""Log-likelihood of a text under a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from edgelm.engine.engine import Engine, RowTokens
from edgelm.errors import UsageError
from edgelm.ops.cache import KVCache


def log_likelihoods(engine: Engine, cache: KVCache, ids: Sequence[int]) -> Tensor:
    """Natural log-likelihood of each id after the first given those before: [T - 1] float32.

    Args:
        cache: a cache with an empty row that fits the text.
    """
    if len(ids) < 2:
        raise UsageError("Scoring needs at least two tokens.")
    engine.require_language_model("Scoring")
    tokens = torch.tensor(ids)
    found = []
    for start in range(0, len(ids) - 1, engine.plan.chunk):
        piece = tokens[start : start + engine.plan.chunk]
        hidden = engine.run(cache, [RowTokens(0, piece)]).states
        wanted = tokens[start + 1 : start + 1 + len(piece)]
        out = torch.empty(len(wanted), engine.config.vocab_size, device=engine.device)
        logits = engine.logits(hidden[: len(wanted)], out)
        wanted = wanted.to(engine.device)
        found.append(-functional.cross_entropy(logits, wanted, reduction="none").cpu())
    return torch.cat(found)
