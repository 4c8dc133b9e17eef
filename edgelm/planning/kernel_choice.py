"""Kernels that ``auto`` prefers on this machine: measured by ``doctor``, kept in the cache folder.

The tiles of our own CUDA kernels are measured by the first load that needs them, and kept there as
well.

A plan only reads what was kept; without it the order of quant's table decides, so that plans stay
fast and need no library. What is damaged counts as absent and is dropped.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import quant
from edgelm.budget.plan import MatrixPlan, Plan
from edgelm.errors import KernelUnavailableError
from edgelm.machine import accelerators, hardware
from edgelm.machine.measurements import keep, kept
from edgelm.planning.settings import DTYPES
from edgelm.progress import Progress
from edgelm.version import __version__
from quant import Scheme
from quant.backends.timing import PROBES, shape_class, time_kernels

KEPT = "kernels.json"
# Those that several libraries multiply.
MEASURED_SCHEMES = (
    *("int4-g32", "int4-g64", "int4-g128", "int8", "int8-g32", "nf4", "nf4-g32", "fp4"),
)
logger = logging.getLogger("edgelm")
Rankings = dict[str, list[str]]


def measure(folder: Path, device: str = "cpu") -> Rankings:
    """Time all kernels of a device, with the threads set now, and keep the ranking beside earlier
    ones.

    Raises KernelUnavailableError if EDGELM_ISA names what this CPU lacks.
    """
    try:
        found = {
            f"{text} {kind}": list(time_kernels(Scheme.parse(text), probe, device))
            for text in MEASURED_SCHEMES
            for kind, probe in PROBES.items()
        }
    except quant.KernelUnavailableError as error:
        raise KernelUnavailableError(str(error)) from error
    keep(folder / KEPT, _read(folder) | {_machine(device): found})
    return found


def rankings(folder: Path, device: str = "cpu") -> Rankings:
    """Rankings kept by ``measure`` for this device and number of threads; empty if not measured."""
    return _read(folder).get(_machine(device), {})


def ranking(measured: Rankings, scheme: Scheme, shape: tuple[int, int]) -> list[str]:
    """Kernel names, fastest first, for such matrices."""
    return measured.get(f"{scheme} {shape_class(shape)}", [])


def tune(plan: Plan, folder: Path, progress: Progress | None) -> None:
    """Measure the tiles of a plan's products on its card, where no earlier load has kept them.

    For single tokens and for whole chunks; takes seconds a shape, most of them the compiler's.
    """
    own = [p for p in plan.products if p.kernel.startswith("triton.")]
    if not own:
        return
    from quant.triton import tuning

    cases = {
        tuning.Case(Scheme.parse(p.scheme), p.shape, rows, DTYPES[plan.dtype])
        for p in own
        for rows in ((1,) if p.name.layer is None else (1, plan.chunk))
    }
    in_order = sorted(cases, key=lambda case: case.key)
    device = accelerators.torch_device(plan.device)
    for number, case in enumerate(in_order, 1):
        if progress is not None:
            progress(f"kernels for this card, {number} of {len(cases)}", 0, plan.weight_bytes)
        try:
            tuning.tune([case], folder, device)
        except OSError as error:  # chosen, but not for later loads
            logger.warning("measured kernels cannot be kept in %s: %s", folder, error)
    accelerators.release(plan.device)


def warn_of_slow(products: tuple[MatrixPlan, ...], tied: bool) -> None:
    """Say which packed matrices the reference multiplies: right, but slow."""
    slow = [
        p
        for p in products
        if p.kernel == "reference"
        and not Scheme.parse(p.scheme).is_float
        and (p.names != ("embed",) or tied)
    ]
    for scheme in sorted({p.scheme for p in slow}):
        own = [p for p in slow if p.scheme == scheme]
        logger.warning(
            "%d matrices in %s (%s, ...) run on the slow kernel `reference`: no faster one is "
            "known for them here; `edgelm doctor -v` gives the reasons and measures the others",
            *(len(own), scheme, own[0].names[0]),
        )


def _read(folder: Path) -> dict[str, Rankings]:
    """Rankings of all machines; entries that are no lists of names are dropped."""
    data = kept(folder / KEPT)
    machines = data.items() if isinstance(data, dict) else ()
    return {
        machine: {key: names for key, names in own.items() if _is_ranking(names)}
        for machine, own in machines
        if isinstance(own, dict)
    }


def _is_ranking(names: object) -> bool:
    return isinstance(names, list) and {*map(type, names)} <= {str}


def _machine(device: str) -> str:
    """Key of a ranking: processor, its vectors, threads and versions, or card and versions."""
    if device == "cpu":
        return f"{_fixed()}, {torch.get_num_threads()} threads"
    card = accelerators.find(device)
    assert card is not None
    return f"{card.name}, {_versions()}"


@cache
def _fixed() -> str:
    vectors = torch.backends.cpu.get_cpu_capability()
    return ", ".join([hardware.processor_name(), vectors, _versions()])


def _versions() -> str:
    packages = ("torch", "torchao", "bitsandbytes")
    return ", ".join([f"edgelm {__version__}", *(f"{p} {_version(p)}" for p in packages)])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
