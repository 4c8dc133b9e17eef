"""Tuning: times the candidate tiles of a product on this card; ``choices`` keeps the fastest."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..packing import PackedWeight
from ..scheme import Scheme
from . import choices, launch
from .configs import FEW_ROWS, Config, candidates
from .layout import geometry, laid_out

# Number of times the L2 cache is overwritten before every timing: weights must come from memory,
# as they do in a model, and the device is busy while the host prepares the launch.
_CACHES = 4
_ROUNDS = 9
Clock = Callable[[Callable[[], None]], float]


@dataclass(frozen=True)
class Case:
    """A product to tune. rows: of activations; a choice applies up to the next power of two."""

    scheme: Scheme
    shape: tuple[int, int]
    rows: int
    dtype: torch.dtype

    @property
    def key(self) -> str:
        return choices.key(self.scheme, self.shape, self.rows, self.dtype)


def tune(cases: Iterable[Case], folder: Path, device: torch.device) -> int:
    """Measure the cases for which ``folder`` has no choice, keep those; returns their number.

    Takes seconds per case, most of them for compilation, and memory for one matrix and
    ``_CACHES`` caches. Raises OSError if the folder cannot be written.
    """
    choices.use(folder, device)
    clock = None
    unknown = {case.key: case for case in cases if choices.chosen(case.key) is None}
    for key, case in unknown.items():
        clock = clock or device_clock(device)
        times = timings(case, device, clock)
        choices.choose(key, min(times, key=times.__getitem__))
    if unknown:
        choices.keep(folder, device)
    return len(unknown)


def timings(case: Case, device: torch.device, clock: Clock) -> dict[Config, float]:
    """Seconds of one product over random weights, by config; without those that do not fit."""
    from triton.runtime.errors import OutOfResources, PTXASError

    outputs, inputs = case.shape
    matrix = launch.Matrix(
        laid_out(random(case.scheme, case.shape, device)), case.scheme, case.shape
    )
    # Few rows share their config, whose speed matters most for one row.
    rows = 1 if case.rows <= FEW_ROWS else case.rows
    x = torch.ones(rows, inputs, dtype=case.dtype, device=device)
    out = torch.empty(rows, outputs, dtype=case.dtype, device=device)
    own, processors = geometry(case.scheme, inputs), launch.processors(device)
    times = {}
    for config in candidates(own, outputs, case.rows, processors):

        def work(config: Config = config) -> None:
            launch.run(config, x, matrix, None, out)

        try:
            times[config] = clock(work)
        except (OutOfResources, PTXASError):  # more shared memory or registers than this card has
            continue
    return times


def device_clock(device: torch.device, rounds: int = _ROUNDS) -> Clock:
    """Median device time of the rounds in seconds, with the weights evicted from the cache."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    other = torch.empty(_CACHES * cache, dtype=torch.uint8, device=device)

    def clock(work: Callable[[], None]) -> float:
        work()  # what is compiled or chosen at the first call
        pairs = []
        for _ in range(rounds):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            other.zero_()
            start.record()
            work()
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize(device)
        return statistics.median(start.elapsed_time(end) for start, end in pairs) / 1e3

    return clock


def random(scheme: Scheme, shape: tuple[int, int], device: torch.device) -> PackedWeight:
    """A matrix whose products are finite, for timings."""
    packed = PackedWeight.empty(shape, scheme, device)
    packed.qweight.random_(0, 128)
    for numbers in (packed.scales, packed.zeros, packed.supers):
        if numbers is not None:
            numbers.fill_(0.01 if numbers.is_floating_point() else 8)
    return packed
