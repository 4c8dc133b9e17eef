"""Check that planned memory is still available, just before it is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from edgelm.budget.plan import Plan
from edgelm.budget.units import human
from edgelm.errors import DoesNotFitError
from edgelm.machine import accelerators, hardware


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


@contextmanager
def memory_reported(made: Plan, forget: Callable[[], None] | None = None) -> Iterator[None]:
    """A device that runs out of memory within is an error with the plan, and leaves nothing held.

    Args:
        forget: frees what can be made again.

    Raises:
        DoesNotFitError: with the plan and both numbers.
    """
    failed = False
    try:
        yield
    except torch.OutOfMemoryError:
        failed = True  # raised below, where the error's frames hold no tensors any more
    if failed:
        if forget is not None:
            forget()
        accelerators.release(made.device)
        raise DoesNotFitError(
            f"{made.device} ran out of memory: {human(made.predicted_device_peak_bytes)} are "
            f"planned of {human(made.device_budget_bytes)} that were free. Others took some "
            "meanwhile, or a library takes more than the plan knows. What broke off is freed and "
            "the next request runs; free some, or load with a smaller scheme, context or chunk.",
            made,
        )
