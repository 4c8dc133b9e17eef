"""Amounts of memory and speed: read from a user's text, written for people."""

from __future__ import annotations

import re

from edgelm.errors import UsageError

_UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
_UNITS |= {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}  # as in 6G
_UNITS |= {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_LARGEST_BUDGET = 1 << 60
_LEAST_BYTES = 1 << 20  # a number below without a unit is hardly one of bytes
BLOCK_BYTES = 32 << 20
"""A large tensor is read, quantized, compared or multiplied this much at a time, in float32."""


def parse_budget(text: str | int | None, available_bytes: int) -> int:
    """Bytes of a budget: a number with a unit (``6GiB``) or a share of what is available (``70%``).

    Raises:
        UsageError: not a budget, or not above zero.
    """
    if text is None:
        return available_bytes
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%|[a-zA-Z]*)\s*", str(text))
    unit = match[2].lower() if match else None
    if match and not unit and isinstance(text, str) and 0 < float(match[1]) < _LEAST_BYTES:
        raise UsageError(
            f"budget {text!r:.40} has no unit; did you mean {match[1]}GiB? Write that."
        )
    if match and (unit == "%" or unit in _UNITS):
        whole = available_bytes / 100 if unit == "%" else _UNITS[str(unit)]
        budget = float(match[1]) * whole
        if 1 <= budget < _LARGEST_BUDGET:
            return int(budget)
    raise UsageError(
        f"budget {str(text)!r:.40} is not an amount of memory; write it as 6GiB, 800MiB or 70%."
    )


def human(nbytes: float) -> str:
    """Bytes for people: 1.5 GiB, 12.0 MiB."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(nbytes) >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes:.0f} B"


def human_speed(tok_s: float) -> str:
    """Tokens a second for people, slow ones with two digits: 48 tok/s, 0.31 tok/s."""
    return f"{tok_s:.0f} tok/s" if tok_s >= 10 else f"{tok_s:.2g} tok/s"
