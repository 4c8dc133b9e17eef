"""Whose turn it is, and what many turns amount to: medians, and ratios of what ran side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

_HOPELESS = 20  # times slower than the best


def order(names: Sequence[str], round_: int) -> list[str]:
    """Everybody once, each round beginning with the next one: nobody always follows the same."""
    first = round_ % len(names)
    return [*names[first:], *names[:first]]


def ratios(
    ours: Mapping[int, float], theirs: Mapping[int, float], higher_is_better: bool
) -> list[float]:
    """How many times better we were, for every round in which both had their turns."""
    both = sorted(ours.keys() & theirs.keys())
    if higher_is_better:
        return [ours[i] / theirs[i] for i in both]
    return [theirs[i] / ours[i] for i in both]


def is_hopeless(
    name: str, values: Mapping[str, Mapping[int, float]], higher_is_better: bool
) -> bool:
    """Whether somebody was so slow in the first round that one turn says it all."""
    first = {own: found[0] for own, found in values.items() if found.get(0, 0.0) > 0}
    if name not in first:
        return False
    if higher_is_better:
        return first[name] * _HOPELESS < max(first.values())
    return first[name] > min(first.values()) * _HOPELESS


def summary(
    values: Mapping[str, Mapping[int, float]], beside: Mapping[str, Mapping[int, float]],
    higher_is_better: bool,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """By name: the median `value`, its spread, and of the reference over it the `ratio`.

    Args:
        values: of every name, by round.
        beside: by name and round what the reference reached right before or after that turn.
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
        pairs = ratios(beside.get(name, {}), own, higher_is_better)
        if pairs:
            rows[name]["ratio"] = _short(median(pairs))
            rows[name]["pairs"] = [_short(pair) for pair in pairs]
    return rows


def _short(number: float) -> float:
    """Four significant digits: more would be noise."""
    return float(f"{number:.4g}")
