"""Hardware of this machine: memory actually available, cores, and memory read bandwidth."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import re
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from edgelm.errors import UsageError
from edgelm.machine import cgroups
from edgelm.machine.measurements import keep, kept, kept_gb_s

PROFILE = "machine.json"
THREADS = "EDGELM_THREADS"
MEMINFO = Path("/proc/meminfo")
_INSTRUCTION_SETS = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16"),
    *("amx_bf16", "amx_int8", "asimd", "asimddp", "i8mm", "bf16", "sve"),
)
logger = logging.getLogger("edgelm")


def total_memory_bytes() -> int:
    """Physical memory, or the cgroup's limit if that is less."""
    import psutil

    physical = int(psutil.virtual_memory().total)
    return min([physical, *(own.limit_bytes for own in cgroups.limits())])


def available_memory_bytes() -> int:
    """Memory that can be allocated without swapping, cgroup limits included.

    File pages count as free unless they are mapped: a model's mapped weights are in use.
    """
    import psutil

    free = int(psutil.virtual_memory().available) - _mapped_file_bytes()
    return max(0, min([free, *(own.limit_bytes - own.used_bytes for own in cgroups.limits())]))


def _mapped_file_bytes() -> int:
    """Bytes of file pages mapped by any process; 0 if the system does not report it (not Linux)."""
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return 0
    told = {name: int(rest.split()[0]) << 10 for name, _, rest in (s.partition(":") for s in lines)}
    return max(0, told["Mapped"] - told["Shmem"])  # shared memory is mapped and never counted free


def resident_bytes() -> int:
    """Resident memory of this process now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_resident_bytes() -> int:
    """Largest resident memory of this process so far (VmHWM on Linux)."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource  # absent on Windows, where /proc is too

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def forget_peak() -> bool:
    """Let the peak of resident memory begin anew from what is resident now.

    Returns False where the system does not (all but Linux): the peak is that of the whole past.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def release_freed_memory() -> None:
    """Return freed memory that the C library still holds to the system (glibc; else a no-op)."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


def bound_kernel_caches() -> None:
    """Limit the number of compiled products oneDNN keeps; must run before its first product.

    It compiles one for every number of rows it meets and keeps 1024, as does torch's layer above
    it: 160 prompts of random lengths took 275 MiB. The user's environment takes precedence.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, "32")


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    if platform.system() != "Linux":
        return None
    found: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return found


def default_threads() -> int:
    """EDGELM_THREADS, else the cores this process may run on, within its groups' quota of time.

    A quota is rounded down: threads that wait for each other all wait for one that is throttled.

    Raises:
        UsageError: EDGELM_THREADS is no number of this machine's cores.
    """
    given = os.environ.get(THREADS)
    if given:
        return checked_threads(int(given) if given.isdecimal() else given, THREADS)
    bounds = [torch.get_num_threads()]
    if hasattr(os, "sched_getaffinity"):
        bounds.append(len(os.sched_getaffinity(0)))
    if (quota := cgroups.processors()) is not None:
        bounds.append(int(quota))
    return max(1, min(bounds))


def checked_threads(given: Any, name: str = "threads") -> int:
    """A number of threads that this machine has cores for; UsageError for anything else."""
    allowed = os.cpu_count() or 1
    if isinstance(given, bool) or not isinstance(given, int) or not 0 < given <= allowed:
        raise UsageError(f"{name} is {given!r:.40}; allowed: 1 to {allowed} on this machine.")
    return given


def cores() -> int:
    """Number of cores of the machine, hyperthreads counted once if that is known."""
    import psutil

    return int(psutil.cpu_count(logical=False) or os.cpu_count() or 1)


def processor_name() -> str:
    """The processor's name as reported by the system."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def read_gb_s(megabytes: int = 256, rounds: int = 5) -> float:
    """Memory read bandwidth of torch's threads in GB/s: the best of ``rounds`` sums.

    The buffer must exceed the last-level cache for the result to reflect memory.
    """
    data = torch.ones(megabytes << 18, dtype=torch.float32)
    best = 0.0
    for _ in range(rounds):
        start = time.perf_counter()
        data.sum()
        best = max(best, data.nbytes / (time.perf_counter() - start) / 1e9)
    return best


def record_read_gb_s(folder: Path) -> float:
    """Measure the read bandwidth and keep it in the cache folder for later plans."""
    measured = read_gb_s()
    keep(folder / PROFILE, {"processor": processor_name(), "read_gb_s": measured})
    return measured


def recorded_read_gb_s(folder: Path) -> float | None:
    """Result kept by ``record_read_gb_s`` for this processor, or None."""
    profile = kept(folder / PROFILE)
    ours = isinstance(profile, dict) and profile.get("processor") == processor_name()
    return kept_gb_s(profile) if ours else None


def cgroup_limit_bytes() -> int | None:
    """The smallest memory limit set by a container for this process, None without one."""
    return min((own.limit_bytes for own in cgroups.limits()), default=None)


def instruction_sets() -> tuple[str, ...]:
    """Instruction sets of this processor useful for quantized products; empty if unknown."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return (torch.backends.cpu.get_cpu_capability(),)
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    present = set(line[1].split()) if line else set()
    return tuple(name for name in _INSTRUCTION_SETS if name in present)
