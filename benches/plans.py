"""What `edgelm plan` says of the README's models: an 8B in 6 GiB, and the peaks of three sizes.

    python benches/plans.py              into results/plans.json; reads no weights, half a minute
    python benches/plans.py --measure    also loads sizes whose peak is not known and fills their
                                         context: up to an hour, and as much memory as the largest
                                         plan asks for

Every command runs in a process of its own with an empty cache folder, so that no earlier run
corrects a prediction. The planner's speed estimate follows from a read bandwidth. It is the one
measured in the run of compare.py that timed the same 8B, where this is that machine; elsewhere the
planner measures it. A peak that was measured before stays as long as the weights of that recipe
have the same bytes; delete the file to measure all anew. Each is stored as it comes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from provenance import announce
from results_file import RESULTS, store, stored_rows

import edgelm
from edgelm.machine import hardware

EXAMPLE = ("plan", "--shape", "llama-3-8b", "--budget", "6GiB")
COLUMNS = 124  # of the terminal that the example's output is made for
CONTEXT = 4096
SIZES = (
    ("llama-3.2-1b", "int4"),
    ("llama-3.2-1b", "int8"),
    ("gemma-2-2b", "int4"),
    ("llama-3-8b", "int4"),
)
FILLED = ("--prompt-tokens", str(CONTEXT - 16), "--decode-tokens", "15", "--repeat", "1")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--measure", action="store_true", help="measure the peaks too")
    measure = parser.parse_args().measure
    read_gb_s = bandwidth_of_the_comparison()
    before = {(row["shape"], row["quant"]): row for row in stored_rows("plans")}
    rows = {key: size(*key, before.get(key, {}), False) for key in SIZES}
    example = {
        "command": " ".join(("edgelm", *EXAMPLE)),
        "columns": COLUMNS,
        "read_gb_s": read_gb_s,
        "output": [line.rstrip() for line in said(*EXAMPLE, read_gb_s=read_gb_s).splitlines()],
    }
    store("plans", "python benches/plans.py", list(rows.values()), example=example)
    for key in SIZES:
        if measure and "peak_rss_bytes" not in rows[key]:
            rows[key] = size(*key, {}, True)
            store("plans", "python benches/plans.py", list(rows.values()), example=example)
        print(rows[key], flush=True)
    return 0


def size(shape: str, quant: str, before: dict[str, Any], measure: bool) -> dict[str, Any]:
    """One row: what is predicted for a shape, and its measured peak where there is one."""
    options = ("--shape", shape, "--quant", quant, "--kv", "bfloat16", "--context", str(CONTEXT))
    told = json.loads(said("plan", *options, "--json"))
    row = {
        "shape": shape,
        "quant": quant,
        "command": " ".join(("edgelm plan", *options)),
        "kv": told["kv"],
        "context": told["context"],
        "bits_per_weight": told["bits_per_weight"],
        "weight_bytes": told["weight_bytes"],
        "predicted_peak_bytes": told["predicted_peak_bytes"],
    }
    if measure:
        ran = json.loads(said("bench", *options, *FILLED, "--json"))
        measured = {"peak_rss_bytes": ran["peak_rss_bytes"]}
        measured["measured_by"] = " ".join(("edgelm bench", *options, *FILLED))
        return row | measured
    same = before.get("weight_bytes") == row["weight_bytes"]
    kept = ("peak_rss_bytes", "measured_by") if same else ()
    return row | {key: before[key] for key in kept if key in before}


def said(*words: str, read_gb_s: float | None = None) -> str:
    """The standard output of an edgelm command, which has an empty cache folder of its own."""
    with tempfile.TemporaryDirectory() as cache:
        if read_gb_s is not None:
            known = {"processor": hardware.processor_name(), "read_gb_s": read_gb_s}
            (Path(cache) / hardware.PROFILE).write_text(json.dumps(known), encoding="utf-8")
        environment = os.environ | {"EDGELM_CACHE": cache, "COLUMNS": str(COLUMNS)}
        done = subprocess.run(
            [sys.executable, "-m", "edgelm", *words], stdout=subprocess.PIPE, check=True, text=True,
            env=environment, cwd=Path(edgelm.__file__).parent.parent,
        )  # fmt: skip
    return done.stdout


def bandwidth_of_the_comparison() -> float | None:
    """GB/s that plain reading reached while compare.py timed the 8B; None on another machine."""
    path = RESULTS / "compare.json"
    if not path.exists():
        return None
    compared = json.loads(path.read_text(encoding="utf-8"))
    if compared["machine"] != f"{hardware.processor_name()}, {hardware.cores()} cores":
        return None
    found = [row["read_gb_s"] for row in compared["rows"] if row["case"] == "decode-int4-8b"]
    return float(found[0]) if found else None


if __name__ == "__main__":
    announce()
    raise SystemExit(main())
