"""``sweep``: the cells of a grid, each measured once, and the tables that they make."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from edgelm.errors import EdgeLMError
from edgelm.evaluation.comparison.comparison import Comparison
from edgelm.evaluation.duration import estimate_s, spoken
from edgelm.evaluation.evaluate import EVALUATE
from edgelm.evaluation.promise import process_bytes
from edgelm.evaluation.sweep.cell import Cell, OpenCell
from edgelm.evaluation.sweep.grid import Grid
from edgelm.evaluation.sweep.job import Job, run_in_turn
from edgelm.evaluation.sweep.merged import merged
from edgelm.evaluation.sweep.results import Results
from edgelm.loading import use_threads
from edgelm.models.model_files import ModelFiles

Announce = Callable[[str], None]


def sweep(
    grid: str | Path, out: str | Path, *, ray: str | None = None, margin: float = 1.0,
    announce: Announce | None = None,
) -> list[Comparison]:  # fmt: skip
    """A comparison of each model of a grid, whose cells are measured unless ``out`` has them.

    Args:
        grid: a JSON file; see ``grid.FIELDS``.
        out: a folder for what is found of each cell, which all workers see; the baselines in it
            may be deleted when nothing is to be added.
        ray: the address of a Ray cluster, ``auto`` or ``local``, whose workers run the cells;
            without it they run here, one after another.
        margin: points of accuracy, as for ``compare``.
        announce: called with a sentence before the work, and after each cell.

    Raises:
        UsageError: a wrong grid, or no such cluster.
        DoesNotFitError: a cell exceeds the memory there is.
        EdgeLMError: cells failed; the others are finished and kept.
    """
    asked, tell = Grid.read(grid), announce or (lambda text: None)
    (margin,) = EVALUATE.require(margin=margin)
    use_threads(asked.threads)
    results, planner = Results(out), Planner()
    jobs = planner.jobs(asked.cells(), results)
    left = [job for job in jobs if _is_left(job, jobs, results)]
    tell(f"{len(left)} cells of {len(jobs)} are left: about {spoken(planner.seconds(left))}, run "
         "one after another on this machine. A sweep that was stopped goes on.")  # fmt: skip
    failed: dict[str, EdgeLMError] = {}
    for number, (job, error) in enumerate(_run(left, str(results.folder), ray), start=1):
        failed |= {job.cell.name: error} if error else {}
        tell(f"{number} of {len(left)}, {job.cell.name}: {error or 'done'}")
    if failed:
        name, first = next(iter(failed.items()))
        raise EdgeLMError(
            f"{len(failed)} of {len(left)} cells failed, first {name}: {first} The others are "
            "kept: the same command goes on."
        )
    return [
        merged(asked, planner.files[model], _found(model, jobs, results), margin)
        for model in asked.models
    ]


class Planner:
    """Opens cells and plans them; ``files``: the models that were opened."""

    def __init__(self) -> None:
        self.files: dict[str, ModelFiles] = {}
        self._seconds: dict[str, float] = {}

    def jobs(self, cells: Iterable[Cell], results: Results) -> list[Job]:
        """A job for each cell and each baseline, which stands before those that need it."""
        found: dict[str, Job] = {}
        baselines: dict[str, str] = {}  # keys, by the cell in words
        for cell in cells:
            base = cell.baseline
            if str(base) not in baselines:
                made = self._job(base, None)
                found[made.key] = made
                baselines[str(base)] = made.key
            made = self._job(cell, baselines[str(base)])
            found[made.key] = made
        return [*found.values()]

    def _job(self, cell: Cell, needs: str | None) -> Job:
        files = self.files.get(cell.model)
        opened = OpenCell(cell, files)
        self.files[cell.model] = opened.files
        baseline = needs is None
        self._seconds[opened.key] = estimate_s(
            opened.work, baseline=baseline, candidates=int(not baseline)
        )
        plan = opened.plan()
        return Job(
            cell, opened.key, needs or opened.key, opened.promised_bytes(plan), process_bytes(plan)
        )

    def seconds(self, jobs: Iterable[Job]) -> float:
        """About how long these take, one after another on this machine."""
        return sum(self._seconds[job.key] for job in jobs)


def _is_left(job: Job, jobs: Iterable[Job], results: Results) -> bool:
    """Whether a cell is to run; a finished baseline only if its file is gone and is needed."""
    if results.get(job.key) is None:
        return True
    if job.key != job.needs or results.baseline(job.key).exists():
        return False
    return any(own.needs == job.key and results.get(own.key) is None for own in jobs)


def _run(jobs: list[Job], folder: str, ray: str | None) -> Iterator[tuple[Job, EdgeLMError | None]]:
    if ray is None:
        return run_in_turn(jobs, folder)
    from edgelm.evaluation.sweep.ray_cluster import run_on_ray

    return run_on_ray(jobs, folder, ray) if jobs else iter(())


def _found(model: str, jobs: Iterable[Job], results: Results) -> list[tuple[Cell, dict[str, Any]]]:
    """The finished cells of a model."""
    own = [job for job in jobs if job.cell.model == model]
    return [(job.cell, found) for job in own if (found := results.get(job.key)) is not None]
