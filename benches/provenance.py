"""Which edgelm a run measures or tests: said once, and given to the processes that it starts.

What `import edgelm` finds depends on the working folder, the script's folder and the installs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import edgelm
from quant import native

FOLDER = Path(edgelm.__file__).resolve().parent.parent


def sentence() -> str:
    """Where the packages lie, and which native library they use or why none."""
    why = native.missing()
    return f"edgelm of {FOLDER}, " + (
        f"without a native library: {why}" if why else f"native library {native.path()}"
    )


def environment(*folders: Path) -> dict[str, str]:
    """Variables that make another Python use the same packages, and the modules in `folders`."""
    given = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    paths = dict.fromkeys([str(FOLDER), *map(str, folders), *given])
    # `python -c` and `-m` would look into the working folder before PYTHONPATH.
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(paths)}


def announce() -> None:
    """Tells it on stderr, and makes every Python started from here use the same packages."""
    print(sentence(), file=sys.stderr)
    os.environ |= environment()
