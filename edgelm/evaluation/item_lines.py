"""JSON lines of what a model made of each item of its tasks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgelm.errors import UsageError
from edgelm.evaluation.choices import Picks
from edgelm.evaluation.tasks import Item

Write = Callable[[Iterable[dict[str, Any]]], None]


@contextmanager
def opened(path: str | Path | None) -> Iterator[Write]:
    """A function that writes rows to the file, which is opened before any work; without a path
    they go nowhere.

    Raises UsageError: the file cannot be written.
    """
    if path is None:
        yield lambda rows: None
        return
    try:
        file = Path(path).open("w", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise UsageError(
            f"details is {str(path)!r}, which cannot be written: {error.strerror or error}. Give "
            "another file."
        ) from error
    with file:

        def write(rows: Iterable[dict[str, Any]]) -> None:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

        yield write


def choice_rows(name: str, items: Sequence[Item], picks: Picks) -> Iterator[dict[str, Any]]:
    """One row for each item of a multiple-choice task."""
    for place, item in enumerate(items):
        yield {
            "task": name, "item": place, "pairs": item.pairs, "gold": item.gold,
            "log_likelihoods": picks.scores[place], "picked": picks.plain[place],
            "picked_by_length": picks.by_length[place],
            "right": picks.plain[place] == item.gold,
        }  # fmt: skip
