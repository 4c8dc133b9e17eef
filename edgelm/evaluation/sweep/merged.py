"""The table of ``compare`` from finished cells: parts of a candidate become one row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgelm.evaluation.baseline import Facts
from edgelm.evaluation.comparison.comparison import Comparison, as_csv
from edgelm.evaluation.comparison.measured import Measured
from edgelm.evaluation.evaluate import is_quantized, with_pairs
from edgelm.evaluation.inputs import read_work
from edgelm.evaluation.sweep.cell import TEXT, Cell, candidate_name
from edgelm.evaluation.sweep.grid import Grid
from edgelm.models.model_files import ModelFiles
from edgelm.planning.settings import read_settings

Found = Sequence[tuple[Cell, dict[str, Any]]]
"""Cells of one model, baselines among them, with their results."""


def merged(grid: Grid, files: ModelFiles, found: Found, margin: float) -> Comparison:
    """The comparison of one model; ``margin`` in points."""
    tasks = {name: path for name, path in grid.parts.items() if name != TEXT}
    asked = {"threads": grid.threads}
    work = read_work(
        files, grid.parts.get(TEXT), tasks, grid.limit, grid.window, read_settings({}), asked, None
    )
    made = {cell.part: _facts(data) for cell, data in found if cell.quant is None}
    facts = _joined([made[part] for part in grid.parts])
    rows: dict[str, dict[str, Measured]] = {}
    for cell, data in found:
        if cell.quant is not None:
            own = rows.setdefault(candidate_name(cell.quant, cell.settings), {})
            own[cell.part] = Measured.from_dict(data)
    paired = []
    for name, parts in rows.items():
        row = _row(name, [parts[part] for part in grid.parts])
        tasks_paired = with_pairs(row.tasks, row.rights, work.items, facts, margin)
        paired.append(replace(row, tasks=tasks_paired))
    return Comparison.of(work, facts, paired, is_quantized(work))


def _facts(data: Mapping[str, Any]) -> Facts:
    return Facts(**{**data, "shape": tuple(data["shape"])})


def _joined(parts: Sequence[Facts]) -> Facts:
    """The facts of a baseline over all parts; the first has the text, if there is one."""
    noise: dict[str, Any] = parts[0].noise | {"tasks": {}}
    tasks: dict[str, Any] = {}
    for part in parts:
        tasks |= part.tasks
        noise["tasks"] |= part.noise["tasks"]
    return replace(parts[0], tasks=tasks, noise=noise)


def _row(name: str, parts: Sequence[Measured]) -> Measured:
    tasks = {task: score for part in parts for task, score in part.tasks.items()}
    rights = {task: right for part in parts for task, right in part.rights.items()}
    return replace(parts[0], candidate=name, tasks=tasks, rights=rights)


def csv_of(comparisons: Sequence[Comparison]) -> str:
    """The tables of several models as comma-separated values, with a column of models."""
    rows = [{"model": own.model} | row for own in comparisons for row in own.table()]
    return as_csv(rows)
