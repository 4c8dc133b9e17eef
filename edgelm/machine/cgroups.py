"""Limits of memory and processor time that containers or service managers set, cgroups 1 and 2."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
# Files with limit and use, by whether of version 2; with quota and period.
_MEMORY = {
    False: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    True: ("memory.max", "memory.current"),
}
_PROCESSORS = {False: ("cpu.cfs_quota_us", "cpu.cfs_period_us"), True: ("cpu.max",)}
_NO_LIMIT = 1 << 60  # version 1 writes the largest page-aligned number, version 2 "max"


@dataclass(frozen=True)
class Limit:
    """A group's limit and its use, in bytes; file pages count as free unless they are mapped."""

    limit_bytes: int
    used_bytes: int


def limits() -> tuple[Limit, ...]:
    """Limits of this process's group and of the groups that contain it."""
    found = []
    for folder, second in _groups("memory"):
        names = _MEMORY[second]
        try:
            limit, used = ((folder / name).read_text().strip() for name in names)
            if limit.isdigit() and int(limit) < _NO_LIMIT:
                found.append(Limit(int(limit), max(0, int(used) - _file_bytes(folder))))
        except (OSError, ValueError):
            continue
    return tuple(found)


def processors() -> float | None:
    """Processors' worth of time that this process's groups leave it; None without a quota."""
    found = []
    for folder, second in _groups("cpu"):
        try:
            text = " ".join((folder / name).read_text() for name in _PROCESSORS[second])
            quota, period = text.split()
            if int(quota) > 0:  # version 1 writes -1, version 2 "max"
                found.append(int(quota) / int(period))
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return min(found, default=None)


def _groups(controller: str) -> Iterator[tuple[Path, bool]]:
    """(folder, whether of version 2), from the innermost group outwards.

    Inside a container the path reported by the kernel may not exist under the mount, whose root
    is then the container's group.
    """
    try:
        lines = OWN.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        second = not controllers
        if second:
            mounts = [MOUNT, MOUNT / "unified"]
        elif controller in controllers.split(","):
            mounts = [MOUNT / name for name in dict.fromkeys((controller, controllers))]
        else:
            continue
        own = Path(path.lstrip("/"))
        for mount in mounts:
            for group in (own, *own.parents):
                yield mount / group, second


def _file_bytes(folder: Path) -> int:
    """Bytes of unmapped file pages: the kernel drops them before it kills a process."""
    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    first = "total_inactive_file" in stat  # version 1: with those below
    prefix, mapped = ("total_", "total_mapped_file") if first else ("", "file_mapped")
    in_use = int(stat.get(mapped, 0)) - int(stat.get(f"{prefix}shmem", 0))
    pages = int(stat[f"{prefix}inactive_file"]) + int(stat[f"{prefix}active_file"])
    return max(0, pages - max(0, in_use))
