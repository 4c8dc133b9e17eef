"""Runs tests/interpreted/triton_ops.py, Triton's operations against the reference, on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parent / "interpreted" / "triton_ops.py"


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_operations_match_the_reference_under_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rP", str(FILE)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        command, env=environment, cwd=FILE.parent.parent.parent, capture_output=True, text=True
    )
    numbers = [line for line in done.stdout.splitlines() if "bound" in line or " dB" in line]
    print(*sorted(set(numbers)), sep="\n")
    assert done.returncode == 0, done.stdout[-4000:]
