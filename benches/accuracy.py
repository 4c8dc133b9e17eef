"""What each scheme costs on each CPU backend: bits, perplexity and divergence.

    python benches/accuracy.py [WORD ...]    writes results/accuracy.json

Every family's nano model over its held-out text and the demo over wiki.test.raw, a row at a time.
Rows that results/accuracy.json holds are not run again (delete the file to begin anew); WORDs pick
rows by model, scheme or backend. No row starts after 15 minutes: run it again to go on.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from backends import ASSETS
from provenance import announce
from results_file import complete

import edgelm
from edgelm.errors import EdgeLMError
from edgelm.models.model_files import ModelFiles
from edgelm.reports.benchmark import backends_run
from quant.backends import BACKENDS

NANO = ("llama", "gemma2", "helium", "persimmon", "bloom")
SCHEMES = ("none", "int8", "int4", "nf4", "iq4-g32-coded", "iq4-g64-coded", "int4-g32")
WINDOWS = {"demo": 2}
"""Windows of 512 tokens where 8 would take too long."""


def main(words: list[str]) -> int:
    keys = (
        (name, scheme, own) for name in (*NANO, "demo") for scheme in SCHEMES for own in BACKENDS
    )
    chosen = (key for key in keys if all(word in key for word in words))
    with tempfile.TemporaryDirectory() as scratch:
        return complete(
            "accuracy", chosen, ("model", "asked", "asked_backend"),
            lambda *key: measured(*key, Path(scratch)),
        )  # fmt: skip


def measured(name: str, scheme: str, backend: str, scratch: Path) -> dict[str, Any] | None:
    """One row; None, said on stderr, where a backend does not run the scheme on this machine."""
    nano = name != "demo"
    files = ModelFiles.open(ASSETS / "nano" / name if nano else "demo")
    text = ASSETS / ("nano/heldout.txt" if nano else "text/wiki.test.raw")
    windows = WINDOWS.get(name, 8)
    settings = {"quant": scheme, "backend": backend}
    kept = scratch / f"{name}.baseline"
    try:
        if not kept.exists():
            edgelm.evaluate(files, text=text, limit=windows, baseline=kept, quant="none")
        found = edgelm.evaluate(files, text=text, limit=windows, baseline=kept, **settings)
        plan = edgelm.plan(files, **settings)
    except EdgeLMError as error:
        print(f"{name} {scheme} {backend}: {error}", file=sys.stderr)
        return None
    row = {
        **found.to_dict(),
        "model": name,
        "asked": scheme,
        "asked_backend": backend,
        "backend": backends_run(plan),
        "weight_bytes": plan.weight_bytes,
    }
    print(f"{name} {scheme} {backend}: KLD {row['kld_mean']:.6f}", file=sys.stderr)
    return row


if __name__ == "__main__":
    announce()
    raise SystemExit(main(sys.argv[1:]))
