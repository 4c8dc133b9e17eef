"""How much each kind of matrix adds to a model's divergence: edgelm/data/sensitivities.json.

    python benches/sensitivities.py           measures the models that results/sensitivities.json
                                              lacks, then writes edgelm/data/sensitivities.json
    python benches/sensitivities.py --check   measures nothing; exits 1 when the file would change
    python benches/sensitivities.py FOLDER    also measures the model in FOLDER, on wikitext-2

A kind's number is its divergence (KLD) with only that kind in four bits, over the relative squared
error of the format: the geometric mean over the models that have the kind.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from accuracy import NANO
from backends import ASSETS, BENCHES
from provenance import announce
from results_file import complete, stored_rows

from edgelm.models.model_files import ModelFiles
from edgelm.quantization.bit_budget import PROBE, WINDOWS, measured

RENDERED = BENCHES.parent / "edgelm" / "data" / "sensitivities.json"


def main(arguments: list[str]) -> int:
    if arguments == ["--check"]:
        if RENDERED.read_text("utf-8") != render():
            print(f"{RENDERED} is not what benches/results say", file=sys.stderr)
            return 1
        return 0
    wiki = ASSETS / "text" / "wiki.test.raw"
    sources = {name: (ASSETS / "nano" / name, ASSETS / "nano" / "heldout.txt") for name in NANO}
    sources |= {Path(each).name: (Path(each), wiki) for each in arguments}

    def measure(name: str) -> dict[str, Any]:
        folder, text = sources[name]
        kinds = measured(ModelFiles.open(folder), text)
        print(name, {kind: f"{value:.3g}" for kind, value in kinds.items()}, flush=True)
        return {
            "model": name, "text": text.name, "windows": WINDOWS, "probe": PROBE, "kinds": kinds,
        }  # fmt: skip

    if complete("sensitivities", ((name,) for name in sources), ("model",), measure):
        return 1
    RENDERED.write_text(render(), encoding="utf-8")
    return 0


def render() -> str:
    """The file's text: three digits each."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in stored_rows("sensitivities"):
        for kind, value in row["kinds"].items():
            found[kind].append(max(value, 1e-6))
    kinds = {kind: float(f"{geometric_mean(values):.3g}") for kind, values in found.items()}
    return json.dumps({"kinds": kinds}, indent=1) + "\n"


if __name__ == "__main__":
    announce()
    raise SystemExit(main(sys.argv[1:]))
