"""Memory limits that Linux sets for a group of processes (containers, systemd scopes), v1 and v2.

A group's own limit and those of all its parents hold. Files that the system read for a group
count as its use; those that nobody needs now are given back before anything is killed, so they
count as free here, as in ``MemAvailable``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MEMBERSHIP = Path("/proc/self/cgroup")
ROOT = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60  # version 1 says "no limit" with a number near 2**63


@dataclass(frozen=True)
class _Version:
    """Where one version of the interface keeps its files, and their names."""

    folder: str
    limit: str
    used: str
    reclaimable: str  # a line of memory.stat


_V2 = _Version(".", "memory.max", "memory.current", "inactive_file")
_V1 = _Version(
    "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
)  # fmt: skip


def memory_limits() -> list[tuple[int, int]]:
    """(limit, bytes in use that cannot be taken back) of each limited group this process is in."""
    found = []
    for version, group in _memberships():
        home = ROOT / version.folder
        # In a container the path may be that of the host, while its own group is mounted as root.
        for folder in dict.fromkeys((home / group, *(home / group).parents)):
            if folder == home or folder.is_relative_to(home):
                limited = _limit(folder, version)
                if limited is not None:
                    found.append(limited)
    return found


def _memberships() -> list[tuple[_Version, str]]:
    """Version and path of the groups that count this process's memory."""
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        number, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if (number, controllers) == ("0", ""):
            found.append((_V2, path.lstrip("/")))
        elif "memory" in controllers.split(","):
            found.append((_V1, path.lstrip("/")))
    return found


def _limit(folder: Path, version: _Version) -> tuple[int, int] | None:
    try:
        limit = (folder / version.limit).read_text().strip()
        used = int((folder / version.used).read_text())
        statistics = (folder / "memory.stat").read_text().split()
    except (OSError, ValueError):
        return None
    if not limit.isdigit() or int(limit) >= _UNLIMITED:
        return None
    table = dict(zip(statistics[::2], statistics[1::2], strict=False))
    reclaimable = table.get(version.reclaimable, "0")
    return int(limit), max(0, used - int(reclaimable) if reclaimable.isdigit() else used)
