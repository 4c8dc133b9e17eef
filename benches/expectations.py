"""What the planner expects of schemes and cache types: edgelm/data/accuracy.json, rendered.

    python benches/expectations.py           measures the cache types that results/caches.json
                                             lacks, then writes edgelm/data/accuracy.json
    python benches/expectations.py --check   measures nothing; exits 1 when the file would change

A scheme's number is its divergence (KLD) in results/accuracy.json and a cache type's that in
results/caches.json: the mean over the backends of a model, then over the nano models, whose
weights are real floats (the demo's are 4-bit blocks already). All are over held-out text, from the
same weights in float32 with a float32 cache.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

from accuracy import NANO
from backends import ASSETS, BENCHES
from provenance import announce
from results_file import store

import edgelm

CACHES = ("float32", "bfloat16", "float16", "int8")
WINDOWS = 8  # of 512 tokens, as in accuracy.py
RENDERED = BENCHES.parent / "edgelm" / "data" / "accuracy.json"

Row = dict[str, Any]


def main(arguments: list[str]) -> int:
    check = arguments == ["--check"]
    if arguments and not check:
        print(f"given {arguments}; the only option is --check", file=sys.stderr)
        return 2
    if check:
        current = RENDERED.read_text("utf-8") if RENDERED.exists() else ""
        if current != render():
            print(f"{RENDERED} is not what benches/results say", file=sys.stderr)
            return 1
        return 0
    measure_caches()
    RENDERED.parent.mkdir(exist_ok=True)
    RENDERED.write_text(render(), encoding="utf-8")
    return 0


def render() -> str:
    """The file's text: mean divergences in nats, four digits each."""
    schemes = means(rows("accuracy"), "asked")
    table = {"schemes": schemes, "caches": means(rows("caches"), "kv")}
    return json.dumps(table, indent=1) + "\n"


def means(measured: list[Row], key: str) -> dict[str, float]:
    """Mean KLD by ``key``, of what every nano model was measured with."""
    by_model: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in measured:
        by_model[row[key]][row["model"]].append(row["kld_mean"])
    found = {}
    for name, models in by_model.items():
        if set(NANO) <= set(models):
            found[name] = float(f"{fmean(fmean(models[model]) for model in NANO):.4g}")
    return found


def rows(name: str) -> list[Row]:
    """What was measured so far."""
    path = BENCHES / "results" / f"{name}.json"
    measured: list[Row] = json.loads(path.read_text("utf-8"))["rows"] if path.exists() else []
    return measured


def measure_caches() -> None:
    """Every nano model with float32 weights over each type of cache."""
    measured = rows("caches")
    done = {(row["model"], row["kv"]) for row in measured}
    with tempfile.TemporaryDirectory() as scratch:
        for model in NANO:
            kept = Path(scratch) / f"{model}.baseline"
            common = {"text": ASSETS / "nano" / "heldout.txt", "limit": WINDOWS, "quant": "none"}
            for kv in CACHES:
                if (model, kv) in done:
                    continue
                folder = ASSETS / "nano" / model
                if not kept.exists():
                    edgelm.evaluate(folder, baseline=kept, kv="float32", **common)
                found = edgelm.evaluate(folder, baseline=kept, kv=kv, **common)
                kld = found.to_dict()["kld_mean"]
                measured.append({"model": model, "kv": kv, "kld_mean": kld})
                print(f"{model} {kv}: KLD {kld:.7f}", file=sys.stderr)
    store("caches", "python benches/expectations.py", measured)


if __name__ == "__main__":
    announce()
    raise SystemExit(main(sys.argv[1:]))
