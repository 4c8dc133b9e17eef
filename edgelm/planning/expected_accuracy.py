"""Expected accuracy of a choice: measurements of this project, averaged over models.

``data/accuracy.json`` is rendered from benches/results by ``python benches/expectations.py``. Its
numbers are divergences (KLD, nats per token) of small models from their own float32 weights, and
so estimates for any other model: good for an order of schemes, not for a promise.
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.resources import files

KLD_STEP = 1e-3
"""Nats below which two choices count as equally accurate: 0.1 % of perplexity, less than the
standard error of any text that is scored in practice."""


def schemes() -> list[str]:
    """Recipes whose divergence was measured, the most accurate first."""
    return sorted(_table()["schemes"], key=lambda scheme: _table()["schemes"][scheme])


def expected_kld(scheme: str, kv: str) -> float | None:
    """Nats per token of a recipe's weights and of a cache type, added; None where one of them was
    never measured."""
    weights, cache = _table()["schemes"].get(scheme), _table()["caches"].get(kv)
    return None if weights is None or cache is None else weights + cache


def accuracy_rank(kld: float | None) -> int:
    """Steps of ``KLD_STEP``, less is better; what nobody measured comes last."""
    return 1 << 30 if kld is None else round(kld / KLD_STEP)


@lru_cache(maxsize=1)
def _table() -> dict[str, dict[str, float]]:
    table: dict[str, dict[str, float]] = json.loads(
        files("edgelm").joinpath("data/accuracy.json").read_text(encoding="utf-8")
    )
    return table
