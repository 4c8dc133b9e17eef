"""A cell: one candidate of a model over one text or task, or the baseline of these.

It is pure data that any worker can run; what decides its result has a hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from edgelm.budget.plan import Plan
from edgelm.evaluation.baseline import Baseline
from edgelm.evaluation.comparison.candidates import Candidate, open_candidates
from edgelm.evaluation.comparison.compare import opened, require_fit
from edgelm.evaluation.comparison.measure import measure
from edgelm.evaluation.inputs import Work, read_work
from edgelm.evaluation.make_baseline import EXACT, make_baseline
from edgelm.evaluation.promise import baseline_bytes, candidate_bytes, process_bytes
from edgelm.loading import plan
from edgelm.models.model_files import ModelFiles
from edgelm.planning.settings import read_settings
from edgelm.version import __version__

TEXT = "text"


@dataclass(frozen=True)
class Cell:
    """``quant`` is a candidate of ``compare``, None for the baseline, which has no ``settings``.

    ``part``: "text", or the name of the task whose items are in ``path``.
    """

    model: str
    part: str
    path: str
    limit: int | None
    window: int
    threads: int
    quant: Any = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def baseline(self) -> Cell:
        """The cell that this one is compared to."""
        return replace(self, quant=None, settings={})

    @property
    def name(self) -> str:
        """For people."""
        what = "baseline" if self.quant is None else candidate_name(self.quant, self.settings)
        return f"{self.model}: {what}, {self.part}"


def candidate_name(quant: Any, settings: Mapping[str, Any]) -> str:
    """A candidate and its settings, as the table names them."""
    own = quant if isinstance(quant, str) else json.dumps(quant)
    return ", ".join([own, *(f"{name}={value}" for name, value in settings.items())])


class OpenCell:
    """A cell with its files and texts, before anything is loaded.

    ``files``: those of its model, where they are open already.

    Raises:
        EdgeLMError: as ``compare`` does for the same model, candidate, settings and texts.
    """

    def __init__(self, cell: Cell, files: ModelFiles | None = None) -> None:
        self.cell, self.files = cell, files or ModelFiles.open(cell.model)
        chosen = read_settings(cell.settings)
        text, tasks = (None, {cell.part: cell.path}) if cell.part != TEXT else (cell.path, {})
        asked = {**cell.settings, "threads": cell.threads}
        self.work: Work = read_work(
            self.files, text, tasks, cell.limit, cell.window, chosen, asked, None
        )
        given = [] if cell.quant is None else [cell.quant]
        self.candidate: Candidate | None = next(iter(open_candidates(self.files, given)), None)

    @cached_property
    def key(self) -> str:
        """Hash of everything that its result depends on."""
        facts = asdict(self.work.facts(self.files))
        own = self.candidate and self.candidate.digest(self.work.settings)
        told = json.dumps([__version__, facts, self.cell.threads, own])
        return hashlib.sha256(told.encode()).hexdigest()[:32]

    def plan(self) -> Plan:
        """The plan of what it loads; a baseline's counts for its process alone.

        Raises DoesNotFitError for a candidate that exceeds what is available.
        """
        if self.candidate is None:
            return plan(self.files, **self.work.planned(**EXACT))
        return require_fit(self.candidate, self.work)

    def promised_bytes(self, made: Plan) -> int:
        """Upper bound of its memory beside the process. ``made``: its plan."""
        return (
            baseline_bytes(self.work)
            if self.candidate is None
            else candidate_bytes(made, self.work)
        )

    def run(self, baseline: Path, promised_bytes: int) -> dict[str, Any]:
        """Its result as JSON-able data, found inside the memory that it was promised.

        Args:
            baseline: the baseline's file, which a baseline's cell makes.

        Raises:
            DoesNotFitError, BudgetExceededError: it would take more.
        """
        budget = process_bytes(self.plan()) + promised_bytes
        work = replace(self.work, settings=self.work.settings | {"budget": budget})
        if self.candidate is None:
            return _made(work, baseline)
        with opened(baseline, work) as exact:
            return measure(self.candidate, work, exact, timed=False).to_dict()


def _made(work: Work, path: Path) -> dict[str, Any]:
    """The facts of a baseline that is made now."""
    make_baseline(work, work.files, work.facts(work.files), path, noisy=work)
    made = Baseline.open(path)
    made.close()
    return asdict(made.facts)
