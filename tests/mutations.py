"""Which test guards which feature: patches that must make a named test fail.

``run_mutations.py`` applies each row alone to a copy of the tree and runs its tests. A row whose
tests still pass is a feature nobody guards, and fails CI.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """One feature and the smallest patch that breaks it."""

    feature: str
    file: str  # from the repository's root
    old: str  # found exactly once in the file
    new: str
    tests: tuple[str, ...]  # pytest nodes, the quickest that notice


MUTATIONS: tuple[Mutation, ...] = ()
