"""Solver: of everything that a user left open, the choice that fits and answers best.

Candidates are a product of what is open, and each gets its own plan. What fits comes first, then
``CRITERIA`` decide, and last the order of the product. Whatever was not taken keeps its reason,
which is the first criterion by which it lost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch

from edgelm.budget.parts import WEIGHTS
from edgelm.budget.plan import Plan
from edgelm.budget.shortage import shortage
from edgelm.budget.units import human
from edgelm.config import ModelConfig
from edgelm.errors import KernelUnavailableError, UsageError
from edgelm.models.assembled import Assembled
from edgelm.planning.expected_accuracy import accuracy_rank, schemes
from edgelm.planning.matrices import keeps_its_scheme
from edgelm.planning.planner import Candidate, Planner
from edgelm.planning.setting_table import DEFAULT_CHUNK, MOST_ROWS
from edgelm.planning.settings import (
    DEFAULT_CONTEXT,
    Settings,
    cache_dtype,
    given_chunk,
    given_context,
    given_recipe,
    given_rows,
)
from quant import Recipe

SHORTEST_CONTEXT = 512
SMALLEST_CHUNK = 64
CACHE_TYPES = (torch.bfloat16, torch.int8)  # behind that of the activations

Rejected = dict[str, Any]
logger = logging.getLogger("edgelm")


def solve(
    model: Assembled, settings: Settings, drafted: bool = False, unread_bytes: int = 0
) -> Plan:
    """The best plan for these settings, with the others and their reasons in ``rejected``.

    Where nothing fits it is the smallest, and its ``fits`` says so.

    Args:
        drafted: a smaller model will guess tokens ahead.
        unread_bytes: what the process still takes before it loads weights.

    Raises:
        UsageError, ContextLengthError: a setting is not allowed for this model.
        ModelFileError: a weight is missing or has another shape.
        KernelUnavailableError: the chosen backend cannot run a matrix in any scheme.
    """
    planner = Planner(model, settings, drafted, unread_bytes)
    best = _solved(planner)
    if best.fits or planner.accelerator is None or settings.device != "auto":
        return best
    logger.warning("%s: falling back to the CPU.", shortage(best))
    return _solved(Planner(model, replace(settings, device="cpu"), drafted, unread_bytes))


def _solved(planner: Planner) -> Plan:
    settings, config = planner.settings, planner.model.config
    plans: list[Plan] = []
    failures: dict[Recipe | None, Exception] = {}
    for candidate in candidates(planner, _contexts(given_context(settings, config), config)):
        if candidate.recipe in failures:
            continue
        try:
            plans.append(planner.plan(candidate))
        except (UsageError, KernelUnavailableError) as error:
            failures[candidate.recipe] = error
    if not plans:
        raise next(iter(failures.values()))
    best, *others = sorted(plans, key=_rank)
    impossible = [_impossible(recipe, error) for recipe, error in failures.items()]
    return replace(best, rejected=(*_rejections(best, others), *impossible))


def fitting_contexts(model: Assembled, settings: Settings) -> list[Plan]:
    """The best plan for every scheme and context: contexts rise, schemes lose accuracy.

    Args:
        settings: as for ``solve``; what they fix is the only row or column.
    """
    planner, config = Planner(model, settings), model.config
    given = given_context(settings, config)
    contexts = [given] if given else _doublings(SHORTEST_CONTEXT, config.max_context)
    found: dict[tuple[int, str], Plan] = {}
    for candidate in candidates(planner, contexts):
        try:
            plan = planner.plan(candidate)
        except (UsageError, KernelUnavailableError):
            continue  # the table has no column for a scheme that this model or backend cannot have
        key = (plan.context, plan.scheme)
        found[key] = min(found.get(key, plan), plan, key=_rank)
    return sorted(found.values(), key=lambda plan: (plan.context, plan.expected_kld or 0.0))


def candidates(planner: Planner, contexts: list[int]) -> Iterator[Candidate]:
    """Every choice of what is open; between equals the earlier one is taken, so the chunk that
    answers a prompt fastest and the widest cache come first."""
    settings = planner.settings
    choices = product(
        _chunks(given_chunk(settings)),
        _cache_types(cache_dtype(settings), planner.dtype),
        contexts,
        _rows(given_rows(settings)),
        _recipes(given_recipe(settings, planner.model), planner),
    )
    for chunk, kv, context, rows, recipe in choices:
        yield Candidate(recipe, kv, context, rows, chunk)


def _chunks(given: int | None) -> list[int]:
    return [given] if given else _halvings(DEFAULT_CHUNK, SMALLEST_CHUNK)


def _rows(given: int | None) -> list[int]:
    return [given] if given else _halvings(MOST_ROWS, 1)


def _cache_types(given: torch.dtype | None, dtype: torch.dtype) -> list[torch.dtype]:
    return [given] if given else list(dict.fromkeys((dtype, *CACHE_TYPES)))


def _contexts(given: int | None, config: ModelConfig) -> list[int]:
    """The model's, at most DEFAULT_CONTEXT; shorter ones serve where that fits in no scheme."""
    return [given] if given else _halvings(
        min(config.max_context, DEFAULT_CONTEXT), SHORTEST_CONTEXT
    )  # fmt: skip


def _recipes(given: Recipe | None, planner: Planner) -> list[Recipe | None]:
    """The recipe that was asked for, else what a quantized file holds, else all measured ones."""
    if given is not None:
        return [given]
    if keeps_its_scheme(planner.model.decoder, planner.model.names):
        return [None]
    return [Recipe.parse(scheme) for scheme in schemes()]


def _doublings(smallest: int, largest: int) -> list[int]:
    found = [min(smallest, largest)]
    while found[-1] < largest:
        found.append(min(2 * found[-1], largest))
    return found


def _halvings(largest: int, smallest: int) -> list[int]:
    found = [largest]
    while found[-1] // 2 >= smallest:
        found.append(found[-1] // 2)
    return found


@dataclass(frozen=True)
class Criterion:
    """One thing by which plans that fit are compared.

    Attributes:
        key: the smaller the better. reason: why a plan lost to the best one by it.
    """

    key: Callable[[Plan], float]
    reason: Callable[[Plan, Plan], str]


def _away_bytes(plan: Plan) -> int:
    """Weights that are not where the plan computes: on disk, or on the host beside a device."""
    return sum(
        part.bytes for part in plan.parts if part.name in WEIGHTS and part.where != plan.place
    )


def _slower(plan: Plan, best: Plan) -> str:
    if plan.rows < best.rows:
        return f"fits, but {best.rows} answers side by side fit too"
    return (
        f"fits, but is slower: {human(plan.moved_bytes_per_token)} a token against "
        f"{human(best.moved_bytes_per_token)}, and no more accurate"
    )


def _where(plan: Plan) -> str:
    return "on disk" if plan.device == "cpu" else "on the CPU"


# Reading from disk is slower than any scheme: where it must be, as little as can be, and every
# chunk of a prompt reads it all again. Answers side by side share what a step reads.
CRITERIA = (
    Criterion(
        lambda plan: _away_bytes(plan) > 0,
        lambda plan, _: f"fits, but only with layers {_where(plan)}",
    ),
    Criterion(
        lambda plan: -plan.context,
        lambda _, best: f"fits, but a context of {best.context} fits too",
    ),
    Criterion(
        lambda plan: -plan.chunk if _away_bytes(plan) else 0,
        lambda plan, best: (
            f"fits, but reads the layers {_where(plan)} for every {plan.chunk} tokens of a prompt, "
            f"not every {best.chunk}"
        ),
    ),
    Criterion(_away_bytes, lambda plan, _: f"fits, but with more layers {_where(plan)}"),
    Criterion(
        lambda plan: accuracy_rank(plan.expected_kld),
        lambda plan, best: (
            f"fits, but is less accurate: expected divergence {_nats(plan)} against {_nats(best)}"
        ),
    ),
    Criterion(lambda plan: plan.moved_bytes_per_token / plan.rows, _slower),
)


def _rank(plan: Plan) -> tuple[float, ...]:
    if plan.fits:
        return (0, *(criterion.key(plan) for criterion in CRITERIA))
    device = plan.predicted_device_peak_bytes
    return (1, plan.predicted_peak_bytes + device, plan.steady_peak_bytes + device)


def _rejections(best: Plan, others: list[Plan]) -> Iterator[Rejected]:
    """Runners-up first; of plans that differ in their chunk only the better one."""
    shown = {(best.scheme, best.kv, best.context, best.rows)}
    for plan in others:
        key = (plan.scheme, plan.kv, plan.context, plan.rows)
        if key not in shown:
            shown.add(key)
            yield _rejected(plan, reason(plan, best))


def _rejected(plan: Plan, why: str) -> Rejected:
    keys = ("scheme", "kv", "context", "rows", "chunk", "fits", "predicted_peak_bytes")
    estimates = ("expected_kld", "expected_tok_s")
    return {key: getattr(plan, key) for key in (*keys, *estimates)} | {"reason": why}


def _impossible(recipe: Recipe | None, error: Exception) -> Rejected:
    """A recipe that this model or backend cannot have."""
    keys = ("kv", "context", "rows", "chunk", "predicted_peak_bytes", "expected_kld")
    nothing = dict.fromkeys((*keys, "expected_tok_s"))
    return {"scheme": str(recipe), **nothing, "fits": False, "reason": str(error)}


def reason(plan: Plan, best: Plan) -> str:
    """The reason for ``best`` rather than ``plan``, in words."""
    if not plan.fits:
        return shortage(plan)
    for criterion in CRITERIA:
        if criterion.key(plan) > criterion.key(best):
            return criterion.reason(plan, best)
    return "fits, but gains nothing: no more accurate, no faster"


def _nats(plan: Plan) -> str:
    return "unknown" if plan.expected_kld is None else f"{plan.expected_kld:.4f}"
