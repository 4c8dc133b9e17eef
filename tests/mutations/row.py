"""One feature and the patch that breaks it."""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """One feature and the smallest patch that breaks it."""

    feature: str
    file: str  # from the repository's root
    old: str  # found exactly once in the file
    new: str
    tests: tuple[str, ...]  # pytest nodes, the quickest that notice
