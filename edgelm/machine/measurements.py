"""Measurements, kept as small JSON files in the cache folder for later runs."""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgelm.machine import private_files

_SLOWEST_GB_S, _FASTEST_GB_S = 1e-4, 1e5
logger = logging.getLogger("edgelm")


def keep(path: Path, data: Any) -> None:
    """Write as ``write`` does; a folder that refuses is only logged."""
    try:
        write(path, data)
    except OSError as error:
        logger.info("measurements cannot be kept in %s: %s", path, error)


def write(path: Path, data: Any) -> None:
    """Write to a temporary file, then rename; OSError where the folder refuses."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        private_files.make_folder(path.parent)
        with private_files.create(beside) as file:
            file.write(json.dumps(data, indent=1).encode())
        beside.replace(path)
    except OSError:
        with suppress(OSError):
            beside.unlink()
        raise


def kept(path: Path) -> Any:
    """Content written by ``keep``; None if there is none, or anything else."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None


def kept_gb_s(data: Any) -> float | None:
    """The speed ``read_gb_s`` in a record; None if there is none, or one that no machine has."""
    speed = data.get("read_gb_s") if isinstance(data, dict) else None
    if isinstance(speed, bool) or not isinstance(speed, int | float):
        return None
    return float(speed) if _SLOWEST_GB_S <= speed <= _FASTEST_GB_S else None
