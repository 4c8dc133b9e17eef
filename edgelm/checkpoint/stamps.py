"""Stamps of files, which differ once a file was changed or replaced.

Size and time alone do not: a copy may keep both. Inode and time of the inode's change tell a
replaced file, and samples of the content tell it where a file system has neither.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterable
from pathlib import Path

from edgelm.checkpoint.rows import opened

SAMPLES = 16  # of a file, read at every start
_SAMPLE_BYTES = 4096
Stamp = tuple[str, int, int, int, int, str]
"""Name, inode, size, time of change, time of the inode's change, hash of samples."""


def file_stamps(files: Iterable[Path]) -> list[Stamp]:
    """Stamp of each file, links followed; the folders they lie in do not matter.

    Raises:
        ModelFileError: a file is not there or cannot be read.
    """
    return [_stamp(path) for path in files]


def _stamp(path: Path) -> Stamp:
    with opened(path) as file:
        stat = os.fstat(file.fileno())
        digest = hashlib.blake2b(digest_size=16)
        for offset in _offsets(stat.st_size):
            file.seek(offset)
            digest.update(file.read(_SAMPLE_BYTES) or b"")
    times = (stat.st_mtime_ns, stat.st_ctime_ns)
    return path.name, stat.st_ino, stat.st_size, *times, digest.hexdigest()


def _offsets(size: int) -> list[int]:
    """Where samples begin: the first bytes, the last, and places that the size decides."""
    if size <= SAMPLES * _SAMPLE_BYTES:
        return list(range(0, size, _SAMPLE_BYTES))
    last = size - _SAMPLE_BYTES
    places = random.Random(size)
    return sorted({0, last, *(places.randrange(last) for _ in range(SAMPLES - 2))})
