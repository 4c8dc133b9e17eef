"""What the machine can do at best, measured between the turns: reading, and 8-bit products."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

from edgelm.machine import hardware
from quant import native

STEPS = 2_000_000
REPEATS = 3


class Machine:
    """The limits of `threads` threads: GB/s of plain reading, and GOPS (two per multiply-add)."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._pool = ThreadPoolExecutor(threads)
        self.threads = threads

    def read_gb_s(self) -> float:
        return hardware.read_gb_s(rounds=2)

    def vnni_gops(self) -> float | None:
        """The best of a few runs of the library's loop of products; None without one."""
        peak = _peak()
        if peak is None:
            return None
        best = 0.0
        for _ in range(REPEATS):
            start = time.perf_counter()
            done = sum(self._pool.map(peak, [STEPS] * self.threads))
            best = max(best, done / (time.perf_counter() - start) / 1e9)
        return best


@cache
def _peak() -> Callable[[int], int] | None:
    """edgelm_peak(steps): run so many steps on this thread; the operations that were done."""
    function = None if native.missing() else getattr(native.library(), "edgelm_peak", None)
    if function is not None:
        function.restype, function.argtypes = ctypes.c_int64, [ctypes.c_int64]
    return function
