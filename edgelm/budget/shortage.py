"""The shortage of a plan that does not fit, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgelm.budget.parts import PartName
from edgelm.budget.units import human

if TYPE_CHECKING:
    from edgelm.budget.plan import Plan


def shortage(plan: Plan) -> str:
    """By how much a plan exceeds its budget and in which phase, or its device's memory."""
    device, free = plan.predicted_device_peak_bytes, plan.device_budget_bytes
    if device > free and plan.predicted_peak_bytes <= plan.budget_bytes:
        return (
            f"needs {human(device)} on {plan.device}, {human(device - free)} more than the "
            f"{human(free)} that are free there"
        )
    if is_below_runtime(plan):
        return (
            f"the budget of {human(plan.budget_bytes)} is less than the "
            f"{human(_runtime_bytes(plan))} that "
            "Python and its libraries take before any model"
        )
    phase = "loading" if plan.load_peak_bytes > plan.steady_peak_bytes else "generating"
    over = plan.predicted_peak_bytes - plan.budget_bytes
    return (
        f"needs {human(plan.predicted_peak_bytes)} while {phase}, {human(over)} more than the "
        f"budget of {human(plan.budget_bytes)}"
    )


def is_below_runtime(plan: Plan) -> bool:
    """True if the process alone exceeds the budget, so that no choice of the model can fit."""
    return _runtime_bytes(plan) > plan.budget_bytes


def _runtime_bytes(plan: Plan) -> int:
    return next(part.bytes for part in plan.parts if part.name == PartName.RUNTIME)
