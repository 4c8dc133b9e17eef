"""Diagnosis of ``edgelm doctor``: versions, processor, memory, kernels and cache of a machine."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from edgelm.budget import past_runs
from edgelm.hub.demo import DEMO_MEMBER
from edgelm.hub.references import cache_dir
from edgelm.layerstore.layer_folder import clear_layers
from edgelm.machine import accelerators, disk, hardware
from edgelm.machine.accelerators import Accelerator
from edgelm.planning import kernel_choice
from edgelm.version import __version__
from quant import Scheme
from quant.backends import KERNELS, choose
from quant.triton.choices import FILE as TILES

PACKAGES = (
    *("torch", "torchao", "bitsandbytes", "safetensors", "tokenizers", "sentencepiece"),
    *("huggingface_hub", "gguf", "numpy"),
)
SCHEMES = (
    *("iq4-g32-coded", "int5-g32-coded", "int6-g32-coded", "int4-g32", "int4-g64", "int4-g128"),
    *("int8", "int8-g32", "nf4", "bfloat16", "float32"),
)
_SHAPE = (4096, 4096)  # a shape that every kernel accepts


@dataclass(frozen=True)
class KernelChoice:
    """Kernel that ``auto`` picks for a scheme, and the reasons against others for such schemes.

    ``use`` is ``multiply``, or ``lookup`` for a matrix whose rows must also be readable.
    """

    device: str
    scheme: str
    use: str
    kernel: str
    declined: dict[str, str]


@dataclass(frozen=True)
class Diagnosis:
    """Bytes, GB/s and versions; ``cache_bytes`` is the size of the whole cache folder.

    ``runs`` are planned against measured peaks, oldest first; ``learned_bytes`` is what later
    plans add because of them.
    """

    version: str
    python: str
    system: str
    packages: dict[str, str | None]
    processor: str
    instruction_sets: tuple[str, ...]
    torch_vectors: str
    cores: int
    threads: int
    total_memory_bytes: int
    available_memory_bytes: int
    cgroup_limit_bytes: int | None
    read_gb_s: float
    accelerator: Accelerator | None
    kernels: tuple[KernelChoice, ...]
    cache: str
    cache_bytes: int
    runs: tuple[past_runs.Run, ...]
    learned_bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def diagnose() -> Diagnosis:
    """Diagnose the machine; measures bandwidth and kernels and records both for later plans."""
    cache = cache_dir()
    torch.set_num_threads(hardware.default_threads())  # as loading does
    card = accelerators.find("auto")
    devices = ["cpu"] if card is None else ["cpu", card.device]
    for device in devices:
        with accelerators.current(device):
            kernel_choice.measure(cache, device)
    return Diagnosis(
        version=__version__,
        python=platform.python_version(),
        system=platform.platform(),
        packages={name: _version(name) for name in PACKAGES},
        processor=hardware.processor_name(),
        instruction_sets=hardware.instruction_sets(),
        torch_vectors=torch.backends.cpu.get_cpu_capability(),
        cores=hardware.cores(),
        threads=hardware.default_threads(),
        total_memory_bytes=hardware.total_memory_bytes(),
        available_memory_bytes=hardware.available_memory_bytes(),
        cgroup_limit_bytes=hardware.cgroup_limit_bytes(),
        read_gb_s=hardware.record_read_gb_s(cache),
        accelerator=card,
        kernels=tuple(choice for device in devices for choice in _choices(cache, device)),
        cache=str(cache),
        cache_bytes=_folder_bytes(cache),
        runs=past_runs.recorded(cache),
        learned_bytes=past_runs.correction_bytes(cache),
    )


def clear_cache() -> int:
    """Delete what this package keeps in its cache folder, nothing else; returns the bytes freed."""
    cache = cache_dir()
    before = _folder_bytes(cache)
    demo = cache / "demo"
    shutil.rmtree(demo / "partial", ignore_errors=True)
    clear_layers(cache)
    profiles = (hardware.PROFILE, kernel_choice.KEPT, TILES, disk.PROFILE, past_runs.KEPT)
    kept = [cache / name for name in profiles]
    for path in (demo / Path(DEMO_MEMBER).name, demo / "lock", *kept):
        path.unlink(missing_ok=True)
    if demo.is_dir() and not any(demo.iterdir()):
        demo.rmdir()
    return before - _folder_bytes(cache)


def _choices(cache: Path, name: str) -> Iterator[KernelChoice]:
    device = accelerators.torch_device(name)
    measured = kernel_choice.rankings(cache, name)
    for text in SCHEMES:
        scheme = Scheme.parse(text)
        ranking = kernel_choice.ranking(measured, scheme, _SHAPE)
        for use in ("multiply", "lookup"):
            lookup = use == "lookup"
            chosen = choose(scheme, _SHAPE, device, lookup=lookup, ranking=ranking)
            reasons = {k.name: k.refusal(scheme, _SHAPE, device, lookup) for k in KERNELS}
            declined = {
                name: reason
                for name, reason in reasons.items()
                if reason is not None and " only" not in reason  # those of other schemes
            }
            yield KernelChoice(name, text, use, chosen.name, declined)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
