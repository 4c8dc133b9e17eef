"""Whose turn it is, and what many turns amount to: medians, and ratios of what ran side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any


def order(names: Sequence[str], round_: int) -> list[str]:
    """Everybody once, each round beginning with the next one: nobody always follows the same."""
    first = round_ % len(names)
    return [*names[first:], *names[:first]]


def ratios(
    ours: Mapping[int, float], theirs: Mapping[int, float], higher_is_better: bool
) -> list[float]:
    """How many times better we were, for every round in which both ran."""
    both = sorted(ours.keys() & theirs.keys())
    if higher_is_better:
        return [ours[i] / theirs[i] for i in both]
    return [theirs[i] / ours[i] for i in both]


def summary(
    values: Mapping[str, Mapping[int, float]], reference: str, higher_is_better: bool
) -> dict[str, dict[str, Any]]:
    """By name: the median `value`, its spread, and of the reference over it the `ratio`.

    Args:
        values: of every name, by round.
        reference: the name that the others are compared with; where it has no value, there are
            no ratios.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name, own in values.items():
        if not own:
            continue
        numbers = list(own.values())
        rows[name] = {
            "value": _short(median(numbers)),
            "lowest": _short(min(numbers)),
            "highest": _short(max(numbers)),
            "turns": len(numbers),
        }
        pairs = ratios(values.get(reference, {}), own, higher_is_better)
        if name != reference and pairs:
            rows[name]["ratio"] = _short(median(pairs))
            rows[name]["pairs"] = [_short(pair) for pair in pairs]
    return rows


def _short(number: float) -> float:
    """Four significant digits: more would be noise."""
    return float(f"{number:.4g}")
