"""A job: a cell that is planned, and what runs it, here or on a worker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from edgelm.errors import EdgeLMError
from edgelm.evaluation.sweep.cell import Cell, OpenCell
from edgelm.evaluation.sweep.results import Results


@dataclass(frozen=True)
class Job:
    """``promised_bytes`` are those beside a process, ``process_bytes`` those of this one.

    ``needs``: the key of its baseline, its own for a baseline.
    """

    cell: Cell
    key: str
    needs: str
    promised_bytes: int
    process_bytes: int

    @property
    def memory_bytes(self) -> int:
        """What a worker must have free."""
        return self.promised_bytes + self.process_bytes


def run_job(job: Job, folder: str) -> None:
    """Run a cell and keep what it found, unless somebody has done so.

    Raises:
        EdgeLMError: the cell's, or its files are others than where it was planned.
    """
    results = Results(folder)
    done = results.get(job.key) is not None
    if done and (job.key != job.needs or results.baseline(job.key).exists()):
        return
    cell = OpenCell(job.cell)
    if cell.key != job.key:
        raise EdgeLMError(
            f"{job.cell.name}: this machine's files are not those that the sweep was planned with. "
            "Give all workers the same version of EdgeLM, models and texts."
        )
    found = cell.run(results.baseline(job.needs), job.promised_bytes)
    if not done:
        results.put(job.key, job.cell, found)


def run_in_turn(jobs: Iterable[Job], folder: str) -> Iterator[tuple[Job, EdgeLMError | None]]:
    """Run jobs one after another in this process; each with its error, if it failed."""
    for job in jobs:
        try:
            run_job(job, folder)
        except EdgeLMError as error:
            yield job, error
        else:
            yield job, None
