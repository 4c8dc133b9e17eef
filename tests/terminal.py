"""Programs run on a terminal, which only a pseudo-terminal is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 120
COLOUR = re.compile(r"\x1b\[[0-9;]*[1-9][0-9;]*m")


class Shown(NamedTuple):
    """``terminal``: all that stderr showed there, with its control sequences."""

    code: int
    out: str
    terminal: str


def edgelm_on_terminal(
    arguments: Sequence[object], environment: Mapping[str, str] | None = None
) -> Shown:
    """``edgelm ARGUMENTS`` with stderr on a terminal of 200 columns and stdout in a pipe."""
    import pty
    import termios

    outer, inner = pty.openpty()
    termios.tcsetwinsize(inner, (50, 200))
    own = {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
    unset = ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS")
    base = {name: value for name, value in os.environ.items() if name not in unset}
    program = subprocess.Popen(
        [sys.executable, "-m", "edgelm", *map(str, arguments)], stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=inner, env=base | own | dict(environment or {}),
    )  # fmt: skip
    os.close(inner)
    seen = bytearray()
    try:
        while piece := os.read(outer, 65536):
            seen += piece
    except OSError:  # Linux's way to say that nobody holds the other end any more
        pass
    finally:
        os.close(outer)
    out, _ = program.communicate(timeout=TIMEOUT_S)
    return Shown(program.returncode, out.decode(), seen.decode(errors="replace"))
