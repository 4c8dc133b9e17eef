"""Us and other engines on the same shapes, side by side, in one interleaved run.

    pip install 'edgelm[peers]'
    python benches/compare.py                        every case: some two hours on two cores
    python benches/compare.py decode-int4-1b resident --rounds 3
    python benches/compare.py --list

Writes results/compare.json, from which tables.py renders its tables. A case that is there already
is not run again unless it is named, so that a run that was stopped goes on where it was (delete the
file to begin anew). Models of random weights are written to --files DIR and stay there; without it
they lie in a temporary folder that must hold 35 GB.

In a case everybody is loaded at once, and each round everybody has one turn after a second of rest,
beginning with the next one each time, and our first entrant one more beside each, before it and
after it in turns. Who was twenty times slower than the best in the first round has that turn alone
(`turns`). Before each round the machine's read bandwidth and its rate of 8-bit products are
measured. `ratio` is the median over the rounds of how many times better we were in the turn beside;
llama.cpp runs with the fastest of its types of as many bits and of its settings, tried before
(`tried`). Who could not take part has `missing` in place of numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from comparison.cases import CASES
from comparison.run import Runner, machine_name
from provenance import announce

RESULT = Path(__file__).resolve().parent / "results" / "compare.json"
LIBRARIES = (
    *("torch", "llama-cpp-python", "openvino-genai", "transformers", "torchao", "bitsandbytes"),
)
NEEDED_BYTES = 35 * 10**9


def main() -> int:
    options = parsed()
    if options.list:
        for case in CASES.values():
            print(f"{case.name:22} {case.shape}, {case.bits}: {case.metric.name}")
        return 0
    rows = kept_rows()
    done = {row["case"] for row in rows}
    wanted = options.cases or [name for name in CASES if name not in done]
    with ExitStack() as stack:
        folder = options.files or stack.enter_context(tempfile.TemporaryDirectory())
        files = Path(folder)
        files.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(files).free < NEEDED_BYTES:
            say(f"{files} has less than {NEEDED_BYTES / 1e9:.0f} GB free: large shapes may not fit")
        runner = Runner(files, options.rounds, options.threads, options.minutes * 60, say)
        for name in wanted:
            fresh = [row | {"date": today()} for row in runner.run(CASES[name])]
            rows = [row for row in rows if row["case"] != name] + fresh
            store(rows, options)
            for row in fresh:
                say(line(row))
            if not options.files:
                drop_unneeded(files, wanted[wanted.index(name) + 1 :])
    return 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help="see --list; without: all")
    parser.add_argument("--list", action="store_true", help="name the cases and end")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=12, help="after them a case adds no round")
    parser.add_argument("--files", type=Path, help="a folder where the models are kept")
    options = parser.parse_args()
    unknown = [name for name in options.cases if name not in CASES]
    if unknown:
        parser.error(f"no case is called {', '.join(unknown)}; there are: {', '.join(CASES)}")
    if options.rounds < 1 or options.threads < 1:
        parser.error("--rounds and --threads must be at least 1")
    return options


def kept_rows() -> list[dict[str, Any]]:
    """What earlier runs found, without cases that exist no more."""
    if not RESULT.exists():
        return []
    rows: list[dict[str, Any]] = json.loads(RESULT.read_text(encoding="utf-8"))["rows"]
    return [row for row in rows if row["case"] in CASES]


def store(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Write the result file whole: a run that is stopped leaves the one before."""
    names = list(CASES)
    result = {
        "machine": machine_name(),
        "date": today(),
        "command": "python benches/compare.py",
        "threads": options.threads,
        "versions": {"python": platform.python_version()} | versions(),
        "rows": sorted(rows, key=lambda row: names.index(row["case"])),
    }
    RESULT.parent.mkdir(exist_ok=True)
    partial = RESULT.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, RESULT)


def versions() -> dict[str, str]:
    """Of everything that takes part; absent ones are named so."""
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "not installed"
    return found


def drop_unneeded(files: Path, left: list[str]) -> None:
    """Delete the models of shapes that no further case reads."""
    shapes = {CASES[name].shape for name in left}
    for path in files.iterdir():
        if not path.name.startswith(tuple(shapes)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def line(row: dict[str, Any]) -> str:
    if "missing" in row:
        return f"{row['case']}: {row['engine']}: missing: {row['missing']}"
    ratio = f", we are {row['ratio']:.2f}x" if "ratio" in row else ""
    return f"{row['case']}: {row['engine']}: {row['value']:.4g} {row['unit']}{ratio}"


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def say(text: str) -> None:
    print(f"{datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    announce()
    raise SystemExit(main())
