"""Measurements of this machine, kept as small JSON files in the cache folder for later runs."""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

logger = logging.getLogger("edgelm")


def keep(path: Path, data: Any) -> None:
    """Write to a temporary file, then rename; a folder that refuses is only logged."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(data, indent=1))
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        logger.info("measurements cannot be kept in %s: %s", path, error)


def kept(path: Path) -> Any:
    """Content written by ``keep``; None if there is none, or anything else."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
