"""LayerFolder: the folder in the cache where a model's weights lie, ready for their kernels.

A file a layer, so that layers can be streamed and a later start can map what an earlier one laid
out, whatever its budget. The folder's name stands for content, recipe and kernels; the folders
together stay within a limit, and those unused for longest go first.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from edgelm.budget.placement import file_groups
from edgelm.budget.plan import MatrixPlan
from edgelm.budget.units import human
from edgelm.checkpoint import file_stamps
from edgelm.errors import EdgeLMError
from edgelm.layerstore.layer_file import DamagedLayerError, LayerFile, Prepared, write_layer
from edgelm.machine import hardware
from edgelm.models.weight_names import WeightNames
from edgelm.version import __version__
from quant import Scheme, native

FOLDER = "layers"  # in the cache folder
LIMIT_BYTES = 64 << 30  # of all models together; one model alone may be larger
PAYS_BYTES = 64 << 20  # less is laid out in a moment, at every start
_FREE_SHARE = 10  # files that nobody asked for leave a tenth of the disk free
_FORMAT = 2
logger = logging.getLogger("edgelm")
Prepare = Callable[[MatrixPlan], Prepared]


class LayerFolder:
    """The layer files of one model under one recipe, one choice of kernels and one machine."""

    def __init__(
        self, cache: Path, names: WeightNames, products: Sequence[MatrixPlan], method: str
    ) -> None:
        self.groups = file_groups(products)
        self.job = _job(names, products, method)
        self.folder = cache / FOLDER / self.job[:32]

    def open(
        self, groups: Sequence[str], prepare: Prepare, opened: Callable[[str], None]
    ) -> list[LayerFile]:
        """The files of ``groups``; those that are missing or damaged are written now.

        Args:
            prepare: makes one matrix ready. opened: called with each group as its file is there.

        Raises:
            EdgeLMError: the disk has no room or refuses.
        """
        from filelock import FileLock

        files: list[LayerFile] = []
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            os.utime(self.folder)
            with FileLock(self.folder / "lock"):
                self._make_room([group for group in groups if not self._path(group).exists()])
                for group in groups:
                    files.append(self._open(group, prepare))
                    opened(group)
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

    def find(self, groups: Sequence[str]) -> dict[str, LayerFile]:
        """The files that are there, to be mapped: what they hold is not read yet."""
        found: dict[str, LayerFile] = {}
        for group in groups:
            with suppress(OSError):
                file = self._whole(group, False)
                found |= {} if file is None else {group: file}
        with suppress(OSError):
            os.utime(self.folder)
        return found

    def present(self, groups: Sequence[str]) -> set[str]:
        """Those of ``groups`` that ``find`` will find, unless their files are damaged."""
        return {group for group in groups if self._path(group).is_file()}

    def write(self, groups: Sequence[str], prepare: Prepare) -> None:
        """Write files for the next start, unless another process is at it.

        ``prepare`` keeps what it makes: a folder that is full or refuses is only told of.
        """
        from filelock import FileLock

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / "lock", timeout=0):
                spare = shutil.disk_usage(self.folder).total // _FREE_SHARE
                self._make_room(groups, spare)
                for group in groups:
                    self._write(group, prepare)
        except OSError as error:  # a lock that is taken is one too
            logger.info("%s keeps no weights for the next start: %s", self.folder, error)

    def _path(self, group: str) -> Path:
        return self.folder / f"{group}.layer"

    def _open(self, group: str, prepare: Prepare) -> LayerFile:
        file = self._whole(group, True)
        if file is not None:
            return file
        self._write(group, prepare)
        return LayerFile(self._path(group), self.job)

    def _whole(self, group: str, whole: bool) -> LayerFile | None:
        try:
            return LayerFile(self._path(group), self.job, whole)
        except FileNotFoundError:
            return None
        except DamagedLayerError as error:
            logger.warning("%s is damaged (%s) and is written anew.", self._path(group), error)
            return None

    def _write(self, group: str, prepare: Prepare) -> None:
        logger.info("writing %s to %s", group, self._path(group))
        write_layer(self._path(group), self.job, (prepare(p) for p in self.groups[group]))

    def _make_room(self, missing: Sequence[str], spare_bytes: int = 0) -> None:
        """Delete other models' files, the longest unused first, where limit or disk ask for it.

        Args:
            spare_bytes: what must stay free on the disk.
        """
        needed = sum(p.nbytes for group in missing for p in self.groups[group])
        folders = [folder for folder in self.folder.parent.iterdir() if folder.is_dir()]
        held = {folder: _folder_bytes(folder) for folder in folders}
        others = sorted(held.keys() - {self.folder}, key=lambda folder: folder.stat().st_mtime)
        total, wanted = sum(held.values()) + needed, needed + spare_bytes
        left = sum(held[folder] for folder in others)
        for folder in others:
            free = shutil.disk_usage(self.folder).free
            helps = free < wanted <= free + left  # else files would go for nothing
            left -= held[folder]
            if needed and (total > LIMIT_BYTES or helps) and _delete(folder):
                total -= held[folder]
        free = shutil.disk_usage(self.folder).free
        if free < wanted:
            told = f"its disk has {human(free)} free and {human(wanted)} are needed"
            raise OSError(errno.ENOSPC, told)


def clear_layers(cache: Path) -> None:
    """Delete all layer files but those that are being written now."""
    for folder in (cache / FOLDER).glob("*/"):
        _delete(folder)
    if (cache / FOLDER).is_dir() and not any((cache / FOLDER).iterdir()):
        (cache / FOLDER).rmdir()


def worth_keeping(products: Sequence[MatrixPlan], names: WeightNames) -> list[str]:
    """The files of a model that a later start gains by; none where too little is quantized.

    Floats alone are copied as fast as a file is written, and weights that are in no file have no
    name to be found by. A head of floats is left out: it may be a fresh one.
    """
    floats = {p.names for p in products if Scheme.parse(p.scheme).is_float}
    quantized_bytes = sum(p.nbytes for p in products if p.names not in floats)
    if quantized_bytes <= PAYS_BYTES or not file_stamps(names.checkpoint.path):
        return []
    return [group for group in file_groups(products) if group != "head" or ("head",) not in floats]


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


def _job(names: WeightNames, products: Sequence[MatrixPlan], method: str) -> str:
    """Changes with the model's files, the recipe, the kernels, and what their layouts depend on."""
    library = native.path()
    machine = (hardware.processor_name(), torch.backends.cpu.get_cpu_capability())
    versions = (_FORMAT, __version__, torch.__version__, native.ABI)
    layouts = [] if library is None else file_stamps(library)
    matrices = [(p.names, p.shapes, p.scheme, p.kernel, p.stored) for p in products]
    stored = [names.file_name(name) for p in products for name in p.names]
    checkpoint = names.checkpoint
    source = (str(checkpoint.path), file_stamps(checkpoint.path), checkpoint.config)
    told = json.dumps(
        [versions, layouts, machine, source, stored, method, matrices], sort_keys=True
    )
    return hashlib.sha256(told.encode()).hexdigest()
