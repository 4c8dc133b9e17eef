"""How long a start takes, beyond ``import torch``, until the first token of a short prompt.

    python benches/second_start.py --keep FOLDER [--model llama-3.2-1b] [--pairs 5]

Makes a checkpoint of random bfloat16 weights (it stays in FOLDER), starts it once in an empty cache
folder, which lays the weights out, and then again and again, each time beside a process that only
imports torch. Linux only: peaks are VmHWM of fresh processes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from checkpoints import write_model
from provenance import announce

from edgelm.checkpoint.shapes import shape_config

MIB = 1 << 20
PEAK = 'int(re.search("VmHWM:\\\\s*(\\\\d+)", open("/proc/self/status").read())[1]) * 1024'
IMPORT_TORCH = f"import json, re, torch\nprint(json.dumps({{'peak': {PEAK}}}))"
START = f"""
import json, re, sys, time
import torch
began = time.perf_counter()
import edgelm
from edgelm.generation.request import Request
from edgelm.generation.sampling import SamplingSettings
imported = time.perf_counter()
with edgelm.load(sys.argv[1], quant="int4", context=int(sys.argv[2])) as lm:
    loaded = time.perf_counter()
    asked = Request(tuple(range(100, 116)), 1, SamplingSettings(), speculate="off")
    with lm.batch([asked], frozenset()) as batch:
        ids = [token for _, token in batch.tokens()]
    answered = time.perf_counter()
    peak = {PEAK}
    caches = sum(part.bytes for part in lm.plan.parts if part.name.startswith("kv cache."))
    print(json.dumps({{
        "ids": ids, "peak": peak, "predicted": lm.plan.predicted_peak_bytes,
        "weights": lm.plan.weight_bytes, "caches": caches,
        "import_s": imported - began, "load_s": loaded - imported, "answer_s": answered - loaded,
    }}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--keep", type=Path, required=True, help="where the checkpoint stays")
    parser.add_argument("--model", default="llama-3.2-1b", help="a name of checkpoint.shapes")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=5)
    given = parser.parse_args()
    folder = given.keep / given.model
    if not folder.exists():
        write_model(shape_config(given.model), folder)
    arguments = (str(folder), str(given.context))
    with tempfile.TemporaryDirectory(dir=given.keep) as cache:
        first = fresh_process(START, *arguments, cache=cache)
        bare, later = [], []
        for _ in range(given.pairs):
            bare.append(fresh_process(IMPORT_TORCH, cache=cache))
            later.append(fresh_process(START, *arguments, cache=cache))
    assert all(own["ids"] == first["ids"] for own in later), "another answer"
    print(line("first start", first, bare))
    print(line("second start, median", {k: middle(later, k) for k in first if k != "ids"}, bare))


def fresh_process(program: str, *arguments: str, cache: str) -> dict[str, Any]:
    """What a Python program prints as JSON, and the seconds from its start to its end."""
    environment = os.environ | {"EDGELM_CACHE": cache}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE, check=True, text=True, env=environment,
    )  # fmt: skip
    return json.loads(done.stdout) | {"process_s": time.perf_counter() - began}


def middle(rows: list[dict[str, Any]], key: str) -> float:
    return median(row[key] for row in rows)


def line(name: str, row: dict[str, Any], bare: list[dict[str, Any]]) -> str:
    beyond_s = row["process_s"] - middle(bare, "process_s")
    beyond = row["peak"] - middle(bare, "peak") - row["weights"] - row["caches"]
    return (
        f"{name}: {beyond_s:.2f} s beyond `import torch` ({middle(bare, 'process_s'):.2f} s): "
        f"import {row['import_s']:.2f}, load {row['load_s']:.2f}, answer {row['answer_s']:.2f}; "
        f"peak {row['peak'] / MIB:.0f} MiB (planned {row['predicted'] / MIB:.0f}), "
        f"{beyond / MIB:+.0f} beside torch, weights ({row['weights'] / MIB:.0f}) and caches"
    )


if __name__ == "__main__":
    announce()
    main()
