"""Results: a folder with a JSON file of each finished cell, named by the cell's hash.

Workers on other machines write to the same folder, which must be one that they all see.
"""

from __future__ import annotations

import errno
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgelm.errors import EdgeLMError
from edgelm.evaluation.sweep.cell import Cell
from edgelm.machine import measurements, private_files


class Results:
    """Raises EdgeLMError if the folder cannot be written."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()
        try:
            private_files.make_folder(self.folder)
        except OSError as error:
            raise self._unwritable(error) from error

    def get(self, key: str) -> dict[str, Any] | None:
        """What was found of a cell; None if it is not finished."""
        data = measurements.kept(self.folder / f"{key}.json")
        return data.get("found") if isinstance(data, dict) else None

    def put(self, key: str, cell: Cell, found: dict[str, Any]) -> None:
        """Keep what was found, with who found it."""
        told = {"cell": asdict(cell), "host": platform.node(), "pid": os.getpid(), "found": found}
        try:
            measurements.write(self.folder / f"{key}.json", told)
        except OSError as error:
            raise self._unwritable(error) from error

    def baseline(self, key: str) -> Path:
        """Where a baseline lies, whose cell has this key."""
        return self.folder / f"{key}.baseline"

    def _unwritable(self, error: OSError) -> EdgeLMError:
        full = " (the disk is full)" if error.errno == errno.ENOSPC else ""
        return EdgeLMError(
            f"{self.folder} cannot be written{full}: {error.strerror or error}. Give --out another "
            "folder, or make room: what is finished is kept there."
        )
