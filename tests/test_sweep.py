"""``sweep``: cells measured once, the table of ``compare``, stops, lost workers and wrong grids."""

from __future__ import annotations

import csv
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import edgelm
from edgelm.cli.main import main
from edgelm.errors import DoesNotFitError, EdgeLMError, UsageError
from edgelm.evaluation.comparison.comparison import Comparison
from edgelm.evaluation.comparison.measured import Measured
from edgelm.evaluation.inputs import Work
from edgelm.evaluation.promise import process_bytes
from edgelm.evaluation.sweep import cell as cells
from edgelm.evaluation.sweep.sweep import sweep

WINDOW, LIMIT = 64, 3
CANDIDATES = ["int8", "int4-g32"]
CELLS, BASELINES = 4, 2  # of the grid below: two candidates and their baseline, text and task


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELM_CACHE", str(tmp_path / "cache"))


def written(assets: Path, folder: Path, **changes: Any) -> Path:
    """A grid of the nano Llama, over three windows and three items."""
    grid = {
        "models": [str(assets / "nano" / "llama")],
        "candidates": CANDIDATES,
        "text": str(assets / "nano" / "heldout.txt"),
        "tasks": {"winogrande": str(assets / "tasks" / "winogrande.jsonl")},
        "window": WINDOW,
        "limit": LIMIT,
        "threads": 1,
    } | changes
    path = folder / "grid.json"
    path.write_text(json.dumps({k: v for k, v in grid.items() if v is not ...}))
    return path


def counted(monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None) -> list[str]:
    """What is measured from now on; ``stop_at``: which one is stopped as by Ctrl-C."""
    calls: list[str] = []
    for name in ("measure", "make_baseline"):
        real = getattr(cells, name)

        def counting(*given: Any, real: Any = real, name: str = name, **named: Any) -> Any:
            if len(calls) == stop_at:
                raise KeyboardInterrupt
            calls.append(getattr(given[0], "label", name))
            return real(*given, **named)

        monkeypatch.setattr(cells, name, counting)
    return calls


def test_the_table_is_that_of_compare(assets: Path, tmp_path: Path) -> None:
    """But for speeds and peaks, which cells do not have."""
    (found,) = sweep(written(assets, tmp_path), tmp_path / "out")
    alone = edgelm.compare(
        assets / "nano" / "llama", CANDIDATES, text=assets / "nano" / "heldout.txt",
        tasks={"winogrande": assets / "tasks" / "winogrande.jsonl"}, window=WINDOW, limit=LIMIT,
        threads=1,
    )  # fmt: skip
    empty = ("predicted_peak_bytes", "peak_rss_bytes", "prefill_tok_s", "decode_tok_s")
    for own, expected in zip(found.table(), alone.table(), strict=True):
        assert not any(own[name] for name in empty)
        for name in own.keys() - set(empty):
            close = expected[name]
            if isinstance(close, float):
                close = pytest.approx(close, rel=1e-4, abs=1e-9)
            assert own[name] == close, name
    assert found.rows[0].slices.keys() == alone.rows[0].slices.keys()
    assert found.noise_floor["tasks"].keys() == {"winogrande"}
    assert f"{LIMIT} items of winogrande" in found.protocol
    assert len([*(tmp_path / "out").glob("*.json")]) == CELLS + BASELINES


def test_a_stopped_sweep_goes_on_and_grows(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, out, told = written(assets, tmp_path), tmp_path / "out", []
    with monkeypatch.context() as stopped:
        first = counted(stopped, stop_at=3)
        with pytest.raises(KeyboardInterrupt):
            sweep(grid, out)
    calls = counted(monkeypatch)
    whole = sweep(grid, out, announce=told.append)
    assert len(first) == 3 and len(calls) == CELLS + BASELINES - 3
    assert told[0].startswith("3 cells of 6 are left: about ")
    assert sweep(grid, out) == whole and len(calls) == 3
    more = written(assets, tmp_path, candidates=[*CANDIDATES, "nf4"])
    for path in out.glob("*.baseline"):
        path.unlink()
    (grown,) = sweep(more, out)
    assert sorted(calls[3:]) == ["make_baseline", "make_baseline", "nf4", "nf4"]
    assert grown.rows[:2] == whole[0].rows
    text = tmp_path / "other.txt"
    text.write_text((assets / "nano" / "heldout.txt").read_text()[2000:9000])
    sweep(written(assets, tmp_path, text=str(text)), out)
    assert len(calls) == 7 + 3  # the other text's baseline and candidates


def test_settings_make_rows_of_their_own(assets: Path, tmp_path: Path) -> None:
    recipe = {"default": "int8"}
    grid = written(
        assets, tmp_path, tasks=..., candidates=["int4-g32", recipe],
        settings=[{}, {"method": "rtn"}],
    )  # fmt: skip
    (found,) = sweep(grid, tmp_path / "out")
    names = [row.candidate for row in found.rows]
    assert names == [
        "int4-g32", "int4-g32, method=rtn", '{"default": "int8"}',
        '{"default": "int8"}, method=rtn',
    ]  # fmt: skip
    first, second = found.rows[:2]
    assert first.text is not None and second.text is not None
    assert first.text.kld_mean != second.text.kld_mean and first.tasks == {}


def test_a_cell_stays_inside_its_promise(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the budget of the load; one that is smaller than the model is refused."""
    promises: list[int] = []
    real = Work.load

    def load(self: Work, *given: Any, **named: Any) -> Any:
        lm = real(self, *given, **named)
        budget = self.settings["budget"]
        assert lm.plan.budget_bytes == budget >= lm.plan.predicted_peak_bytes
        promises.append(budget - process_bytes(lm.plan))  # beside what earlier tests left here
        return lm

    monkeypatch.setattr(Work, "load", load)
    sweep(written(assets, tmp_path), tmp_path / "out")
    assert len(promises) == CELLS and max(promises) < 1 << 30
    opened = cells.OpenCell(
        cells.Cell(str(assets / "nano" / "llama"), "text", str(assets / "nano" / "heldout.txt"),
                   LIMIT, WINDOW, 1, "int8")
    )  # fmt: skip
    with pytest.raises(DoesNotFitError):
        opened.run(next((tmp_path / "out").glob("*.baseline")), 1 << 20)


def test_a_failed_cell_is_told_and_the_others_are_kept(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, out, real = written(assets, tmp_path), tmp_path / "out", cells.measure

    def failing(candidate: Any, *given: Any, **named: Any) -> Measured:
        if candidate.label == "int8":
            raise EdgeLMError("damaged.")
        return real(candidate, *given, **named)

    with monkeypatch.context() as broken:
        broken.setattr(cells, "measure", failing)
        with pytest.raises(EdgeLMError, match=r"2 of 6 cells failed, first .*: int8, text: damag"):
            sweep(grid, out)
    calls = counted(monkeypatch)
    assert len(sweep(grid, out)[0].rows) == 2 and calls == ["int8", "int8"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "demo"}, "'model': allowed is an object with models"),
        ({"models": []}, r"models is \[\]; allowed: a list of model references"),
        ({"candidates": ["int8", "int8"]}, "'int8' twice"),
        ({"candidates": ["int3"]}, "has 'int3'; allowed: auto"),
        ({"settings": [{"budget": "1GiB"}]}, "settings has budget, which a sweep chooses"),
        ({"settings": {"kv": "int8"}}, "settings is .*allowed: a list of objects"),
        ({"settings": [{"kvv": "int8"}]}, "kvv"),
        ({"text": ..., "tasks": ...}, "neither text nor tasks"),
        ({"tasks": {"gsm8k": "x"}}, "tasks is .*allowed: an object of files"),
        ({"window": 1}, "window is 1; allowed: a count of tokens"),
        ({"limit": 0}, "limit is 0; allowed: 1 or more"),
        ({"threads": "2"}, "threads is '2'"),
    ],
)
def test_wrong_grids_are_refused_before_the_work(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any],
    words: str,
) -> None:  # fmt: skip
    calls = counted(monkeypatch)
    with pytest.raises(UsageError, match=words) as raised:
        sweep(written(assets, tmp_path, **changes), tmp_path / "out")
    print(raised.value)
    assert not calls
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UsageError, match=r"bad\.json cannot be read as JSON"):
        sweep(tmp_path / "bad.json", tmp_path / "out")


def test_an_output_folder_that_is_a_file_is_refused(assets: Path, tmp_path: Path) -> None:
    grid = written(assets, tmp_path)
    with pytest.raises(EdgeLMError, match=r"cannot be written.*Give --out another folder"):
        sweep(grid, grid)


def test_command_line(assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid, out, table = written(assets, tmp_path, tasks=...), tmp_path / "out", tmp_path / "t.csv"
    given = ["sweep", str(grid), "--out", str(out), "--csv", str(table)]
    assert main([*given, "--json"]) == 0
    told = capsys.readouterr()
    (data,) = json.loads(told.out)
    assert "3 cells of 3 are left" in told.err and "3 of 3," in told.err
    with table.open() as file:
        rows = [*csv.DictReader(file)]
    assert [row["candidate"] for row in rows] == [*CANDIDATES, "noise floor"]
    assert float(rows[0]["kld_mean"]) == data["rows"][0]["text"]["kld_mean"]
    assert rows[0]["model"].endswith("llama")
    assert main(given) == 0
    shown = capsys.readouterr().out
    assert "KLD mean" in shown and "tok/s" not in shown


def plain(found: list[Comparison]) -> list[Any]:
    return [(own.protocol, own.table()) for own in found]


@pytest.mark.slow
def test_ray_loses_a_worker_and_measures_nothing_twice(assets: Path, tmp_path: Path) -> None:
    """30 cells on two workers, one killed half-way: the table is that of a sweep without Ray."""
    pytest.importorskip("ray")
    grid = written(
        assets, tmp_path, limit=20, candidates=["int8", "int4", "nf4", "int4-g32", "int5"],
        models=[str(assets / "nano" / name) for name in ("llama", "bloom", "helium")],
    )  # fmt: skip
    out, ended, seen = tmp_path / "ray", threading.Event(), {}
    killed: list[int] = []

    def watch() -> None:
        """Kill the worker of the newest result when half are there; note when each came."""
        while not ended.is_set():
            for path in out.glob("*.json"):
                seen.setdefault(path.name, (path.stat().st_ino, path.stat().st_mtime_ns))
            if len(seen) >= 15 and not killed:
                newest = max(out.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
                killed.append(json.loads(newest.read_text())["pid"])
                os.kill(killed[0], signal.SIGKILL)
            time.sleep(0.01)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        found = sweep(grid, out, ray="local")
    finally:
        ended.set()
        watching.join()
    after = {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in out.glob("*.json")}
    pids = {json.loads(path.read_text())["pid"] for path in out.glob("*.json")}
    print(f"{len(after)} cells, workers {pids}, killed {killed}")
    assert killed and os.getpid() not in pids and len(pids) > 2
    assert len(after) == 30 + 6 and seen.items() <= after.items()
    assert plain(found) == plain(sweep(grid, tmp_path / "alone"))
    assert plain(found) == plain(sweep(grid, out, ray="local"))
    again = {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in out.glob("*.json")}
    assert again == after


@pytest.mark.slow
def test_a_cluster_without_room_is_told(assets: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(UsageError, match="no cluster answers there"):
        sweep(written(assets, tmp_path), tmp_path / "out", ray="127.0.0.1:1")
    import ray

    ray.init(address="local", num_cpus=1, _memory=1 << 20, include_dashboard=False)
    try:
        with pytest.raises(DoesNotFitError, match="cores on one machine"):
            sweep(written(assets, tmp_path), tmp_path / "out", ray="auto")
    finally:
        ray.shutdown()
