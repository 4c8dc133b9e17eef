"""A memory cgroup around a child process: the one limit that Linux enforces on resident memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MOUNT = Path("/sys/fs/cgroup")


@contextmanager
def memory_cgroup(limit_bytes: int) -> Iterator[Path]:
    """A group of version 1 or 2 below our own; skips the test by name where none can be made."""
    last: Exception | None = None
    for parent, limit in _parents():
        group = parent / f"edgelm-{os.getpid()}"
        try:
            group.mkdir()
        except OSError as error:
            last = error
            continue
        try:
            try:
                (group / limit).write_text(str(limit_bytes))
            except OSError as error:
                last = error
                continue
            yield group
            return
        finally:
            group.rmdir()
    pytest.skip(f"no memory cgroup can be made here: {last or 'no cgroups are mounted'}")


def run_inside(group: Path, program: str, *arguments: str) -> str:
    """What a Python program prints; it is in the group before Python starts."""
    join = 'echo $$ > "$0"/cgroup.procs && exec "$@"'
    command = ["sh", "-c", join, str(group), sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-2000:]}"
    return done.stdout


def _parents() -> Iterator[tuple[Path, str]]:
    """Folders in which a group may be made, and the name of its limit."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            yield MOUNT / "memory" / path.lstrip("/"), "memory.limit_in_bytes"
            yield MOUNT / "memory", "memory.limit_in_bytes"
        elif not controllers:
            for mount in (MOUNT, MOUNT / "unified"):
                yield mount / path.lstrip("/"), "memory.max"
