"""Requests that schemathesis makes from /openapi.json, right and wrong ones: none gets a 5xx.

    pip install 'edgelm[serve]' 'schemathesis>=4,<5'
    python tests/soak/described.py [--seconds 300] [--seed 1]

Exits 1 where the server answers 5xx, logs a fault or ends.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from served import serving, with_template

CONTEXT = 96  # most answers go on until it is full


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options = ("--context", str(CONTEXT), "--users", "4", "--quant", "int8")
        with serving(with_template("llama", Path(folder)), *options) as served:
            # One worker: in threads Python 3.11 fails to parse what hypothesis asks it to.
            command = [
                "schemathesis", "run", f"{served.url}/openapi.json", "--phases",
                "coverage,fuzzing", "--checks", "not_a_server_error", "--continue-on-failure",
                "--max-time", str(given.seconds), "--seed", str(given.seed), "--workers", "1",
                "--request-timeout", "60",
            ]  # fmt: skip
            found = subprocess.run(command, cwd=folder, check=False).returncode
            running = served.measure("edgelm_answers_running")
    print(f"{given.seconds} s of requests: schemathesis ends with {found}, {running:.0f} running")
    return int(found != 0 or running > 0)


if __name__ == "__main__":
    sys.exit(main())
