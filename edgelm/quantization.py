"""``quantize``: a model into a folder of packed weights, streamed, resumable, verified.

Written as OUT.partial with its journal beside it; both carry on after a kill. The folder gets its
name only when every file was read back, so what is called OUT is whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgelm import hardware
from edgelm.checkpoint import Checkpoint
from edgelm.checkpoint.journal import Journal
from edgelm.checkpoint.manifest import FORMAT_VERSION, MANIFEST, Manifest, Module
from edgelm.checkpoint.packed_layout import ROW_STEP, first_row, to_stored
from edgelm.checkpoint.safetensors_writer import (
    Layout,
    TensorFiles,
    disk_errors,
    index_file,
    plan_layout,
    verify_files,
)
from edgelm.companions import copy_companions
from edgelm.conversion import Conversion, Target, plan_conversion
from edgelm.errors import EdgeLMError, ModelFileError, UsageError
from edgelm.files import ModelFiles
from edgelm.inspection import licence_of
from edgelm.memory import human
from edgelm.version import __version__
from quant import PackedWeight, QuantError, Scheme, Sqnr, pack

logger = logging.getLogger("edgelm")

BLOCK_BYTES = 32 << 20  # rows of a weight are read, packed and written this much at a time
OVERHEAD_BYTES = 300 << 20
Progress = Callable[[str, int, int], None]
Announce = Callable[[int], None]


@dataclass(frozen=True)
class Quantized:
    """What ``quantize`` wrote. Peaks are of the whole process; ``resumed`` counts weights that an
    interrupted run had finished. ``peer_note`` says why transformers cannot load the folder."""

    path: str
    manifest: Manifest
    nbytes: int
    resumed: int
    promised_peak_bytes: int
    peak_rss_bytes: int
    peer_note: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-able data."""
        return {**vars(self), "manifest": self.manifest.to_dict()}


def quantize(
    model: str | Path | ModelFiles, out: str | Path, *, quant: Any = "int4", method: str = "rtn",
    revision: str | None = None, offline: bool = False, progress: Progress | None = None,
    announce: Announce | None = None,
) -> Quantized:  # fmt: skip
    """Write a model as a folder of packed weights, which ``load`` and other engines read.

    An interrupted call leaves OUT.partial; the same call goes on where it stopped and ends with
    the same bytes.

    Args:
        quant, method: as for ``load``. A file's own integers stay where the recipe accepts them.
        progress: called with (weight, bytes done, bytes in all).
        announce: called with the promised peak of memory in bytes, before any work.

    Raises:
        UsageError: OUT exists, or the recipe or method is wrong.
        ModelFileError: a weight is damaged, or does not read back as written.
        EdgeLMError: the disk is full or refuses.
    """
    runtime = hardware.resident_bytes()
    files = model if isinstance(model, ModelFiles) else ModelFiles.open(
        model, revision=revision, offline=offline
    )  # fmt: skip
    job = Job(files, Path(out), plan_conversion(files, quant, method), method)
    promised = runtime + job.scratch_bytes
    if announce:
        announce(promised)
    with disk_errors(job.out):
        manifest = job.run(progress)
    peak = hardware.peak_resident_bytes()
    resumed, note = job.resumed, job.conversion.peer_note
    if note:
        logger.warning("%s: %s.", job.out, note)
    return Quantized(
        str(job.out), manifest, job.layout.nbytes, resumed, promised, peak, note
    )  # fmt: skip


class Job:
    """One folder being written."""

    def __init__(self, files: ModelFiles, out: Path, conversion: Conversion, method: str) -> None:
        self.files, self.out, self.conversion, self.method = files, out, conversion, method
        self.partial = out.with_name(out.name + ".partial")
        self.journal = Journal(out.with_name(out.name + ".partial.journal"), self._identity())
        scales = conversion.scale_dtype
        self.layout: Layout = plan_layout([t.specs(scales) for t in conversion.targets])
        self.resumed = 0

    @property
    def scratch_bytes(self) -> int:
        """Memory promised beside what the process has already: two largest tensors and a bit."""
        checkpoint = self.files.checkpoint
        largest = max(checkpoint.info(name).nbytes for name in checkpoint.names())
        return 2 * largest + OVERHEAD_BYTES

    def run(self, progress: Progress | None) -> Manifest:
        """Write, verify, rename; the manifest of what was written."""
        if self.out.exists():
            return self._finished_before()
        self._prepare()
        self._write_weights(progress)
        tensors = {t: d for entry in self.journal.done.values() for t, d in entry["sha256"].items()}
        digests = verify_files(self.partial, self.layout, tensors)
        manifest = self._write_rest(digests)
        sync_folder(self.partial)
        os.rename(self.partial, self.out)
        sync_folder(self.out.parent, files=False)
        self.journal.remove()
        return manifest

    def _finished_before(self) -> Manifest:
        """A run killed after the folder got its name leaves a journal and nothing to do."""
        if self.partial.exists() or not self.journal.read():
            raise UsageError(
                f"{self.out} exists and is left as it is. Give another name, or delete it first."
            )
        self.resumed = len(self.journal.done)
        self.journal.remove()
        return Manifest.read(self.out / MANIFEST)

    def _prepare(self) -> None:
        """Files at full length and a journal; those of an interrupted run where they fit."""
        sizes = {p.name: p.stat().st_size for p in self.partial.glob("*")}
        ours = self.journal.read()
        if ours and self.layout.sizes.items() <= sizes.items():
            self.resumed = len(self.journal.done)
            return
        if self.partial.exists():
            if not ours:
                logger.warning("%s is of another job and is begun anew.", self.partial)
            shutil.rmtree(self.partial)
        free = shutil.disk_usage(_existing(self.out.parent)).free
        if free < self.layout.nbytes:
            raise EdgeLMError(
                f"{self.out} needs {human(self.layout.nbytes)} and its disk has {human(free)} "
                "free. Free some space, or give a place on another disk."
            )
        self.partial.mkdir(parents=True)
        self.journal.start()
        try:
            TensorFiles.create(self.partial, self.layout)
        except OSError:  # nothing of worth is in them yet
            shutil.rmtree(self.partial)
            self.journal.remove()
            raise

    def _write_weights(self, progress: Progress | None) -> None:
        scales = self.conversion.scale_dtype
        total = sum(place.nbytes for place in self.layout.places.values())
        done = 0
        files = TensorFiles(self.partial, self.layout)
        try:
            for target in self.conversion.targets:
                names = list(target.specs(scales))
                if target.name not in self.journal.done:
                    error = Sqnr()
                    self._write(target, files, error)
                    db = error.db if error.noise else None
                    entry = {"error_db": db, "sha256": files.finish(names)}
                    self.journal.add(target.name, entry)
                done += sum(self.layout.places[name].nbytes for name in names)
                if progress:
                    progress(target.name, done, total)
            files.sync()
        finally:
            files.close()

    def _write(self, target: Target, files: TensorFiles, error: Sqnr) -> None:
        """One weight, a block of rows at a time."""
        checkpoint, scheme = self.files.checkpoint, target.scheme
        for start, stop in _blocks(target):
            if scheme is None:
                rows = checkpoint.read(target.name, start, stop).to(target.dtype)
                if not bool(torch.isfinite(rows).all()):
                    raise _damaged(checkpoint, target.name, "NaN or infinity")
                files.write(target.name, start, rows)
                continue
            if target.kept:
                packed = checkpoint.read_packed(target.name, start, stop)
            else:
                packed = self._pack(target.name, scheme, start, stop, error)
            stored = to_stored(packed, self.conversion.scale_dtype)
            stem = target.name.removesuffix("weight")
            for suffix, part in stored.items():
                files.write(stem + suffix, first_row(suffix, scheme, start), part)
        if scheme is not None:
            stem = target.name.removesuffix("weight")
            files.write(f"{stem}weight_shape", 0, torch.tensor(target.shape))

    def _pack(self, name: str, scheme: Scheme, start: int, stop: int, error: Sqnr) -> PackedWeight:
        rows = self.files.checkpoint.read(name, start, stop)
        shape = (rows.shape[0], rows.shape[1])
        try:
            return pack([(0, rows)], shape, scheme, self.method, error=error)[0]
        except QuantError as problem:
            raise _damaged(self.files.checkpoint, name, str(problem)) from problem

    def _write_rest(self, digests: dict[str, str]) -> Manifest:
        """Everything but weights; the manifest last."""
        config = dict(self.files.checkpoint.config)
        if self.conversion.settings is not None:
            config["quantization_config"] = self.conversion.settings
        (self.partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        index_file(self.partial, self.layout)
        copy_companions(self.files, self.partial)
        names = sorted(path.name for path in self.partial.iterdir() if path.name != MANIFEST)
        sums = {name: digests.get(name) or file_sha256(self.partial / name) for name in names}
        manifest = self._manifest(sums)
        text = json.dumps(manifest.to_dict(), indent=1, ensure_ascii=False) + "\n"
        (self.partial / MANIFEST).write_text(text, "utf-8")
        return manifest

    def _manifest(self, files: dict[str, str]) -> Manifest:
        conversion, modules = self.conversion, {}
        for target in conversion.targets:
            if target.scheme is not None:
                db = self.journal.done[target.name]["error_db"]
                outputs, inputs = target.shape
                modules[target.name] = Module(
                    target.scheme, (outputs, inputs), target.parts, db, target.note
                )
        nbytes = sum(place.nbytes for place in self.layout.places.values())
        return Manifest(
            writer=f"edgelm {__version__}",
            recipe=conversion.recipe.to_dict() | {"name": str(conversion.recipe)},
            method=self.method,
            licence=licence_of(self.files.checkpoint),
            bits_per_weight=nbytes * 8 / conversion.parameters,
            modules=modules,
            floats=tuple(t.name for t in conversion.targets if t.parts and t.scheme is None),
            files=files,
        )

    def _identity(self) -> str:
        """Changes with the input's files, the settings and the format."""
        path = self.files.checkpoint.path
        own = sorted(path.iterdir()) if path.is_dir() else [path]
        stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in own]
        told = [FORMAT_VERSION, __version__, stats, self.method, repr(self.conversion)]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _blocks(target: Target) -> Iterator[tuple[int, int]]:
    """Row ranges of about BLOCK_BYTES in float32; a scalar is one row."""
    rows = target.shape[0] if target.shape else 1
    row_bytes = 4 * max(1, torch.Size(target.shape[1:]).numel())
    step = max(1, BLOCK_BYTES // row_bytes // ROW_STEP) * ROW_STEP
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _damaged(checkpoint: Checkpoint, name: str, problem: str) -> ModelFileError:
    return ModelFileError(f"{checkpoint.path}: tensor {name}: {problem}")


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path, files: bool = True) -> None:
    """The folder's entries, and its files' content, are on the disk when this returns."""
    for path in folder.iterdir() if files else ():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if os.name == "posix":  # elsewhere a folder cannot be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
