"""The journal of an unfinished folder: the finished tensors, so that a kill costs one tensor.

Each line is JSON. The first identifies the job, each later one a finished weight with the data
needed at the end. A line cut off by a kill is ignored: its weight is written again, to the same
bytes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Journal:
    """Lines appended next to a folder that is being written.

    Args:
        job: identifies input and settings; a journal of a different job counts as empty.
    """

    def __init__(self, path: Path, job: str) -> None:
        self.path, self.job = path, job
        self.done: dict[str, dict[str, Any]] = {}
        self.resumed = False

    def read(self) -> bool:
        """True if the file belongs to this job; ``done`` then holds its entries."""
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return False
        complete = lines[:-1]  # what follows the last line end was cut off
        try:
            entries = [json.loads(line) for line in complete]
        except ValueError:
            return False
        if not entries or entries[0] != {"job": self.job}:
            return False
        self.done = {entry.pop("name"): entry for entry in entries[1:]}
        self.resumed = True
        with self.path.open("r+b") as file:
            file.truncate(sum(len(line) + 1 for line in complete))
        return True

    def start(self) -> None:
        """Write a new journal without entries to the disk, before any weight is written."""
        self.done, self.resumed = {}, False
        with self.path.open("wb") as file:
            file.write(json.dumps({"job": self.job}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def add(self, name: str, entry: dict[str, Any]) -> None:
        """Append one finished weight."""
        self.done[name] = entry
        with self.path.open("ab") as file:
            file.write(json.dumps({"name": name} | entry).encode() + b"\n")

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
