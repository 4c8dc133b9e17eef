"""Accelerators: devices other than the CPU that a model can be loaded onto.

CUDA uses this package's kernels (``ops/triton.py``, including ROCm builds of torch); ``mps`` and
``xpu`` use plain torch. An unusable device is reported in one sentence, before anything is read.
"""

from __future__ import annotations

import logging
import re
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from edgelm.errors import KernelUnavailableError, UsageError

OLDEST_CAPABILITY = (7, 0)  # Volta: the minimum of Triton and torch's builds for CUDA 12 and 13
_BFLOAT16_CAPABILITY = (8, 0)  # Ampere; older cards emulate it
_GIVEN = re.compile(r"(cuda|xpu)(?::(\d{1,3}))?|mps")
logger = logging.getLogger("edgelm")


@dataclass(frozen=True)
class Accelerator:
    """A usable device. device: torch's name for it, such as ``cuda:0``; its memory in bytes."""

    device: str
    name: str
    free_bytes: int
    total_bytes: int
    bfloat16: bool


def find(given: str) -> Accelerator | None:
    """Find the accelerator for a user's ``device``; None for the CPU.

    ``auto`` takes a usable CUDA device if there is one, and logs why one was left unused.

    Raises:
        UsageError: no such name. KernelUnavailableError: this machine, card or driver lacks it.
    """
    if given == "cpu":
        return None
    if given == "auto":
        return _first_cuda()
    match = _GIVEN.fullmatch(given)
    if match is None:
        raise UsageError(
            f"device {given!r:.40} is not known; allowed: auto, cpu, cuda, cuda:1 (any device "
            "number), mps, xpu."
        )
    kind = match[1] or "mps"
    return PROBES[kind](int(match[2] or 0))


def torch_device(name: str) -> torch.device:
    """The torch device for a plan's device."""
    return torch.device(name)


def free_bytes(name: str) -> int:
    """Memory of a device that can still be allocated, including torch's unused blocks."""
    device = torch_device(name)
    if device.type != "cuda":
        kind, _, index = name.partition(":")
        return PROBES[kind](int(index or 0)).free_bytes
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + unused


def peak_bytes(name: str) -> int:
    """Peak memory of this process's tensors on a device; 0 for the CPU and if unknown."""
    device = torch_device(name)
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else 0


def current(name: str) -> AbstractContextManager[object]:
    """Make a CUDA device the current one of this thread; a no-op for other devices."""
    device = torch_device(name)
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def release(name: str) -> None:
    """Return memory that no tensor uses any more to the device."""
    device = torch_device(name)
    if device.type == "cuda":
        torch.cuda.empty_cache()


def copy_gb_s(name: str, megabytes: int = 512, rounds: int = 10) -> float:
    """Bandwidth of a CUDA device copying within its memory, reads and writes both counted."""
    source = torch.empty(megabytes << 20, dtype=torch.uint8, device=torch_device(name))
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(rounds):
        torch.cuda.synchronize(source.device)
        start = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize(source.device)
        best = max(best, 2 * source.nbytes / (time.perf_counter() - start) / 1e9)
    return best


def _first_cuda() -> Accelerator | None:
    if torch.version.cuda is None and torch.version.hip is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a driver that is too old, which _cuda reports itself
        if not torch.cuda.is_available():
            return None
    try:
        return PROBES["cuda"](0)
    except KernelUnavailableError as error:
        logger.warning("The GPU is left unused: %s", error)
        return None


def _cuda(index: int) -> Accelerator:
    wanted = f"device 'cuda:{index}' cannot be used: "
    if torch.version.cuda is None and torch.version.hip is None:
        raise KernelUnavailableError(
            f"{wanted}this PyTorch ({torch.__version__}) was built without CUDA. Install one with "
            "it (see pytorch.org), or use device='cpu'."
        )
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        raise KernelUnavailableError(wanted + _driver_trouble(str(error))) from None
    count = torch.cuda.device_count()
    if index >= count:
        raise KernelUnavailableError(
            f"{wanted}this machine has {count} such device{'s' if count > 1 else ''}; the first is "
            "cuda:0."
        )
    found = torch.cuda.get_device_properties(index)
    capability = (found.major, found.minor)
    if torch.version.hip is None and capability < OLDEST_CAPABILITY:
        raise KernelUnavailableError(
            f"{wanted}{found.name} has compute capability {found.major}.{found.minor}, and "
            f"{OLDEST_CAPABILITY[0]}.{OLDEST_CAPABILITY[1]} or newer is needed (Volta, Turing and "
            "later). Use device='cpu'."
        )
    free, total = torch.cuda.mem_get_info(index)
    has_bfloat16 = torch.version.hip is not None or capability >= _BFLOAT16_CAPABILITY
    return Accelerator(f"cuda:{index}", found.name, int(free), int(total), has_bfloat16)


def _driver_trouble(told: str) -> str:
    """Turn torch's error about an unusable driver into a sentence with a remedy."""
    first = told.strip().splitlines()[0] if told.strip() else "CUDA does not start"
    if "too old" in told or "insufficient" in told:
        return (
            f"its driver is older than this PyTorch ({torch.__version__}, CUDA "
            f"{torch.version.cuda}) needs. Update the driver, install a PyTorch for an older CUDA, "
            "or use device='cpu'."
        )
    if "no nvidia driver" in told.lower() or "no cuda gpus" in told.lower():
        return "this machine has no CUDA device, or no driver for it. Use device='cpu'."
    return f"{first.rstrip('.')}. Use device='cpu'."


def _mps(index: int) -> Accelerator:
    if not torch.backends.mps.is_available():
        raise KernelUnavailableError(
            "device 'mps' cannot be used: this machine or PyTorch has no Metal device. Use "
            "device='cpu'."
        )
    total = int(torch.mps.recommended_max_memory())
    free = max(0, total - int(torch.mps.driver_allocated_memory()))
    return Accelerator("mps", "Apple GPU", free, total, bfloat16=True)


def _xpu(index: int) -> Accelerator:
    count = torch.xpu.device_count() if torch.xpu.is_available() else 0
    if index >= count:
        raise KernelUnavailableError(
            f"device 'xpu:{index}' cannot be used: this machine or PyTorch has {count} such "
            "devices. Use device='cpu'."
        )
    found = torch.xpu.get_device_properties(index)
    total = int(found.total_memory)
    free = total - int(torch.xpu.memory_reserved(index))
    return Accelerator(f"xpu:{index}", str(found.name), free, total, bfloat16=True)


PROBES: dict[str, Callable[[int], Accelerator]] = {"cuda": _cuda, "mps": _mps, "xpu": _xpu}
"""Functions that look for a device of each kind; tests replace them."""
