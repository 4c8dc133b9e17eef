"""Plan against actual, run after run: a small file in the cache folder that later plans learn from.

What a process takes beside its tensors (code pages, buffers of libraries, thread stacks) grows
after the plan is made, by an amount that differs from machine to machine. Runs say by how much.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

from edgelm.budget.parts import Part, PartName
from edgelm.budget.plan import Plan
from edgelm.budget.running import Mark
from edgelm.machine import hardware
from edgelm.machine.measurements import keep, kept
from edgelm.version import __version__

KEPT = "runs.json"
KEPT_RUNS = 32
GROWTH_BYTES = 40 << 20  # up to 38 MiB were measured on Linux with one thread
_MOST_BYTES = 1 << 50
_OTHERS_BYTES = 256 << 20  # a larger excess is other memory of the same process


@dataclass(frozen=True)
class Run:
    """One load and what was asked of it; bytes of the whole process.

    predicted_bytes: the plan's, without what earlier runs had added to it.
    """

    model: str
    scheme: str
    predicted_bytes: int
    peak_bytes: int
    version: str
    ended: str

    @property
    def beyond_bytes(self) -> int:
        """Bytes taken beyond the plan; negative if fewer were taken."""
        return self.peak_bytes - self.predicted_bytes


def record(folder: Path, model: str, plan: Plan, peak_bytes: int) -> None:
    """Keep a run, unless its peak is beyond what the plan can be blamed for."""
    learned = sum(part.bytes for part in plan.parts if part.name == PartName.RUNTIME_LEARNED)
    predicted = plan.predicted_peak_bytes - learned
    ended = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    run = Run(model, plan.scheme, predicted, peak_bytes, __version__, ended)
    if _is_plausible(run):
        keep(folder / KEPT, [asdict(own) for own in (*recorded(folder), run)[-KEPT_RUNS:]])


class Watch:
    """A loaded model's share in the process's peak, from before its weights to its end; until then
    ``running`` tells of it.
    """

    def __init__(self, folder: Path, model: str, plan: Plan) -> None:
        self._folder, self._model, self._plan = folder, model, plan
        self._earlier_bytes = hardware.peak_resident_bytes()
        self._mark = Mark(folder, model, plan)

    def end(self) -> None:
        """Record the run, unless the peak tells of something before this model."""
        self._mark.end()
        peak = hardware.peak_resident_bytes()
        if peak > self._earlier_bytes:
            record(self._folder, self._model, self._plan, peak)


def recorded(folder: Path) -> tuple[Run, ...]:
    """The last runs, oldest first; entries that are damaged or implausible count as absent.

    They are dropped by the next ``record``: one wrong entry must not make plans refuse models.
    """
    data = kept(folder / KEPT)
    entries = data if isinstance(data, list) else []
    runs = (Run(**entry) for entry in entries if _is_run(entry))
    return tuple(run for run in runs if _is_plausible(run))


def runtime_parts(folder: Path, resident_bytes: int) -> list[Part]:
    """Memory of the process beside its tensors, ``resident_bytes`` of which it holds now."""
    runtime = Part(PartName.RUNTIME, resident_bytes + GROWTH_BYTES)
    learned = correction_bytes(folder)
    return [runtime, Part(PartName.RUNTIME_LEARNED, learned)] if learned else [runtime]


def correction_bytes(folder: Path) -> int:
    """Bytes that plans add to the runtime's share: the median of this version's runs, or 0."""
    beyond = [run.beyond_bytes for run in recorded(folder) if run.version == __version__]
    return max(0, int(median(beyond))) if beyond else 0


def _is_plausible(run: Run) -> bool:
    """True of bytes that a process may have and that its plan can be blamed for."""
    counts = (run.predicted_bytes, run.peak_bytes)
    return all(0 < count < _MOST_BYTES for count in counts) and run.beyond_bytes < _OTHERS_BYTES


def _is_run(entry: Any) -> bool:
    return isinstance(entry, dict) and {name: type(value) for name, value in entry.items()} == {
        field.name: int if field.type == "int" else str for field in fields(Run)
    }
