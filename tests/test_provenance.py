"""What is measured and tested is said in a sentence, and child processes use the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import provenance
import pytest

from quant import native

BENCHES = Path(__file__).resolve().parent.parent / "benches"
MEASURE_NOTHING = {"tables.py"}
MEASURE_WHAT_IS_NAMED = {"before_after.py", "walks.py"}  # on their command line


def test_the_sentence_names_the_packages_and_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "missing", lambda: None)
    monkeypatch.setattr(native, "path", lambda: Path("there/edgelm_native.so"))
    assert provenance.sentence().startswith(f"edgelm of {provenance.FOLDER}, ")
    assert "there" in provenance.sentence()
    monkeypatch.setattr(native, "missing", lambda: "it was mislaid")
    assert "without a native library: it was mislaid" in provenance.sentence()


def test_pytest_says_what_it_tests(request: pytest.FixtureRequest) -> None:
    config = request.config
    told = config.hook.pytest_report_header(config=config, start_path=config.rootpath)
    assert provenance.sentence() in told


def test_every_benchmark_says_what_it_measures(capsys: pytest.CaptureFixture[str]) -> None:
    silent = [
        path.name
        for path in BENCHES.glob("*.py")
        if '__name__ == "__main__":\n' in (text := path.read_text(encoding="utf-8"))
        and '__name__ == "__main__":\n    announce()\n' not in text
    ]
    assert set(silent) == MEASURE_NOTHING | MEASURE_WHAT_IS_NAMED
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "environ", dict(os.environ))
        provenance.announce()
    assert capsys.readouterr().err == provenance.sentence() + "\n"


def test_child_processes_use_the_same_packages(tmp_path: Path) -> None:
    """Not those of the folder that one happens to stand in."""
    (tmp_path / "edgelm").mkdir()
    (tmp_path / "edgelm" / "__init__.py").touch()
    program = "from importlib.util import find_spec; print(find_spec('edgelm').origin)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **provenance.environment()},
        cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    assert Path(done.stdout.strip()).parent.parent == provenance.FOLDER
