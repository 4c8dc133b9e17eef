"""Writer of a folder of packed weights: streamed, resumable, verified.

It writes OUT.partial and a journal next to it; both are reused after a kill. The folder is renamed
only after every file was read back, so OUT is always complete.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from edgelm.budget.units import human
from edgelm.checkpoint.journal import Journal
from edgelm.checkpoint.manifest import FORMAT_VERSION, MANIFEST, Manifest
from edgelm.checkpoint.opening import open_checkpoint
from edgelm.checkpoint.safetensors_writer import (
    Layout,
    TensorFiles,
    index_file,
    plan_layout,
    verify_files,
)
from edgelm.checkpoint.stamps import file_stamps
from edgelm.errors import EdgeLMError, UsageError
from edgelm.models.model_files import ModelFiles
from edgelm.progress import Progress
from edgelm.quantization.calibration import Calibration, curved
from edgelm.quantization.certification import Certification
from edgelm.quantization.companions import copy_companions
from edgelm.quantization.conversion import (
    Conversion,
    Target,
    manifest_of,
)
from edgelm.quantization.converted_rows import converted_rows, row_blocks
from edgelm.quantization.folder_readme import write_readme
from edgelm.version import __version__
from quant import Curvature, Sqnr

logger = logging.getLogger("edgelm")


class PackedFolder:
    """One folder being written; ``resumed`` counts the weights that an earlier run had finished."""

    def __init__(
        self, files: ModelFiles, out: Path, conversion: Conversion, method: str,
        calibration: Calibration | None = None, certification: Certification | None = None,
    ) -> None:  # fmt: skip
        self.files, self.out, self.conversion, self.method = files, out, conversion, method
        self.calibration, self.certification = calibration, certification
        self.partial = out.with_name(out.name + ".partial")
        job = job_identity(files, conversion, method, calibration)
        self.journal = Journal(out.with_name(out.name + ".partial.journal"), job)
        # transformers 4 refuses files of another form than "pt".
        form = "edgelm" if conversion.layout.peer_note else "pt"
        self.layout: Layout = plan_layout([t.specs() for t in conversion.targets], form=form)
        self.resumed = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the files with weights."""
        return self.layout.nbytes

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(place.nbytes for place in self.layout.places.values())

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by name that are held in addition to rows: none."""
        return {}

    def run(self, progress: Progress | None) -> Manifest:
        """Write, verify and rename the folder; returns its manifest."""
        if self.out.exists():
            return self._finished_before()
        self._prepare()
        self._write_weights(progress)
        tensors = {t: d for entry in self.journal.done.values() for t, d in entry["sha256"].items()}
        digests = verify_files(self.partial, self.layout, tensors)
        manifest = self._write_told(self._certified(self._write_rest()), digests)
        sync_folder(self.partial)
        os.rename(self.partial, self.out)
        sync_folder(self.out.parent, files=False)
        self.journal.remove()
        return manifest

    def _finished_before(self) -> Manifest:
        """Manifest of a run that was killed after renaming the folder and left only its journal."""
        if self.partial.exists() or not self.journal.read():
            raise UsageError(
                f"{self.out} exists and is not overwritten. Give another name, or delete it first."
            )
        self.resumed = len(self.journal.done)
        self.journal.remove()
        return Manifest.read(self.out / MANIFEST)

    def _prepare(self) -> None:
        """Create files at full length and a journal, or reuse those of an interrupted run."""
        sizes = {p.name: p.stat().st_size for p in self.partial.glob("*")}
        ours = self.journal.read()
        if ours and self.layout.sizes.items() <= sizes.items():
            self.resumed = len(self.journal.done)
            return
        if self.partial.exists():
            if not ours:
                logger.warning("%s belongs to a different job; starting over.", self.partial)
            shutil.rmtree(self.partial)
        require_space(self.out, self.layout.nbytes)
        self.partial.mkdir(parents=True)
        self.journal.start()
        try:
            TensorFiles.create(self.partial, self.layout)
        except OSError:  # they hold nothing worth keeping yet
            shutil.rmtree(self.partial)
            self.journal.remove()
            raise

    def _write_weights(self, progress: Progress | None) -> None:
        total, done = self.weight_bytes, 0
        files = TensorFiles(self.partial, self.layout)
        try:
            targets, finished = self.conversion.targets, self.journal.done
            for target, curvature in curved(self.calibration, targets, finished):
                names = list(target.specs())
                if target.name not in finished:
                    error = Sqnr()
                    self._write(target, files, error, curvature)
                    db = error.db if error.noise else None
                    entry = {"error_db": db, "sha256": files.finish(names)}
                    self.journal.add(target.name, entry)
                del curvature  # before the next layer's Hessians are allocated
                done += sum(self.layout.places[name].nbytes for name in names)
                if progress:
                    progress(target.name, done, total)
            files.sync()
        finally:
            files.close()

    def _write(
        self, target: Target, files: TensorFiles, error: Sqnr, curvature: Curvature | None
    ) -> None:
        """Write one weight, a block of rows at a time."""
        for start, stop in row_blocks(target):
            rows = converted_rows(
                self.files.checkpoint, target, start, stop, self.method, error, curvature
            )
            if isinstance(rows, torch.Tensor):
                files.write(target.name, start, rows)
                continue
            for name, row, part in target.stored(rows, start):
                files.write(name, row, part)
        if target.scheme is not None:
            for name, part in target.constants().items():
                files.write(name, 0, part)

    def _write_rest(self) -> Manifest:
        """Write what a model needs beside its weights."""
        config = self.files.checkpoint.config | {"tie_word_embeddings": self.files.config.tied}
        for key in ("quantization_config", "transformers_weights"):
            config.pop(key, None)  # the source's, whose files are not copied
        config |= self.conversion.layout.config
        (self.partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        index_file(self.partial, self.layout)
        copy_companions(self.files, self.partial)
        errors = {name: entry["error_db"] for name, entry in self.journal.done.items()}
        return manifest_of(
            self.files, self.conversion, self.method, errors, self.conversion.nbytes, {}
        )

    def _certified(self, manifest: Manifest) -> Manifest:
        """The manifest with a certificate, if one is wanted and can be had."""
        if self.certification is None:
            return manifest
        write_manifest(self.partial, manifest)  # which opening the folder reads
        written = ModelFiles(str(self.out), open_checkpoint(self.partial))
        found = self.certification.measure(written, manifest, written.sha256)
        return replace(manifest, certificate=found)

    def _write_told(self, manifest: Manifest, digests: dict[str, str]) -> Manifest:
        """Write what is told of the folder; the manifest last."""
        text = self.calibration.text.name if self.calibration else None
        write_readme(self.partial, manifest, self.conversion.layout, self.files.name, text)
        names = sorted(path.name for path in self.partial.iterdir() if path.name != MANIFEST)
        sums = {name: digests.get(name) or file_sha256(self.partial / name) for name in names}
        manifest = replace(manifest, files=sums)
        write_manifest(self.partial, manifest)
        return manifest


def job_identity(
    files: ModelFiles, conversion: Conversion, method: str, calibration: Calibration | None
) -> str:
    """Hash of the input's files, the settings, the calibration tokens and the format."""
    path = files.checkpoint.path
    own = [path, *files.checkpoint.files]  # the files beside the weights are copied
    own += sorted(path.iterdir()) if path.is_dir() else []
    stamps = file_stamps(dict.fromkeys(file for file in own if file.is_file()))
    told = [FORMAT_VERSION, __version__, stamps, method, repr(conversion)]
    told += [calibration.text.identity] if calibration else []
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    told = json.dumps(manifest.to_dict(), indent=1, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(told, "utf-8")


def require_space(out: Path, nbytes: int) -> None:
    """Raise EdgeLMError if the disk of OUT has less than this free."""
    free = shutil.disk_usage(out.parent).free
    if free < nbytes:
        raise EdgeLMError(
            f"{out} needs {human(nbytes)} and its disk has {human(free)} free. Free some space, or "
            "give a place on another disk."
        )


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_file(path: Path) -> None:
    """Flush the file's content to the disk."""
    with path.open("r+b") as file:  # some systems refuse to sync a file opened for reading only
        os.fsync(file.fileno())


def sync_folder(folder: Path, files: bool = True) -> None:
    """Flush the folder's entries and its files' content to the disk."""
    for path in folder.iterdir() if files else ():
        sync_file(path)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
