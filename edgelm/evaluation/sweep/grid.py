"""A grid: the JSON file that says which models, candidates, settings, text and tasks make cells."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from edgelm.errors import UsageError
from edgelm.evaluation.comparison.candidates import GGUF
from edgelm.evaluation.sweep.cell import TEXT, Cell
from edgelm.evaluation.tasks import TASKS
from edgelm.machine import hardware
from edgelm.text.lines import UTF8

FIELDS = {
    "models": "a list of model references",
    "candidates": "a list of schemes, recipes, gguf:FILE and quantized folders",
    "settings": "a list of objects with settings of a load (default: one that is empty)",
    "text": "a UTF-8 file or a folder of them, or null",
    "tasks": f"an object of files by the names of tasks: {', '.join(TASKS)}",
    "window": "a count of tokens, 2 or more (default: 512)",
    "limit": "1 or more windows and items, or null for all",
    "threads": "1 or more cores for a cell (default: those of this machine)",
}
"""The fields of a grid, and what each may be."""
_OF_THE_SWEEP = ("quant", "context", "budget")


@dataclass(frozen=True)
class Grid:
    """Every candidate of every model, in every one of the settings, over the text and the tasks.

    ``parts``: a file by "text" or the name of a task.
    """

    models: tuple[str, ...]
    candidates: tuple[Any, ...]
    settings: tuple[Mapping[str, Any], ...]
    parts: Mapping[str, str]
    window: int
    limit: int | None
    threads: int

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a file; UsageError for one that is not a grid."""
        try:
            data = json.loads(Path(path).read_text(encoding=UTF8))
        except (OSError, ValueError, RecursionError) as error:
            raise UsageError(
                f"{path} cannot be read as JSON: {error}. Write an object with {', '.join(FIELDS)}."
            ) from error
        return cls.of(data)

    @classmethod
    def of(cls, data: Any) -> Self:
        """Of the file's content; paths are those of the working folder.

        Raises UsageError, with the field, for a wrong one.
        """
        if not isinstance(data, dict) or (wrong := [*data.keys() - FIELDS.keys()]):
            told = "a grid" if not isinstance(data, dict) else repr(sorted(wrong)[0])
            raise UsageError(f"{told}: allowed is an object with {', '.join(FIELDS)}.")
        models, candidates = _list(data, "models", str), _list(data, "candidates", str | dict)
        settings = _list(data | {"settings": data.get("settings", [{}])}, "settings", dict)
        for own in settings:
            if named := [name for name in _OF_THE_SWEEP if name in own]:
                raise UsageError(
                    f"settings has {named[0]}, which a sweep chooses for each cell; leave it out."
                )
        return cls(
            tuple(map(_absolute, models)), tuple(map(_absolute, candidates)), tuple(settings),
            _parts(data), _count(data, "window", 512, 2), _count(data, "limit", None, 1),
            _count(data, "threads", hardware.default_threads(), 1),
        )  # fmt: skip

    def cells(self) -> list[Cell]:
        """Every cell but the baselines, model by model."""
        return [
            Cell(model, part, path, self.limit, self.window, self.threads, quant, own)
            for model in self.models
            for quant in self.candidates
            for own in self.settings
            for part, path in self.parts.items()
        ]


def _wrong(data: Mapping[str, Any], name: str) -> UsageError:
    given = repr(data.get(name))
    return UsageError(f"{name} is {given:.60}; allowed: {FIELDS[name]}.")


def _list(data: Mapping[str, Any], name: str, kind: Any) -> list[Any]:
    """A list of at least one, in which nothing is twice."""
    found = data.get(name)
    if not isinstance(found, list) or not found or not all(isinstance(v, kind) for v in found):
        raise _wrong(data, name)
    if twice := [own for place, own in enumerate(found) if own in found[:place]]:
        raise UsageError(f"{name} has {twice[0]!r:.60} twice; give it once.")
    return found


def _count(data: Mapping[str, Any], name: str, default: Any, least: int) -> Any:
    found = data.get(name, default)
    whole = isinstance(found, int) and not isinstance(found, bool) and found >= least
    if not whole and (found is not None or default is not None):
        raise _wrong(data, name)
    return found


def _parts(data: Mapping[str, Any]) -> dict[str, str]:
    text, tasks = data.get("text"), data.get("tasks", {})
    if text is not None and not isinstance(text, str):
        raise _wrong(data, "text")
    files: Sequence[Any] = [*tasks.values()] if isinstance(tasks, dict) else [None]
    if not all(isinstance(file, str) for file in files) or tasks.keys() - TASKS.keys():
        raise _wrong(data, "tasks")
    parts = ({} if text is None else {TEXT: text}) | tasks
    if not parts:
        raise UsageError("The grid has neither text nor tasks; give one of them.")
    return {name: os.path.abspath(file) for name, file in parts.items()}


def _absolute(reference: Any) -> Any:
    """A model or candidate whose file is found from other folders too; names stay as they are."""
    if not isinstance(reference, str):
        return reference
    kind = GGUF if reference.startswith(GGUF) else ""
    path = reference.removeprefix(GGUF)
    return f"{kind}{os.path.abspath(path)}" if os.path.exists(path) else reference
