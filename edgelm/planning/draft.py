"""The plan of a draft model beside the model that it guesses for."""

from __future__ import annotations

from dataclasses import replace

from edgelm.budget.parts import PROCESS, Part, PartName
from edgelm.budget.plan import Plan
from edgelm.errors import UsageError
from edgelm.generation.draft_model import PREFIX
from edgelm.models.model_files import ModelFiles
from edgelm.planning.settings import Settings
from edgelm.planning.solver import solve


def require_guesses(plan: Plan) -> None:
    """Raise UsageError for a plan that has no room for guesses."""
    if not plan.draft_depth:
        raise UsageError(
            "A draft model guesses tokens, and this plan guesses none: load a causal-lm with "
            "draft_depth and chunk above 1, or leave draft out."
        )


def plan_draft(files: ModelFiles, plan: Plan, settings: Settings) -> Plan:
    """The draft's own plan: one row of the large model's context, in the same schemes.

    Args:
        plan, settings: the large model's.
    """
    context = min(plan.context, files.config.max_context)
    left = max(1, plan.budget_bytes - plan.steady_peak_bytes + _process_bytes(plan))
    own = replace(
        settings, context=context, rows=1, chunk=plan.chunk, draft_depth=0, budget=left,
        offload="none",
    )  # fmt: skip
    return solve(files.assemble("causal-lm"), own, unread_bytes=files.unread_bytes)


def with_draft(plan: Plan, draft: Plan) -> Plan:
    """``plan`` with the parts of the draft, which is loaded last."""
    scratch = PartName.KERNEL_SCRATCH
    both = [part for own in (plan, draft) for part in own.parts if part.name == scratch]
    parts = [part for part in plan.parts if part.name != scratch]
    parts += [
        Part(PREFIX + part.name, part.bytes, part.where)
        for part in draft.parts
        if part.name not in (*PROCESS, scratch)
    ]
    # The two never run at the same time.
    parts.append(Part(scratch, max(part.bytes for part in both), both[0].where))
    second = plan.steady_peak_bytes + draft.load_peak_bytes - _process_bytes(plan)
    whole = replace(plan, parts=tuple(parts), load_peak_bytes=max(plan.load_peak_bytes, second))
    return replace(whole, fits=whole.within_budgets)


def _process_bytes(plan: Plan) -> int:
    """Bytes that both plans count: the process without a model."""
    return sum(part.bytes for part in plan.parts if part.name in PROCESS)
