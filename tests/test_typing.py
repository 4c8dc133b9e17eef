"""What an editor and a type checker know of the public calls."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CASES = ROOT / "tests" / "typing_cases" / "calls.py"
# Whole libraries are nothing to these cases, and reading torch takes a minute.
SETTINGS = """
[mypy]
python_version = 3.11
check_untyped_defs = true
[mypy-torch.*,numpy.*,huggingface_hub.*,jinja2.*,llguidance.*,filelock.*,gguf.*,bitsandbytes.*]
follow_imports = skip
ignore_missing_imports = true
[mypy-psutil.*,sentencepiece.*,torchao.*,triton.*,safetensors.*,tokenizers.*,transformers.*]
follow_imports = skip
ignore_missing_imports = true
"""


def test_a_type_checker_knows_the_calls(tmp_path: Path) -> None:
    """Results of each form of a call are known; names and types that are wrong are refused."""
    pytest.importorskip("mypy")
    settings = tmp_path / "mypy.ini"
    settings.write_text(SETTINGS)
    command = [sys.executable, "-m", "mypy", "--config-file", str(settings), "--no-error-summary"]
    command += ["--cache-dir", str(ROOT / ".mypy_cache" / "cases"), str(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    pattern = rf"^{re.escape(str(CASES.relative_to(ROOT)))}:(\d+): error: .*\[([\w-]+)\]$"
    found = {(int(line), code) for line, code in re.findall(pattern, done.stdout, re.MULTILINE)}
    lines = CASES.read_text().splitlines()
    marked = ((at, re.search(r"# ([a-z-]+)$", line)) for at, line in enumerate(lines, 1))
    expected = {(at, mark[1]) for at, mark in marked if mark}
    assert found == expected, done.stdout + done.stderr
