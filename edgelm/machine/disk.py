"""Read speed of the cache folder's disk, measured once and kept, and estimates from it."""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path

from edgelm.machine import hardware, private_files
from edgelm.machine.measurements import keep, kept, kept_gb_s

PROFILE = "disk.json"
_PROBE_BYTES = 256 << 20
_BLOCK_BYTES = 16 << 20
logger = logging.getLogger("edgelm")


def measure_once(cache: Path) -> None:
    """Measure unless done before; a disk that refuses stays unknown."""
    if recorded_read_gb_s(cache) is not None:
        return
    try:
        keep(cache / PROFILE, {"read_gb_s": read_gb_s(cache)})
    except OSError as error:
        logger.info("the disk of %s cannot be measured: %s", cache, error)


def recorded_read_gb_s(cache: Path) -> float | None:
    """Result kept by ``measure_once``, or None."""
    return kept_gb_s(kept(cache / PROFILE))


def expected_tok_s(cache: Path, moved_bytes: int, streamed_bytes: int) -> float | None:
    """Upper bound of decoding speed in tokens per second; None until this machine was measured.

    Layers are read from disk while others compute, so the slower of disk and memory decides.

    Args:
        moved_bytes: weights read per token. streamed_bytes: the part of them read from disk.
    """
    memory, disk = hardware.recorded_read_gb_s(cache), recorded_read_gb_s(cache)
    if streamed_bytes and disk is None:
        return None
    seconds = [moved_bytes / memory / 1e9] if memory else []
    if disk and streamed_bytes:
        seconds.append(streamed_bytes / disk / 1e9)
    return 1 / max(seconds) if seconds else None


def read_gb_s(folder: Path) -> float:
    """Sequential read speed in GB/s of a new file in ``folder``, bypassing the system's cache.

    On systems that cannot drop a file from the cache, the cache is measured too.
    """
    private_files.make_folder(folder)
    path = folder / f"probe.{os.getpid()}"
    block = bytearray(os.urandom(_BLOCK_BYTES))
    try:
        with private_files.create(path) as file:
            for _ in range(_PROBE_BYTES // _BLOCK_BYTES):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            if sys.platform == "linux":
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with path.open("rb", buffering=0) as file:
            start = time.perf_counter()
            while file.readinto(block):
                pass
            return _PROBE_BYTES / (time.perf_counter() - start) / 1e9
    finally:
        path.unlink(missing_ok=True)
