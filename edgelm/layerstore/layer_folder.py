"""LayerFolder: the cache folder of a model's weights in the layout of their kernels.

There is one file per layer, so that layers can be streamed and a later start can map what an
earlier one laid out, whatever its budget. The folder's name identifies content, recipe and
kernels; all folders together stay within a limit, and the least recently used are deleted first.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from edgelm.budget.placement import file_groups
from edgelm.budget.plan import MatrixPlan
from edgelm.budget.units import human
from edgelm.checkpoint.stamps import file_stamps
from edgelm.errors import EdgeLMError
from edgelm.layerstore.layer_file import LayerFile, Prepared, write_layer
from edgelm.layerstore.layer_table import DamagedLayerError
from edgelm.machine import hardware, private_files
from edgelm.models.weight_names import WeightNames
from edgelm.version import __version__
from quant import Scheme, native

FOLDER = "layers"  # in the cache folder
LIMIT_BYTES = 64 << 30  # of all models together; one model alone may be larger
PAYS_BYTES = 64 << 20  # smaller models are laid out quickly at every start
_FREE_SHARE = 10  # files the user did not request leave a tenth of the disk free
_FORMAT = 3
logger = logging.getLogger("edgelm")
Prepare = Callable[[MatrixPlan], Prepared]


class LayerFolder:
    """The layer files of one model under one recipe, one choice of kernels and one machine."""

    def __init__(
        self, cache: Path, names: WeightNames, products: Sequence[MatrixPlan], method: str
    ) -> None:
        self.groups = file_groups(products)
        self.job = _job(names, products, method)
        self.folder = cache / FOLDER / folder_name(self.job)

    def open(
        self, groups: Sequence[str], prepare: Prepare, opened: Callable[[str], None]
    ) -> list[LayerFile]:
        """Open the files of ``groups``; missing or damaged ones are written first.

        Args:
            prepare: lays out one matrix. opened: called with each group once its file is open.

        Raises:
            EdgeLMError: the disk is full or refuses.
        """
        files: list[LayerFile] = []
        try:
            with self._locked():
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
                    f"{error.strerror or error}. Free some space, or set EDGELM_CACHE to another "
                    "folder of yours."
                ) from error
            raise
        return files

    def find(self, groups: Sequence[str]) -> Iterator[tuple[str, LayerFile]]:
        """Open the existing files for mapping, in the order of ``groups``.

        All of each is read and compared with its sums, several files at a time.
        """
        reason = self._refusal()
        if reason is not None:
            logger.warning("%s is not used: %s. What it held is laid out again.", *reason)
            return
        with suppress(OSError):
            os.utime(self.folder)
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for group, file in zip(groups, pool.map(self._whole, groups), strict=True):
                if file is not None:
                    yield group, file

    def present(self, groups: Sequence[str]) -> set[str]:
        """Those of ``groups`` whose files exist; ``find`` skips damaged ones."""
        if self._refusal() is not None:
            return set()
        return {group for group in groups if self._path(group).is_file()}

    def write(self, groups: Sequence[str], prepare: Prepare) -> None:
        """Write files for the next start, unless another process is doing so.

        ``prepare`` keeps its results: a folder that is full or refuses is only logged.
        """
        try:
            with self._locked(timeout_s=0):
                spare = shutil.disk_usage(self.folder).total // _FREE_SHARE
                self._make_room(groups, spare)
                for group in groups:
                    self._write(group, prepare)
        except OSError as error:  # includes a lock held by another process
            logger.info("%s keeps no weights for the next start: %s", self.folder, error)

    @contextmanager
    def _locked(self, timeout_s: float = -1) -> Iterator[None]:
        """While no other process writes to the folder, which is made if it is not there.

        Raises:
            OSError: the disk refuses, or another user owns the folder.
        """
        from filelock import FileLock

        private_files.make_folder(self.folder)
        for folder in (self.folder.parent, self.folder):
            if private_files.close_to_others(folder):
                for path in folder.glob("*.layer*"):  # others may have written it
                    path.unlink()
        os.utime(self.folder)
        with FileLock(self.folder / "lock", timeout_s, private_files.FILE_MODE):
            yield

    def _refusal(self) -> tuple[Path, str] | None:
        """The folder whose content may be another user's, and why; None if all is this user's."""
        for folder in (self.folder.parent, self.folder):
            with suppress(OSError):
                reason = private_files.refusal(folder.stat())
                if reason is not None:
                    return folder, reason
        return None

    def _path(self, group: str) -> Path:
        return self.folder / f"{group}.layer"

    def _open(self, group: str, prepare: Prepare) -> LayerFile:
        file = self._whole(group)
        if file is not None:
            return file
        self._write(group, prepare)
        return LayerFile(self._path(group))

    def _whole(self, group: str) -> LayerFile | None:
        """The group's file, if all of it is as this job wrote it."""
        file = None
        try:
            file = LayerFile(self._path(group))
            if file.table.job != self.job:
                raise DamagedLayerError("it belongs to another model")
            file.table.check_against(self.groups[group])
            file.check()
        except (DamagedLayerError, OSError) as error:
            if file is not None:
                file.close()
            if not isinstance(error, FileNotFoundError):
                path = self._path(group)
                logger.warning("%s is damaged (%s) and is written again.", path, error)
            return None
        return file

    def _write(self, group: str, prepare: Prepare) -> None:
        logger.info("writing %s to %s", group, self._path(group))
        write_layer(self._path(group), self.job, (prepare(p) for p in self.groups[group]))

    def _make_room(self, missing: Sequence[str], spare_bytes: int = 0) -> None:
        """Delete other models' files, least recently used first, if limit or disk require it.

        Args:
            spare_bytes: number of bytes that must stay free on the disk.
        """
        needed = sum(p.nbytes for group in missing for p in self.groups[group])
        folders = [folder for folder in self.folder.parent.iterdir() if folder.is_dir()]
        held = {folder: _folder_bytes(folder) for folder in folders}
        others = sorted(held.keys() - {self.folder}, key=lambda folder: folder.stat().st_mtime)
        total, wanted = sum(held.values()) + needed, needed + spare_bytes
        left = sum(held[folder] for folder in others)
        for folder in others:
            free = shutil.disk_usage(self.folder).free
            helps = free < wanted <= free + left  # else deletion would not help
            left -= held[folder]
            if needed and (total > LIMIT_BYTES or helps) and _delete(folder):
                total -= held[folder]
        free = shutil.disk_usage(self.folder).free
        if free < wanted:
            told = f"its disk has {human(free)} free and {human(wanted)} are needed"
            raise OSError(errno.ENOSPC, told)


def folder_name(job: str) -> str:
    """Name of the folder with a job's files."""
    return job[:32]


def clear_layers(cache: Path) -> None:
    """Delete all layer files except those being written now."""
    for folder in (cache / FOLDER).glob("*/"):
        _delete(folder)
    if (cache / FOLDER).is_dir() and not any((cache / FOLDER).iterdir()):
        (cache / FOLDER).rmdir()


def worth_keeping(products: Sequence[MatrixPlan], names: WeightNames) -> list[str]:
    """Groups of a model that speed up a later start; none if too little is quantized.

    Plain floats are copied as fast as a file is written, and weights that come from no file cannot
    be identified. A float head is left out: it may be a fresh one.
    """
    floats = {p.names for p in products if Scheme.parse(p.scheme).is_float}
    quantized_bytes = sum(p.nbytes for p in products if p.names not in floats)
    if quantized_bytes <= PAYS_BYTES or not names.checkpoint.files:
        return []
    return [group for group in file_groups(products) if group != "head" or ("head",) not in floats]


def _delete(folder: Path) -> bool:
    """Delete a model's files unless they are being written; open ones stay readable."""
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
    """Hash of the model's files, the recipe, the kernels, and what their layouts depend on."""
    library = native.path()
    machine = (hardware.processor_name(), torch.backends.cpu.get_cpu_capability())
    versions = (_FORMAT, __version__, torch.__version__, native.ABI)
    layouts = [] if library is None else file_stamps([library])
    matrices = [(p.names, p.shapes, p.scheme, p.kernel, p.stored) for p in products]
    stored = [names.file_name(name) for p in products for name in p.names]
    source = (file_stamps(names.checkpoint.files), names.checkpoint.config)
    told = json.dumps(
        [versions, layouts, machine, source, stored, method, matrices], sort_keys=True
    )
    return hashlib.sha256(told.encode()).hexdigest()
