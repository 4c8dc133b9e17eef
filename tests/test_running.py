"""``edgelm ps``: which processes hold a model, as the live processes themselves say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_cli import Run, nano, run  # noqa: F401  (fixtures)

import edgelm
from edgelm.budget.running import FOLDER, running
from edgelm.hub.references import cache_dir


def mark(pid: int, started: float, **changes: Any) -> Path:
    """The file of a process that holds a model."""
    own = {"pid": pid, "started": started, "model": "m", "scheme": "int4", "kv": "int8"}
    own |= {"context": 512, "predicted_peak_bytes": 1 << 30} | changes
    folder = cache_dir() / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{pid}-0.json"
    path.write_text(json.dumps(own))
    return path


def test_a_loaded_model_is_told_of_until_it_is_closed(
    run: Run, nano: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", "400")
    assert run("ps", "--json").document == {"processes": []}
    assert "No edgelm process" in run("ps").out
    with edgelm.load(nano, quant="none", context=64), edgelm.load(nano, context=32) as lm:
        both = run("ps", "--json").document["processes"]
        assert sorted(own["context"] for own in both) == [32, 64]
        own = next(own for own in both if own["context"] == 32)
        assert (own["pid"], own["model"], own["scheme"]) == (os.getpid(), str(nano), lm.plan.scheme)
        assert own["predicted_peak_bytes"] == lm.plan.predicted_peak_bytes
        assert own["resident_bytes"] > 50 << 20 and "python" in own["command"]
        shown = run("ps", "-v").out
        assert str(os.getpid()) in shown and "context 32" in shown
    assert running(cache_dir()) == [] and not (cache_dir() / FOLDER).exists()


def test_a_model_that_nobody_holds_is_forgotten(run: Run, nano: Path) -> None:  # noqa: F811
    del run
    lm = edgelm.load(nano, context=32)
    assert len(running(cache_dir())) == 1
    del lm
    assert running(cache_dir()) == []


def test_dead_processes_and_those_with_their_numbers_are_forgotten(
    run: Run,  # noqa: F811
) -> None:
    del run
    ended = subprocess.Popen([sys.executable, "-c", ""])
    started = psutil.Process(ended.pid).create_time()
    ended.wait()
    own = psutil.Process()
    wrong: list[tuple[int, float, dict[str, Any]]] = [
        (ended.pid, started, {}),
        (own.pid, own.create_time() - 3600, {}),
        (own.pid, own.create_time(), {"context": "512"}),
        (own.pid, own.create_time(), {"colour": "red"}),
        (-1, 0.0, {}),
    ]
    for pid, since, changes in wrong:
        path = mark(pid, since, **changes)
        assert running(cache_dir()) == [] and not path.exists()
    mark(own.pid, own.create_time())
    assert [found.held.pid for found in running(cache_dir())] == [own.pid]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_forgets_nothing(run: Run, nano: Path) -> None:  # noqa: F811
    del run
    with edgelm.load(nano, context=32) as lm:
        child = os.fork()
        if not child:
            lm._closing[0]()
            os._exit(0)
        os.waitpid(child, 0)
        assert len(running(cache_dir())) == 1


def test_a_model_in_use_is_not_deleted(run: Run) -> None:  # noqa: F811
    own = psutil.Process()
    mark(own.pid, own.create_time(), model="demo")
    ran = run("rm", "demo", "--yes")
    assert ran.code == 2 and f"in use by process {own.pid}" in ran.err
