"""A walk through the code: what somebody reads who follows one run, and how often it leads back.

Each function that runs is read once, when it is first reached, and each call in it is followed
once, depth first in the order in which calls first came: however often a layer or a token repeats
them, they are the same lines. Places are files, or the rooms that ``imports.room`` names.

- `functions`: functions read.
- `places`: different places they lie in.
- `stays`: runs of functions in one place, in reading order; 1 more than the changes of place.
- `returns`: stays in a place that was left before, `stays` - `places`.
- `climbs`: changes of place into one that imports the place just left, directly or through others:
  the way back up from a callee to what its caller calls next. In a circle of imports every change
  climbs.
- `calls`: different pairs of a calling and a called function that lie in different places.
- `upward`: of these, calls into a place that imports the caller's: against the arrows, by a
  callback, an object handed down or a circle.
- `handed`: of these, calls between places of which neither imports the other: into an object that
  a third handed over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from walking.imports import Graph

Pair = tuple[str, str]
"""(caller, callee) as ``module:function``; the caller '' is whoever begins the walk."""


@dataclass(frozen=True)
class Walk:
    """The counts of one walk between places of one kind; calls against the arrows as pairs."""

    functions: int
    places: int
    stays: int
    returns: int
    climbs: int
    calls: int
    upward: tuple[Pair, ...]
    handed: int


def walk(pairs: Sequence[Pair], graph: Graph, place: Callable[[str], str]) -> Walk:
    """Count a walk.

    Args:
        pairs: in the order in which they first came; those that '' does not lead to are left out.
        graph: the imports between places.
        place: names the place of a module.
    """
    read = reading_order(pairs)
    known = set(read)
    visited = [place(module(function)) for function in read]
    changes = [(left, entered) for left, entered in pairwise(visited) if left != entered]
    climbs = sum(left in graph.reach[entered] for left, entered in changes)
    crossing = [
        (pair, place(module(pair[0])), place(module(pair[1]))) for pair in pairs if pair[0] in known
    ]
    crossing = [(pair, here, there) for pair, here, there in crossing if here != there]
    upward = tuple(pair for pair, here, there in crossing if here in graph.reach[there])
    handed = sum(
        here not in graph.reach[there] and there not in graph.reach[here]
        for _, here, there in crossing
    )
    places, stays = len(set(visited)), len(changes) + bool(visited)
    return Walk(len(read), places, stays, stays - places, climbs, len(crossing), upward, handed)


def reading_order(pairs: Sequence[Pair]) -> list[str]:
    """The functions that '' leads to, each once, depth first."""
    callees: dict[str, list[str]] = {}
    for caller, callee in pairs:
        callees.setdefault(caller, []).append(callee)
    read: dict[str, None] = {}
    ahead = callees.get("", [])[::-1]
    while ahead:
        function = ahead.pop()
        if function not in read:
            read[function] = None
            ahead += callees.get(function, [])[::-1]
    return list(read)


def module(function: str) -> str:
    return function.partition(":")[0]
