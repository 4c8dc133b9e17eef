"""Predicted against measured peak memory: every family, scheme, cache type and context.

    python benches/memory.py                  all rows that results/memory.json does not hold yet
    python benches/memory.py --again          all rows anew
    python benches/memory.py bloom int4       rows that have all of these words in their name
    python benches/memory.py --keep FOLDER    leaves the generated checkpoints there, for the next

Rows are kept as they come, so that an interrupted run goes on where it stopped. At the end the
table is printed and results/memory.svg drawn (Matplotlib, extra `plot`); the exit code is 1 when a
row misses its bound. Linux only: peaks are VmHWM of fresh processes, which fill the whole context.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints import MODELS, checkpoint
from provenance import announce
from results_file import RESULTS, store, stored_rows

MIB = 1 << 20
OVER = (0.03, 50 * MIB)  # a prediction may exceed what was measured by this share and this sum
UNDER = 0.01  # and fall below it by this share
LOAD_LIMIT_BYTES = 500 * MIB  # of an int4 load beside the packed weights and `import torch`
QUANTS = ("none", "int8", "int4", "nf4")
CACHES = ("float32", "bfloat16", "int8")
CONTEXTS = (512, 4096)

IMPORT_TORCH = """
import re, torch
print(int(re.search("VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) * 1024)
"""
LOAD = """
import json, sys
import edgelm
from edgelm.reports.benchmark import Workload, run_round
from edgelm.machine.hardware import peak_resident_bytes
folder, quant, kv, context = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
peaks = {}
def loading(*_):
    peaks["load"] = peak_resident_bytes()
with edgelm.load(folder, quant=quant, kv=kv, context=context, progress=loading) as lm:
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew from what is resident
    run_round(lm, Workload(prompt_tokens=context - 8, decode_tokens=7))
    peaks["steady"] = peak_resident_bytes()
    print(json.dumps(lm.plan.to_dict() | {"peaks": peaks}))
"""


@dataclass(frozen=True)
class Case:
    """One row to measure."""

    model: str
    quant: str
    kv: str
    context: int

    @property
    def name(self) -> str:
        return f"{self.model} {self.quant} {self.kv} {self.context}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("words", nargs="*", help="only rows that have all of them in their name")
    parser.add_argument("--again", action="store_true", help="measure rows that are kept anew")
    parser.add_argument("--keep", type=Path, help="where generated checkpoints stay")
    given = parser.parse_args()
    cases = [case for case in all_cases() if set(given.words) <= words(case)]
    rows = {row["name"]: row for row in stored_rows("memory")}
    with tempfile.TemporaryDirectory() as scratch:
        for case in cases:
            if case.name in rows and not given.again:
                continue
            folder = checkpoint(case.model, given.keep or Path(scratch))
            rows[case.name] = measure(case, folder, Path(scratch) / "cache")
            store("memory", "python benches/memory.py", in_order(rows))
            print(line(rows[case.name]), flush=True)
    chosen = [rows[case.name] for case in cases]
    print_table(chosen)
    plot(in_order(rows), RESULTS / "memory.svg")
    missed = [row["name"] for row in chosen if not row["within"]]
    print(f"{len(chosen) - len(missed)} of {len(chosen)} rows within the bounds", *missed, sep="\n")
    return int(bool(missed))


def all_cases() -> Iterator[Case]:
    """Model by model, so that a checkpoint is made once."""
    for model in MODELS:
        for quant in QUANTS:
            for kv in CACHES:
                for context in CONTEXTS:
                    yield Case(model, quant, kv, context)


def words(case: Case) -> set[str]:
    """What a row can be chosen by: its whole columns, and the family."""
    return {*case.name.split(), case.model.partition("-")[0]}


def measure(case: Case, folder: Path, cache: Path) -> dict[str, Any]:
    """Peaks of loading and of generating, and what the plan had said.

    cache: an empty cache folder, so that no earlier run corrects the prediction.
    """
    told = json.loads(
        fresh_process(LOAD, str(folder), case.quant, case.kv, str(case.context), cache=cache)
    )
    row = {
        "name": case.name,
        **vars(case),
        "file_bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        "weight_bytes": told["weight_bytes"],
        "load_predicted_bytes": told["load_peak_bytes"],
        "load_peak_bytes": told["peaks"]["load"],
        "steady_predicted_bytes": told["steady_peak_bytes"],
        "steady_peak_bytes": told["peaks"]["steady"],
    }
    row["within"] = all(
        is_near(row[f"{phase}_predicted_bytes"], row[f"{phase}_peak_bytes"])
        for phase in ("load", "steady")
    )
    if case.quant == "int4":
        row["load_limit_bytes"] = (
            told["weight_bytes"] + int(fresh_process(IMPORT_TORCH, cache=cache)) + LOAD_LIMIT_BYTES
        )
        row["within"] &= row["load_peak_bytes"] <= row["load_limit_bytes"]
    return row


def is_near(predicted: int, measured: int) -> bool:
    share, added = OVER
    return measured * (1 - UNDER) <= predicted <= measured * (1 + share) + added


def fresh_process(program: str, *arguments: str, cache: Path) -> str:
    """What a Python program prints that has a cache folder of its own."""
    if cache.exists():
        shutil.rmtree(cache)
    command = [sys.executable, "-c", program, *arguments]
    environment = os.environ | {"EDGELM_CACHE": str(cache)}
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=environment)
    return done.stdout


def in_order(rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that were measured, as cases follow one another."""
    return [rows[case.name] for case in all_cases() if case.name in rows]


def line(row: dict[str, Any]) -> str:
    """A row for people: MiB predicted and measured of both peaks, and the differences."""
    text = f"{row['name']:40}"
    for phase in ("load", "steady"):
        predicted, peak = row[f"{phase}_predicted_bytes"], row[f"{phase}_peak_bytes"]
        text += f" {predicted / MIB:8,.0f} {peak / MIB:8,.0f} {(predicted - peak) / MIB:+7.1f}"
        text += f" {predicted / peak - 1:+6.1%}"
    return text + ("" if row["within"] else "  MISSED")


def print_table(rows: list[dict[str, Any]]) -> None:
    columns = "predicted measured   MiB off        "
    print(f"\n{'row, MiB':40}     load: {columns}steady: {columns}")
    print(*map(line, rows), sep="\n")


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Predicted over measured, a point for each peak, and the bounds."""
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(6, 6))).subplots()
    for phase in ("load", "steady"):
        measured = [row[f"{phase}_peak_bytes"] / MIB for row in rows]
        predicted = [row[f"{phase}_predicted_bytes"] / MIB for row in rows]
        axes.scatter(measured, predicted, s=8, label=f"peak, {phase}")
    ends = [0, max(row["steady_peak_bytes"] for row in rows) / MIB * 1.1]
    share, added = OVER
    axes.plot(ends, [end * (1 + share) + added / MIB for end in ends], "k:", label="bounds")
    axes.plot(ends, [end * (1 - UNDER) for end in ends], "k:")
    axes.set_xlabel("measured, MiB")
    axes.set_ylabel("predicted, MiB")
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    announce()
    raise SystemExit(main())
