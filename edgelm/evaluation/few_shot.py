"""Few-shot examples: some items of a task's own file, drawn with a seed, before every question.

The examples are the same for all questions of a language, so that a prompt's beginning runs once,
and they are not asked.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from edgelm.errors import UsageError
from edgelm.evaluation.tasks import Item, read_items

BETWEEN = "\n\n"
T = TypeVar("T")


def drawn(
    items: Sequence[T], shots: int, seed: int, kind: Callable[[T], str], where: str
) -> tuple[dict[str, list[T]], list[T]]:
    """(examples by kind, the items that are left to ask, in their order).

    Args:
        kind: what an item's examples have in common with it, such as its language.
        where: the file, for errors.

    Raises UsageError: a kind has fewer items than its examples and one to ask.
    """
    if not shots:
        return {}, list(items)
    places: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        places.setdefault(kind(item), []).append(place)
    examples: dict[str, list[T]] = {}
    taken: set[int] = set()
    for name, own in places.items():
        if len(own) <= shots:
            of = f" in {name}" if name else ""
            raise UsageError(
                f"shots is {shots}, and {where} holds {len(own)} items{of}: {shots} are shown and "
                "at least one is asked. Give more items or fewer shots."
            )
        chosen = random.Random(f"{seed} {name}").sample(own, shots)
        taken.update(chosen)
        examples[name] = [items[place] for place in chosen]
    return examples, [item for place, item in enumerate(items) if place not in taken]


def shown_items(
    name: str, path: str | Path, limit: int | None, shots: int, seed: int
) -> list[Item]:
    """The first ``limit`` items of a multiple-choice task, after ``shots`` examples."""
    if not shots:
        return read_items(name, path, limit)
    examples, left = drawn(read_items(name, path), shots, seed, lambda item: "", str(path))
    return with_examples(left[:limit], examples[""])


def with_examples(items: Sequence[Item], examples: Sequence[Item]) -> list[Item]:
    """Multiple-choice items whose prompts begin with answered ones."""
    shown = "".join(
        f"{prompt} {choice}{BETWEEN}" for prompt, choice in (e.pairs[e.gold] for e in examples)
    )
    return [
        replace(item, pairs=tuple((shown + prompt, choice) for prompt, choice in item.pairs))
        for item in items
    ]
