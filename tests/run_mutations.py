"""Breaks one feature at a time in a copy of the tree and names the test that noticed.

    python tests/run_mutations.py [WORD ...]     only rows whose feature contains one of the words

Prints a line per row: feature -> the failed test; at last again those that went unnoticed. Exits 1
when a mutation survives, when its old text is not found exactly once, or when a slow test fails
without it; run `pytest` for the others.

Every run is a fork of this process, which has imported what is slow to import and nothing of ours.
"""

from __future__ import annotations

import compileall
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from py_compile import PycInvalidationMode

from mutations import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parent.parent
JOBS = 2
TIMEOUT_S = 300
NONE_CHOSEN = 5  # pytest's exit status
PRELOADED = ("numpy", "torch", "pytest", "transformers.models.llama.modeling_llama")
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "__pycache__", "*.egg-info", "build", "dist", ".*_cache", ".hypothesis"
)
Ended = Callable[[int, str], None]


def copy_tree(folder: Path) -> Path:
    """A copy of the repository without caches, in which files may be broken.

    Its `quant` finds the native library as the tree's does. What is compiled ahead is checked
    against the text of its file, so that a patched one is compiled anew.
    """
    copy = Path(shutil.copytree(ROOT, folder, ignore=LEFT_OUT))
    for part in ("edgelm", "quant"):
        mode = PycInvalidationMode.CHECKED_HASH
        compileall.compile_dir(copy / part, quiet=1, invalidation_mode=mode)
    return copy


def say_what_runs(tree: Path) -> None:
    """Which packages and native library the rows are tried on; exits if not those of the copy."""
    program = (
        "import sys, provenance as p; print(p.sentence(), flush=True); "
        "sys.exit(not p.FOLDER.samefile(sys.argv[1]))"
    )
    path = os.pathsep.join([str(tree), str(tree / "benches")])
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, str(tree)], env={**os.environ, "PYTHONPATH": path}
    )
    if done.returncode:
        raise SystemExit("an editable install hides the copies that rows break: `pip install .`")


@dataclass
class Run:
    """One row, or tests without any: what to do before, with which tests, and after.

    only_slow: the others have just passed; what pytest makes of test files is kept for the rows.
    """

    nodes: tuple[str, ...]
    only_slow: bool
    patch: Callable[[Path], Callable[[], None]]
    ended: Ended


class Forks:
    """Runs pytest in forks of this process, one in each copy of the tree."""

    def __init__(self, trees: Iterable[Path]) -> None:
        self._free = deque(trees)
        self._running: dict[int, tuple[Path, Callable[[], None], Ended]] = {}

    def run(self, runs: Iterable[Run]) -> None:
        """All of them; each result is told as it comes."""
        for run in runs:
            if not self._free:
                self._wait()
            tree = self._free.popleft()
            restore = run.patch(tree)
            sys.stdout.flush()
            pid = os.fork()
            if pid == 0:
                _pytest(tree, run)
            self._running[pid] = (tree, restore, run.ended)
        while self._running:
            self._wait()

    def _wait(self) -> None:
        pid, status = os.wait()
        tree, restore, ended = self._running.pop(pid)
        restore()
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # what a test left behind
        self._free.append(tree)
        ended(os.waitstatus_to_exitcode(status), _output(tree).read_text(errors="replace"))


def _output(tree: Path) -> Path:
    return tree.with_name(f"{tree.name}.txt")


def _pytest(tree: Path, run: Run) -> None:
    """pytest in the copy and in this process, which ends with its status."""
    os.setpgid(0, 0)
    signal.alarm(TIMEOUT_S)
    with _output(tree).open("w") as output, open(os.devnull) as nothing:
        for source, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(source.fileno(), target)
    status = 3
    try:
        assets = os.environ.get("EDGELM_ASSETS") or ROOT.parent / "shared" / "assets"
        os.environ["EDGELM_ASSETS"] = str(Path(assets).resolve())
        os.environ["PYTHONPATH"] = str(tree)
        if not run.only_slow:  # a patched module's code must not stay behind for the next row
            os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
            sys.dont_write_bytecode = True
        os.chdir(tree)
        sys.path[0] = str(tree)
        for name in [name for name in sys.modules if name.partition(".")[0] == "mutations"]:
            del sys.modules[name]
        import pytest

        own = ["-x", "-q", "-m", "slow" if run.only_slow else "", "-p", "no:cacheprovider"]
        status = int(pytest.main([*own, *run.nodes]))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run_of(mutation: Mutation, tell: Callable[[bool, str], None]) -> Run:
    """A row: its patch, its tests, and what their result says of it."""

    def patch(tree: Path) -> Callable[[], None]:
        path = tree / mutation.file
        source = path.read_text(encoding="utf-8")
        path.write_text(source.replace(mutation.old, mutation.new), encoding="utf-8")
        return lambda: path.write_text(source, encoding="utf-8") and None

    def ended(status: int, output: str) -> None:
        failed = FAILED.search(output)
        # Only status 1 is a failed test; a module that cannot be collected proves nothing.
        if status == 1 and failed:
            tell(True, failed.group(1))
        elif status == 0:
            tell(False, "SURVIVED")
        elif status == -signal.SIGALRM:
            tell(False, f"no result within {TIMEOUT_S} s")
        else:
            tell(False, f"pytest ended with {status}: {output.strip()[-300:]}")

    return Run(mutation.tests, False, patch, ended)


def misplaced(mutation: Mutation) -> str:
    """Why a row cannot be applied; empty if it can."""
    path = ROOT / mutation.file
    found = path.read_text(encoding="utf-8").count(mutation.old) if path.is_file() else 0
    return "" if found == 1 else f"its old text occurs {found} times in {mutation.file}, not once"


def unbroken(rows: Iterable[Mutation], failures: list[str]) -> Iterable[Run]:
    """The slow tests without any mutation, dealt out to the copies by file."""

    def ended(status: int, output: str) -> None:
        if status not in (0, NONE_CHOSEN):
            failures.append(output[-3000:])

    files: dict[str, list[str]] = {}
    for node in dict.fromkeys(node for row in rows for node in row.tests):
        files.setdefault(node.partition("::")[0], []).append(node)
    for nodes in files.values():
        yield Run(tuple(nodes), True, lambda tree: lambda: None, ended)


def main(words: list[str]) -> int:
    """Runs the chosen rows, two at a time; 0 when every one was noticed."""
    rows = [m for m in MUTATIONS if not words or any(word in m.feature for word in words)]
    if not rows:
        print("no mutation chosen", file=sys.stderr)
        return 1
    # As tests/conftest.py, but before torch and Triton are imported.
    os.environ |= {"OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
    unnoticed: list[str] = []

    def tell(mutation: Mutation, noticed: bool, why: str) -> None:
        print(f"{'ok ' if noticed else 'BAD'} {mutation.feature} -> {why}", flush=True)
        if not noticed:
            unnoticed.append(f"{mutation.feature} -> {why}")

    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        trees = [copy_tree(Path(folder) / f"tree{job}") for job in range(JOBS)]
        say_what_runs(trees[0])
        forks = Forks(trees)
        logging.disable(logging.WARNING)  # what libraries miss on this machine is not our news
        for name in PRELOADED:
            import_module(name)
        logging.disable(logging.NOTSET)
        failures: list[str] = []
        forks.run(unbroken(rows, failures))
        if failures:
            print("the tests fail without any mutation:", *failures, sep="\n", file=sys.stderr)
            return 1
        runs = []
        for row in rows:
            if why := misplaced(row):
                tell(row, False, why)
            else:
                runs.append(run_of(row, lambda *found, row=row: tell(row, *found)))
        forks.run(runs)
    print(f"{len(rows)} mutations, {len(unnoticed) or 'none'} unnoticed", *unnoticed, sep="\n")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
