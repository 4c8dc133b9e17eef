"""Whether memory is really there, asked again just before it is taken: others take it meanwhile."""

from __future__ import annotations

from edgelm import hardware
from edgelm.errors import DoesNotFitError
from edgelm.memory import Plan, human


def require_memory(made: Plan) -> None:
    """Refuse to go on where the rest of a plan would make the system swap or kill.

    Raises:
        DoesNotFitError: with the plan and both numbers.
    """
    missing = made.predicted_peak_bytes - hardware.resident_bytes()
    available = hardware.available_memory_bytes()
    if missing > available:
        raise DoesNotFitError(
            f"Loading needs {human(missing)} more and {human(available)} are available now: other "
            "processes took memory after the plan was made, or the budget is beyond what this "
            "machine has. Free some, or choose a smaller scheme, context or budget.",
            made,
        )
