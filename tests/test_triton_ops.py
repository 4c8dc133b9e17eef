"""Runs tests/interpreted/triton_ops.py, Triton's operations against the reference, on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parent / "interpreted" / "triton_ops.py"
WHOLE_MODELS = "families or captured"

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


def run_interpreted(wanted: str) -> None:
    """The tests that ``-k wanted`` names, in a process whose Triton interprets."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rP", str(FILE)]
    done = subprocess.run(
        [*command, "-k", wanted], env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=FILE.parent.parent.parent, capture_output=True, text=True,
    )  # fmt: skip
    numbers = [line for line in done.stdout.splitlines() if "bound" in line]
    print(*sorted(set(numbers)), sep="\n")
    assert done.returncode == 0, done.stdout[-4000:]


def test_operations_match_the_reference_under_the_interpreter() -> None:
    run_interpreted(f"not ({WHOLE_MODELS})")


@pytest.mark.slow
def test_whole_models_match_under_the_interpreter() -> None:
    run_interpreted(WHOLE_MODELS)
