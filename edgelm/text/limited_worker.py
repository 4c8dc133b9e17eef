"""What a ``LimitedProcess`` runs: questions from stdin, answers to stdout, JSON in lines.

``python -I -S limited_worker.py SCRIPT FOLDER ...``: SCRIPT defines ``answer``; its libraries lie in
the FOLDERs. Where the system knows resource limits, they hold even if nobody watches: for each
question those of time and memory, and before the first one no file can be opened any more, no
process or thread started, and no core file written. Imports nothing of this package.
"""

from __future__ import annotations

import json
import math
import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

OUT_OF_MEMORY = 86  # exit code
_STATM = Path("/proc/self/statm")  # pages of address space; macOS has neither it nor the limit


def main(script: str, *folders: str) -> None:
    """Answer questions until stdin ends, which it does when the asking process ends."""
    sys.path += folders
    answer = runpy.run_path(script)["answer"]
    time.localtime()  # reads the zone's file
    statm = os.open(_STATM, os.O_RDONLY) if _STATM.exists() else None
    _confine()
    try:
        for line in sys.stdin.buffer:
            asked = json.loads(line)
            _allow(asked["seconds"], asked["nbytes"], statm)
            reply = json.dumps(answer(asked["question"]))
            sys.stdout.buffer.write(reply.encode() + b"\n")
            sys.stdout.buffer.flush()
    except MemoryError:
        os._exit(OUT_OF_MEMORY)


def _confine() -> None:
    if resource is not None:
        for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_CORE):
            resource.setrlimit(kind, (0, 0))


def _allow(seconds: float, nbytes: int, statm: int | None) -> None:
    """Limit processor time and address space to so much more than is used now."""
    if resource is None:
        return
    _limit(resource.RLIMIT_CPU, math.ceil(time.process_time() + seconds))
    if statm is not None:
        pages = int(os.pread(statm, 100, 0).split()[0])
        _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + nbytes)


def _limit(kind: int, wanted: int) -> None:
    assert resource is not None
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(
        kind, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
