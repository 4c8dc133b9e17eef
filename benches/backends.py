"""One row per backend for RESULTS.md: speed, bandwidth, memory and perplexity of the demo model.

    python benches/backends.py [TEXT]     writes results/backends.json

Every measurement is an ``edgelm bench`` in a process of its own; the backends take turns, and a
row is its backend's median turn by decode speed. TEXT (by default wiki.test.raw of the assets
folder) is what perplexity is taken over: its first 4 windows of 512 tokens.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from provenance import announce
from results_file import store

import edgelm
from edgelm.evaluation.divergence import score_text
from edgelm.evaluation.passage import Passage

BENCHES = Path(__file__).resolve().parent
ASSETS = Path(os.environ.get("EDGELM_ASSETS") or BENCHES.parent.parent / "shared" / "assets")
RUNS = (
    *({"quant": "int4"}, {"quant": "int4", "backend": "torch"}),
    *({"quant": "int4", "backend": "reference"}, {"quant": "none"}),
)
TURNS = 3
WINDOW, WINDOWS = 512, 4
COMMAND = "edgelm bench demo --prompt-tokens 512 --decode-tokens 64"


def main(arguments: list[str]) -> int:
    text = Path(arguments[0] if arguments else ASSETS / "text" / "wiki.test.raw")
    turns = [[bench(run) for run in RUNS] for _ in range(TURNS)]
    rows = []
    for run, own in zip(RUNS, zip(*turns, strict=True), strict=True):
        row = sorted(own, key=lambda row: row["decode_tok_s"])[TURNS // 2]
        rows.append(row | {"ppl": text_perplexity(text, run)})
        print(json.dumps(rows[-1]))
    store("backends", f"{COMMAND} --quant … --backend …", rows)
    return 0


def bench(run: dict[str, str]) -> dict[str, Any]:
    """The document of one ``edgelm bench --json``."""
    options = [part for name, value in run.items() for part in (f"--{name}", value)]
    command = [sys.executable, "-m", *COMMAND.split(), *options, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def text_perplexity(text: Path, run: dict[str, str]) -> float:
    with edgelm.load("demo", **run) as lm:
        passage = Passage.read(text, lm.tokenizer, WINDOW, WINDOWS)
        return score_text(lm, passage, None, None).ppl


if __name__ == "__main__":
    announce()
    raise SystemExit(main(sys.argv[1:]))
