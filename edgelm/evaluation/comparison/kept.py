"""The work folder of a comparison: finished candidates, and the baseline while it is needed.

It lies in the cache folder under the hash of the weights, texts, windows and items, so that the
same comparison goes on where another one stopped, and one with more candidates adds them.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgelm.errors import EdgeLMError, UsageError
from edgelm.evaluation.baseline import Facts
from edgelm.evaluation.comparison.measured import Measured
from edgelm.hub.references import cache_dir
from edgelm.machine import measurements, private_files
from edgelm.version import __version__

FOLDER = "compare"
_FACTS = "facts"


class Kept:
    """What is kept for a work: ``facts`` name it."""

    def __init__(self, facts: Facts) -> None:
        told = json.dumps([__version__, asdict(facts)])
        self.folder = cache_dir() / FOLDER / hashlib.sha256(told.encode()).hexdigest()[:16]

    @property
    def baseline(self) -> Path:
        """Where the baseline lies if the caller has no place for it."""
        return self.folder / "own.baseline"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """The folder, locked against other processes.

        Raises:
            UsageError: another process is at this comparison. EdgeLMError: no place.
        """
        from filelock import FileLock, Timeout

        try:
            private_files.make_folder(self.folder)
            lock = FileLock(self.folder / "lock", timeout=0, mode=private_files.FILE_MODE)
            lock.acquire()
        except Timeout:
            raise UsageError(
                "Another process is at this comparison. Wait until it is done: what it finds is "
                "kept."
            ) from None
        except OSError as error:
            raise EdgeLMError(
                f"{self.folder} cannot be written ({error.strerror or error}). Set EDGELM_CACHE "
                "to another folder: what is finished is kept there."
            ) from error
        try:
            yield
        finally:
            lock.release()

    def facts(self) -> Facts | None:
        """The facts of the baseline that was made, with its results."""
        data = self._read(_FACTS)
        return None if data is None else Facts(**{**data, "shape": tuple(data["shape"])})

    def keep_facts(self, facts: Facts) -> None:
        self._write(_FACTS, asdict(facts))

    def candidates(self, digests: Iterable[str]) -> dict[str, Measured]:
        """Those that are finished; one that another version wrote otherwise is not."""
        found = {}
        for digest in digests:
            with suppress(TypeError, KeyError, AttributeError):
                found[digest] = Measured.from_dict(self._read(digest))
        return found

    def keep_candidate(self, digest: str, found: Measured) -> None:
        self._write(digest, found.to_dict())

    def _read(self, name: str) -> Any:
        """The data of a file; None if there is none, or it was cut off."""
        return measurements.kept(self.folder / f"{name}.json")

    def _write(self, name: str, data: Any) -> None:
        path = self.folder / f"{name}.json"
        try:
            measurements.write(path, data)
        except OSError as error:
            full = " (the disk is full)" if error.errno == errno.ENOSPC else ""
            raise EdgeLMError(f"{path} cannot be written{full}: {error}.") from error
