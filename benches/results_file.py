"""The files in results/: what every benchmark says of its run, where tables.py finds it."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import edgelm
from edgelm.machine import hardware

RESULTS = Path(__file__).resolve().parent / "results"
BOUND_S = 15 * 60  # no row starts later
Measure = Callable[..., dict[str, Any] | None]
_LIBRARIES = ("torch", "numpy")


def stored_rows(name: str) -> list[dict[str, Any]]:
    """The rows that an earlier run left, none where there was none."""
    path = RESULTS / f"{name}.json"
    rows: list[dict[str, Any]] = []
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else rows


def complete(
    name: str, keys: Iterable[tuple[str, ...]], fields: tuple[str, ...], measure: Measure
) -> int:
    """Measure the rows that are missing and store each as it comes; 1 where time was up, else 0.

    keys: values of ``fields``, which tell rows apart. measure: called with a key; None is no row.
    """
    rows = stored_rows(name)
    done = {tuple(row[field] for field in fields) for row in rows}
    start = time.monotonic()
    for key in keys:
        if key in done:
            continue
        if time.monotonic() - start > BOUND_S:
            print("time is up; run it again to go on", file=sys.stderr)
            return 1
        row = measure(*key)
        if row is not None:
            rows.append(row)
            store(name, f"python benches/{name}.py", rows)
    return 0


def store(name: str, command: str, rows: list[dict[str, Any]], **told: Any) -> None:
    """Write a run's rows, with the machine, the date, the versions and what else is told."""
    versions = {library: version(library) for library in _LIBRARIES}
    result = {
        "machine": f"{hardware.processor_name()}, {hardware.cores()} cores",
        "date": datetime.now(UTC).date().isoformat(),
        "command": command,
        "versions": {"edgelm": edgelm.__version__, "python": platform.python_version()} | versions,
        **told,
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")
