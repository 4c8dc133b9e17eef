"""Breaks one feature at a time in a copy of the tree and names the test that noticed.

    python tests/run_mutations.py [WORD ...]     only rows whose feature contains one of the words

Prints a line per row: feature -> the failed test. Exits 1 when a mutation survives, when its old
text is not found exactly once, or when its tests fail without it.
"""

from __future__ import annotations

import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mutations import MUTATIONS, Mutation

from quant import native

ROOT = Path(__file__).resolve().parent.parent
JOBS = 2
TIMEOUT_S = 300
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "__pycache__", "*.egg-info", "build", "dist", ".*_cache", ".hypothesis"
)


def copy_tree(folder: Path) -> Path:
    """A copy of the repository without caches, in which files may be broken.

    The native library, which an install builds, comes from wherever it is.
    """
    copy = Path(shutil.copytree(ROOT, folder, ignore=LEFT_OUT))
    library = native.path()
    if library is not None:
        target = copy / "quant" / "native" / "lib"
        target.mkdir(exist_ok=True)
        shutil.copy2(library, target)
    return copy


def run_tests(tree: Path, nodes: Iterable[str]) -> tuple[int, str]:
    """pytest's exit status and output for the nodes, run against the copy and nothing installed."""
    assets = os.environ.get("EDGELM_ASSETS") or ROOT.parent / "shared" / "assets"
    environment = os.environ | {
        "EDGELM_ASSETS": str(Path(assets).resolve()),
        "PYTHONPATH": str(tree),
        # Two patches within one second leave the same time stamp: a cached .pyc would hide one.
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            [*command, *nodes],
            cwd=tree,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return -1, f"no result within {TIMEOUT_S} s"
    return done.returncode, done.stdout + done.stderr


def judge(tree: Path, mutation: Mutation) -> tuple[bool, str]:
    """Whether the mutation was noticed, and by which test; the copy is as before afterwards."""
    path = tree / mutation.file
    source = path.read_text(encoding="utf-8") if path.is_file() else ""
    found = source.count(mutation.old)
    if found != 1:
        return False, f"its old text occurs {found} times in {mutation.file}, not once"
    path.write_text(source.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        status, output = run_tests(tree, mutation.tests)
    finally:
        path.write_text(source, encoding="utf-8")
    failed = FAILED.search(output)
    # Only status 1 is a failed test; a module that cannot be collected proves nothing.
    if status == 1 and failed:
        return True, failed.group(1)
    if status == 0:
        return False, "SURVIVED"
    return False, f"pytest ended with {status}: {output.strip()[-300:]}"


def main(words: list[str]) -> int:
    """Runs the chosen rows, two at a time; 0 when every one was noticed."""
    rows = [m for m in MUTATIONS if not words or any(word in m.feature for word in words)]
    if not rows:
        print("no mutation chosen", file=sys.stderr)
        return 1
    bad = 0
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        trees: queue.Queue[Path] = queue.Queue()
        for job in range(JOBS):
            trees.put(copy_tree(Path(folder) / f"tree{job}"))

        def borrow(mutation: Mutation) -> tuple[bool, str]:
            tree = trees.get()
            try:
                return judge(tree, mutation)
            finally:
                trees.put(tree)

        nodes = dict.fromkeys(node for row in rows for node in row.tests)
        status, output = run_tests(trees.queue[0], nodes)
        if status != 0:
            print(f"the tests fail without any mutation:\n{output[-3000:]}", file=sys.stderr)
            return 1
        with ThreadPoolExecutor(JOBS) as pool:
            for mutation, (noticed, why) in zip(rows, pool.map(borrow, rows), strict=True):
                print(f"{'ok ' if noticed else 'BAD'} {mutation.feature} -> {why}", flush=True)
                bad += not noticed
    print(f"{len(rows)} mutations, {bad} not noticed")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
