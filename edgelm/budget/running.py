"""Running processes of this user that hold a model, and what each planned to take.

A loaded model leaves a small file in the cache folder. Who reads it looks whether its process is
still alive and the one that wrote it; files of others are deleted.
"""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelm.machine.measurements import keep, kept

if TYPE_CHECKING:
    import psutil

    from edgelm.budget.plan import Plan

FOLDER = "running"  # in the cache folder
_SAME_START_S = 60.0  # times since the epoch move when a clock is set
_NUMBERS = itertools.count()


@dataclass(frozen=True)
class Held:
    """A model that a process holds: what its file in the cache folder says.

    started: of the process, in seconds since the epoch.
    """

    pid: int
    started: float
    model: str
    scheme: str
    kv: str
    context: int
    predicted_peak_bytes: int


@dataclass(frozen=True)
class Running:
    """A model in a live process; bytes resident now, of the whole process."""

    held: Held
    command: str
    resident_bytes: int

    def to_dict(self) -> dict[str, Any]:
        mine = {"command": self.command, "resident_bytes": self.resident_bytes}
        return asdict(self.held) | mine


class Mark:
    """The file that says that this process holds a model: until ``end``, or until nobody holds the
    mark, or the process ends in order."""

    def __init__(self, cache: Path, model: str, plan: Plan) -> None:
        import psutil

        pid = os.getpid()
        path = cache / FOLDER / f"{pid}-{next(_NUMBERS)}.json"
        peak, started = plan.predicted_peak_bytes, psutil.Process().create_time()
        keep(path, asdict(Held(pid, started, model, plan.scheme, plan.kv, plan.context, peak)))
        self.end = weakref.finalize(self, _end, path, pid)


def _end(path: Path, pid: int) -> None:
    if os.getpid() == pid:  # a process that was forked off holds its parent's mark too
        _forget(path)


def running(cache: Path) -> list[Running]:
    """The models that live processes of this user hold, the oldest process first."""
    found = [own for path in (cache / FOLDER).glob("*.json") for own in _read(path)]
    return sorted(found, key=lambda own: (own.held.started, own.held.pid))


def _read(path: Path) -> Iterator[Running]:
    """What a file says if its process lives; else the file is deleted."""
    import psutil

    data = kept(path)
    if not _is_held(data):
        _forget(path)
        return
    held = Held(**data)
    with suppress(psutil.AccessDenied):  # it belongs to another user
        try:
            yield _live(held, psutil.Process(held.pid))
        except (psutil.NoSuchProcess, ProcessLookupError, ValueError, OverflowError):
            _forget(path)


def _live(held: Held, process: psutil.Process) -> Running:
    """The process of this user that wrote a file.

    Raises:
        ProcessLookupError: it has ended, and this one has its number.
    """
    with process.oneshot():
        late = abs(process.create_time() - held.started) > _SAME_START_S
        foreign = hasattr(os, "getuid") and process.uids().real != os.getuid()
        if late or foreign or process.status() == "zombie":
            raise ProcessLookupError
        return Running(held, " ".join(process.cmdline()), process.memory_info().rss)


def _forget(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
        path.parent.rmdir()  # which only an empty one lets happen


def _is_held(data: Any) -> bool:
    kinds = {"int": int, "float": float, "str": str}
    return isinstance(data, dict) and {name: type(value) for name, value in data.items()} == {
        field.name: kinds[str(field.type)] for field in fields(Held)
    }
