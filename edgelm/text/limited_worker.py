"""What a ``LimitedProcess`` runs: questions from stdin, answers to stdout, JSON in lines.

``python -I -S limited_worker.py SCRIPT FOLDER ...``: SCRIPT defines ``answer``; FOLDERs hold its
libraries.
Where the system knows resource limits, they hold even if nobody watches: for each question those of
time and memory, and before the first one no file can be opened any more, no process or thread
started, and no core file written. Imports nothing of this package.
"""

from __future__ import annotations

import json
import math
import os
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if sys.platform != "win32":
    import resource

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
            reply = json.dumps(_reply(answer, asked["question"]))
            sys.stdout.buffer.write(reply.encode() + b"\n")
            sys.stdout.buffer.flush()
    except MemoryError:
        os._exit(OUT_OF_MEMORY)


def _reply(answer: Callable[[Any], Any], question: Any) -> dict[str, Any]:
    try:
        return {"answer": answer(question)}
    except (MemoryError, SystemExit):
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        return {"failed": f"{type(error).__name__}: {error}"[:1000]}


def _confine() -> None:
    if sys.platform != "win32":
        for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_CORE):
            resource.setrlimit(kind, (0, 0))


def _allow(seconds: float, nbytes: int, statm: int | None) -> None:
    """Limit processor time and address space to so much more than is used now."""
    if sys.platform != "win32":
        wanted = {resource.RLIMIT_CPU: math.ceil(time.process_time() + seconds)}
        if statm is not None:
            pages = int(os.pread(statm, 100, 0).split()[0])
            wanted[resource.RLIMIT_AS] = pages * resource.getpagesize() + nbytes
        for kind, soft in wanted.items():
            _, hard = resource.getrlimit(kind)
            unlimited = hard == resource.RLIM_INFINITY
            resource.setrlimit(kind, (soft if unlimited else min(soft, hard), hard))


if __name__ == "__main__":
    main(*sys.argv[1:])
