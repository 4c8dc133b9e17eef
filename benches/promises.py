"""Peaks that `edgelm quantize` promises, and what it takes, for 6.4 GB of bfloat16 weights.

    python benches/promises.py            every method, into results/promises.json
    python benches/promises.py mse        that one; rows of the others stay

The weights are random, in the shape of Llama-3.2-3B; they and the result need 12 GB of the
temporary folder. The exit code is 1 when a promise is broken, or more than a quarter above the
peak. Calibration runs on 2048 tokens of the usual 8,192 to 131,072.
Certificates are left out: what they take does not depend on the method (tests/test_promises.py).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from checkpoints import write_byte_tokenizer, write_model
from provenance import announce
from results_file import store, stored_rows

import edgelm
from edgelm.checkpoint.shapes import shape_config
from quant import CALIBRATED_METHODS, METHODS

ALL_METHODS = (*METHODS, *CALIBRATED_METHODS)
CALIBRATION_TOKENS = 2048
SLACK = 1.25
MIB = 1 << 20
SHAPE = "llama-3.2-3b"
QUANTIZE = "import sys; from edgelm.cli.main import main; sys.exit(main(sys.argv[1:]))"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "methods", nargs="*", default=list(ALL_METHODS), help=", ".join(ALL_METHODS)
    )
    methods = parser.parse_args().methods
    rows = {row["method"]: row for row in stored_rows("promises")}
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source"
        write_model(shape_config(SHAPE), source)
        write_byte_tokenizer(source)
        for method in methods:
            options = few_tokens(method, Path(scratch))
            row = rows[method] = measure(source, Path(scratch) / method, method, *options)
            store("promises", "python benches/promises.py", list(rows.values()), shape=SHAPE)
            print(f"{line(row)}, in {row['seconds']:.0f} s", flush=True)
    return int(not all(is_kept(rows[method]) for method in methods))


def few_tokens(method: str, folder: Path) -> tuple[str, ...]:
    """Options that calibrate on CALIBRATION_TOKENS, where the method does and tokens are bytes."""
    if method not in CALIBRATED_METHODS:
        return ("--no-certificate",)
    text = folder / "calibration.txt"
    text.write_text("Tokens are bytes in this model. " * (CALIBRATION_TOKENS // 32))
    return "--calibration", str(text), "--no-certificate"


def measure(source: Path, out: Path, method: str, *options: str) -> dict[str, Any]:
    """What a fresh process promised and took."""
    start = time.monotonic()
    given = ("--method", method, *options, "--json")
    told = json.loads(fresh(QUANTIZE, "quantize", source, out, *given))
    return {
        "method": method,
        "source_bytes": sum(path.stat().st_size for path in source.glob("*.safetensors")),
        "written_bytes": told["nbytes"],
        "promised_peak_bytes": told["promised_peak_bytes"],
        "peak_rss_bytes": told["peak_rss_bytes"],
        "parts": told["promised_parts"],
        "seconds": time.monotonic() - start,
    } | ({"calibration": told["calibration"]} if told["calibration"] else {})


def is_kept(row: dict[str, Any]) -> bool:
    """The peak is below what was promised, and the promise not far above it."""
    return row["peak_rss_bytes"] <= row["promised_peak_bytes"] <= SLACK * row["peak_rss_bytes"]


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    keys = ("peak_rss_bytes", "promised_peak_bytes")
    peak, promised = (f"{row[key] / MIB:.0f}" for key in keys)
    return f"{row['method']}: measured {peak} MiB, promised {promised}"


def fresh(program: str, *arguments: object) -> str:
    """What a Python program prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], text=True, capture_output=True,
        cwd=Path(edgelm.__file__).parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


if __name__ == "__main__":
    announce()
    raise SystemExit(main())
