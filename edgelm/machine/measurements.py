"""Small JSON files in the cache folder: what was measured on this machine, for later runs."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

logger = logging.getLogger("edgelm")


def keep(path: Path, data: Any) -> None:
    """Write beside, then rename; a folder that refuses is no reason to stop."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.{os.getpid()}")
        beside.write_text(json.dumps(data, indent=1))
        beside.replace(path)
    except OSError as error:
        logger.info("what was measured cannot be kept in %s: %s", path, error)


def kept(path: Path) -> Any:
    """What ``keep`` wrote; None where there is nothing, or something else."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
