"""Cells as tasks of a Ray cluster (the extra ``sweep``): each waits for its baseline, and for a
worker with as much free memory as it is promised. A lost worker's cell is done again elsewhere.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from edgelm.budget.units import human
from edgelm.errors import DoesNotFitError, EdgeLMError, UsageError
from edgelm.evaluation.sweep.job import Job, run_job

AUTO, LOCAL = "auto", "local"
_ANSWER_S = 10
_AGAIN = 3  # times that a cell is done again whose worker was lost


def run_on_ray(
    jobs: Sequence[Job], folder: str, address: str
) -> Iterator[tuple[Job, EdgeLMError | None]]:
    """Run jobs, baselines before what needs them; each with its error, as they end.

    Args:
        address: of the cluster: ``auto``, ``local`` for one that is started here, or HOST:PORT.

    Raises:
        UsageError: Ray is not installed, or no cluster answers at the address.
        DoesNotFitError: no machine of the cluster has the memory or the cores for a cell.
    """
    with _connected(address) as ray:
        _require_room(ray, jobs)
        task = ray.remote(_run)
        refs: dict[str, Any] = {}
        for job in jobs:
            needed = [refs[job.needs]] if job.needs in refs else []
            refs[job.key] = task.options(
                name=job.cell.name, num_cpus=job.cell.threads, memory=job.memory_bytes,
                max_retries=_AGAIN,
            ).remote(job, folder, *needed)  # fmt: skip
        waiting = {refs[job.key]: job for job in jobs}
        while waiting:
            (ended,), _ = ray.wait([*waiting], num_returns=1)
            yield waiting.pop(ended), _error(ray, ended)


def _run(job: Job, folder: str, *needed: str | None) -> str | None:
    """What a worker runs when ``needed`` is done: why the cell failed, None if it did not."""
    try:
        run_job(job, folder)
    except EdgeLMError as error:
        return str(error)
    return None


def _error(ray: Any, ended: Any) -> EdgeLMError | None:
    """Why a task failed, None if it did not."""
    try:
        told = ray.get(ended)
    except ray.exceptions.RayError as error:
        told = f"{error} A lost worker's cell is done {_AGAIN} times again; see Ray's logs."
    return None if told is None else EdgeLMError(told)


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster until the end."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of a cluster that is started here
    try:
        import ray
    except ImportError as error:
        raise UsageError(f"Ray is not installed ({error}): pip install 'edgelm[sweep]'.") from error
    mine = not ray.is_initialized()
    if mine:
        started = {"include_dashboard": False} if address == LOCAL else {}
        try:
            if address not in (LOCAL, AUTO):
                _require_answer(address)
            ray.init(address=address, log_to_driver=False, logging_level="error", **started)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"ray is {address!r}, and no cluster answers there ({error}). Start one with "
                "'ray start --head', or give local."
            ) from error
    try:
        yield ray
    finally:
        if mine:
            ray.shutdown()


def _require_answer(address: str) -> None:
    """OSError or ValueError where nobody answers, for which Ray itself would wait many minutes."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=_ANSWER_S).close()


def _require_room(ray: Any, jobs: Sequence[Job]) -> None:
    """Raise DoesNotFitError for a cell that no machine could ever take."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for job in jobs:
        memory, threads = job.memory_bytes, job.cell.threads
        if not any(n.get("memory", 0) >= memory and n.get("CPU", 0) >= threads for n in nodes):
            most = max((node.get("memory", 0) for node in nodes), default=0)
            raise DoesNotFitError(
                f"{job.cell.name} needs {human(memory)} and {threads} cores on one machine; the "
                f"largest memory that the cluster offers is {human(most)}. Add a machine, give "
                "fewer threads in the grid, or a smaller window."
            )
