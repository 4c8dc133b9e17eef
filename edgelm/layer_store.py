"""LayerStore: the folder in the cache where a model's streamed layers lie, ready for their kernels.

A file a layer, so that another budget, which streams more or fewer of them, uses what is there.
The folder's name stands for content, recipe and kernels; the folders together stay within a limit,
and those unused for longest go first.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from edgelm import hardware
from edgelm.checkpoint import Checkpoint, file_stamps
from edgelm.errors import EdgeLMError
from edgelm.layer_file import DamagedLayerError, LayerFile, Prepared, write_layer
from edgelm.memory import Plan, ProductPlan, human
from edgelm.placement import layer_products
from edgelm.version import __version__

FOLDER = "layers"  # in the cache folder
LIMIT_BYTES = 64 << 30  # of all models together; one model alone may be larger
_FORMAT = 1
logger = logging.getLogger("edgelm")
Prepare = Callable[[ProductPlan], Prepared]


class LayerStore:
    """The layer files of one model under one recipe, one choice of kernels and one machine."""

    def __init__(self, cache: Path, checkpoint: Checkpoint, plan: Plan, method: str) -> None:
        self.plan = plan
        self.job = _job(checkpoint, plan, method)
        self.folder = cache / FOLDER / self.job[:32]

    def open(
        self, layers: Sequence[int], prepare: Prepare, opened: Callable[[int], None]
    ) -> list[LayerFile]:
        """The files of ``layers``; those that are missing or damaged are written now.

        Args:
            prepare: makes one matrix ready. opened: called with each layer as its file is there.

        Raises:
            EdgeLMError: the disk has no room or refuses.
        """
        from filelock import FileLock

        files: list[LayerFile] = []
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            os.utime(self.folder)
            with FileLock(self.folder / "lock"):
                self._make_room([layer for layer in layers if not self._path(layer).exists()])
                for layer in layers:
                    files.append(self._open(layer, prepare))
                    opened(layer)
        except BaseException as error:
            for file in files:
                file.close()
            if isinstance(error, OSError):
                raise EdgeLMError(
                    f"{self.folder}, from which layers are to be streamed, cannot be used: "
                    f"{error.strerror or error}. Free some space, or set EDGELM_CACHE to a folder "
                    "on another disk."
                ) from error
            raise
        return files

    def _path(self, layer: int) -> Path:
        return self.folder / f"{layer:04}.layer"

    def _open(self, layer: int, prepare: Prepare) -> LayerFile:
        path = self._path(layer)
        try:
            return LayerFile(path, self.job)
        except FileNotFoundError:
            logger.info("writing layer %d for streaming to %s", layer, path)
        except DamagedLayerError as error:
            logger.warning("%s is damaged (%s) and is written anew.", path, error)
        write_layer(path, self.job, (prepare(p) for p in layer_products(self.plan, layer)))
        return LayerFile(path, self.job)

    def _make_room(self, missing: Iterable[int]) -> None:
        """Delete other models' files, the longest unused first, where limit or disk ask for it."""
        products = [p for layer in missing for p in layer_products(self.plan, layer)]
        needed = sum(product.nbytes for product in products)
        folders = [folder for folder in self.folder.parent.iterdir() if folder.is_dir()]
        held = {folder: _folder_bytes(folder) for folder in folders}
        others = sorted(held.keys() - {self.folder}, key=lambda folder: folder.stat().st_mtime)
        total = sum(held.values()) + needed
        for folder in others:
            free = shutil.disk_usage(self.folder).free
            if needed and (total > LIMIT_BYTES or free < needed) and _delete(folder):
                total -= held[folder]
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise EdgeLMError(
                f"Streaming needs {human(needed)} in {self.folder.parent}, whose disk has "
                f"{human(free)} free. Free some space, or set EDGELM_CACHE to a folder on another "
                "disk."
            )


def clear_layers(cache: Path) -> None:
    """Delete all layer files but those that are being written now."""
    for folder in (cache / FOLDER).glob("*/"):
        _delete(folder)
    if (cache / FOLDER).is_dir() and not any((cache / FOLDER).iterdir()):
        (cache / FOLDER).rmdir()


def _delete(folder: Path) -> bool:
    """Remove a model's files unless they are being written; open ones stay readable."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / "lock", timeout=0):
            for path in folder.glob("*.layer*"):
                path.unlink()
        (folder / "lock").unlink(missing_ok=True)
        folder.rmdir()
    except (Timeout, OSError) as error:
        logger.info("%s stays: %s", folder, error)
        return False
    return True


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _job(checkpoint: Checkpoint, plan: Plan, method: str) -> str:
    """Changes with the model's files, the recipe, the kernels, and what their layouts depend on."""
    machine = (hardware.processor_name(), torch.backends.cpu.get_cpu_capability())
    versions = (_FORMAT, __version__, torch.__version__)
    products = [(p.names, p.shapes, p.scheme, p.kernel, p.stored) for p in plan.products]
    source = (str(checkpoint.path), file_stamps(checkpoint.path), checkpoint.config)
    told = json.dumps([versions, machine, source, method, products], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()
