"""Export of a model to one .gguf file for llama.cpp: the reader's tables applied in reverse."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgelm.checkpoint.certificate import beside, read_beside, write_beside
from edgelm.checkpoint.gguf_blocks import to_blocks
from edgelm.checkpoint.gguf_families import FAMILIES, ROPE_FACTORS, Family, RowOrder
from edgelm.checkpoint.gguf_files import GGUFCheckpoint
from edgelm.checkpoint.gguf_kinds import in_scheme_of, kind_for
from edgelm.checkpoint.gguf_writer import Entry, GGUFTensors, create_gguf
from edgelm.checkpoint.journal import Journal
from edgelm.checkpoint.manifest import Manifest
from edgelm.errors import ModelFileError, UnsupportedModelError, UsageError
from edgelm.models.model_files import ModelFiles, weights_sha256
from edgelm.models.weight_names import WeightNames
from edgelm.ops.position import llama3_divisors
from edgelm.planning.setting_table import QuantChoice
from edgelm.progress import Progress
from edgelm.quantization.calibration import Calibration, curved
from edgelm.quantization.certification import Certification
from edgelm.quantization.conversion import (
    Conversion,
    Target,
    assembled,
    manifest_of,
    plan_conversion,
)
from edgelm.quantization.converted_rows import converted_rows, row_blocks
from edgelm.quantization.gguf_keys import model_metadata
from edgelm.quantization.gguf_vocabulary import vocabulary_metadata
from edgelm.quantization.packed_folder import file_sha256, job_identity, require_space, sync_folder
from quant import Curvature, PackedWeight, QuantError, Recipe, Scheme, Sqnr
from quant.recipe import four_bits

logger = logging.getLogger("edgelm")

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# llama.cpp's general.file_type; of those with several mixes the one that it assumes itself.
FILE_TYPES = {
    **{"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q4_K": 15},
    **{"Q5_K": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30, "BF16": 32},
}
_FIVE = ["q5_k", "q5_0", "q8_0"]
_SIX = ["q6_k", "q8_0"]
RECIPES: dict[str, dict[str, Any]] = {
    "int4": four_bits(["iq4_xs", "iq4_nl", "q8_0"], _FIVE, _SIX),
    "int5": {"default": _FIVE, "overrides": {"embed": _SIX, "head": _SIX}},
    "int6": {"default": _SIX},
    "int8": {"default": "q8_0"},
}
"""Meaning of the short names in GGUF files, in types that these have. ``quant.recipe`` has more of
them, so that some tables are smaller there."""


def plan_gguf(files: ModelFiles, quant: QuantChoice, method: str) -> Conversion:
    """As ``plan_conversion``, with the short recipes mapped to schemes that GGUF supports.

    Of a rule's schemes a matrix takes the first that GGUF has for its rows.
    """
    plan = plan_conversion(files, _recipe(files, quant), method, keep=quant == "auto")
    names = assembled(files).names
    return replace(
        plan,
        targets=tuple(
            _held(target, plan.recipe, names) if target.parts else target for target in plan.targets
        ),
    )


def _recipe(files: ModelFiles, quant: QuantChoice) -> QuantChoice:
    wanted = "int4" if quant == "auto" else quant
    if not isinstance(wanted, str) or wanted not in RECIPES:
        return wanted
    data = RECIPES[wanted]
    if not files.config.tied and "overrides" in data:
        # A table that is only looked up matters half as much as one that multiplies as well.
        data = data | {"overrides": data["overrides"] | {"embed": _FIVE}}
    return replace(Recipe.parse(data), name=wanted)


def _held(target: Target, recipe: Recipe, names: WeightNames) -> Target:
    """The target in a scheme that GGUF has; as it is where its rule names none."""
    if target.scheme is None or _holds(target.scheme, target.shape):
        return target
    note = f"GGUF has no {target.scheme} for rows of {target.shape[1]}"
    for scheme in recipe.rule_for(names.recipe_name(target.parts[0])).schemes:
        if scheme is None or _holds(scheme, target.shape):
            return replace(target, scheme=scheme, kept=False, note=note)
    return target


def _holds(scheme: Scheme, shape: tuple[int, ...]) -> bool:
    try:
        scheme.check(shape)
        kind_for(scheme, shape)
    except QuantError:
        return False
    return True


class GGUFExport:
    """One .gguf file being written.

    Raises:
        UnsupportedModelError, UsageError: GGUF or llama.cpp cannot express this model or scheme.
    """

    def __init__(
        self, files: ModelFiles, out: Path, conversion: Conversion, method: str,
        calibration: Calibration | None = None, certification: Certification | None = None,
    ) -> None:  # fmt: skip
        self.files, self.out, self.conversion, self.method = files, out, conversion, method
        self.calibration, self.certification = calibration, certification
        self.partial = out.with_name(out.name + ".partial")
        job = job_identity(files, conversion, method, calibration)
        self.journal = Journal(out.with_name(out.name + ".partial.journal"), job)
        self.targets = conversion.targets
        self.resumed = 0
        family = FAMILIES.get(files.config.model_type)
        if family is None:
            raise UnsupportedModelError(
                f"{files.name} is a {files.config.model_type} model; GGUF files are written for "
                f"{', '.join(FAMILIES)}. Give a folder as OUT."
            )
        self.family: Family = family
        self.metadata = model_metadata(files) | vocabulary_metadata(files)
        self.entries = [self._entry(target) for target in self.targets]
        self.divisors = self._divisors()
        kinds = [entry.kind for entry in self.entries if len(entry.shape) == 2]
        common = max(dict.fromkeys(kinds), key=kinds.count, default="F32")
        self.metadata["general.file_type"] = FILE_TYPES[common]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self.entries)

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by name that are held in addition to rows: a tensor, and it in another order."""
        sizes = [
            entry.nbytes * (1 if self.family.order(entry.name) is None else 2)
            for entry in self.entries
        ]
        return {"largest tensor as written": max(sizes)}

    def run(self, progress: Progress | None) -> Manifest:
        """Write a temporary file, verify and rename it; returns the manifest."""
        if self.out.exists():
            return self._finished_before()
        self._prepare()
        tensors = GGUFTensors(self.partial)
        try:
            tensors.verify(self._write_tensors(tensors, progress))
        finally:
            tensors.close()
        manifest = self._certified(self._manifest(self.partial))
        os.rename(self.partial, self.out)
        sync_folder(self.out.parent, files=False)
        self.journal.remove()
        return manifest

    def _finished_before(self) -> Manifest:
        """Manifest of a run that was killed after renaming the file and left only its journal."""
        if self.partial.exists() or not self.journal.read():
            raise UsageError(
                f"{self.out} exists and is not overwritten. Give another name, or delete it first."
            )
        self.resumed = len(self.journal.done)
        manifest = replace(self._manifest(self.out), certificate=read_beside(self.out))
        self.journal.remove()
        return manifest

    def _prepare(self) -> None:
        """Create the file at full length and a journal, or reuse those of an interrupted run."""
        ours = self.journal.read()
        if ours and self.journal.done and self.partial.exists():
            self.resumed = len(self.journal.done)
            return
        if self.partial.exists() and not ours:
            logger.warning("%s belongs to a different job; starting over.", self.partial)
        require_space(self.out, self.nbytes)
        self.journal.start()
        try:
            entries = [*self.entries, *self._rope_entry()]
            create_gguf(self.partial, self.files.config.model_type, self.metadata, entries)
        except OSError:  # it holds nothing worth keeping yet
            self.partial.unlink(missing_ok=True)
            self.journal.remove()
            raise

    def _write_tensors(self, tensors: GGUFTensors, progress: Progress | None) -> dict[str, str]:
        """Write what an earlier run had not finished; returns the sha256 of every tensor."""
        done, finished = 0, self.journal.done
        entries = {t.name: entry for t, entry in zip(self.targets, self.entries, strict=True)}
        for target, curvature in curved(self.calibration, self.targets, finished):
            entry = entries[target.name]
            if target.name not in finished:
                error = Sqnr()
                digest = tensors.write(entry.name, self._tensor(target, entry, error, curvature))
                db = error.db if error.noise else None
                told = {"tensor": entry.name, "sha256": digest, "error_db": db}
                self.journal.add(target.name, told)
            del curvature  # before the next layer's Hessians are allocated
            done += entry.nbytes
            if progress:
                progress(target.name, done, self.nbytes)
        digests = {entry["tensor"]: entry["sha256"] for entry in self.journal.done.values()}
        if self.divisors is not None:
            digests[ROPE_FACTORS] = tensors.write(ROPE_FACTORS, self.divisors.view(torch.uint8))
        return digests

    def _manifest(self, written: Path) -> Manifest:
        errors = {name: entry["error_db"] for name, entry in self.journal.done.items()}
        sums = {self.out.name: file_sha256(written)}
        return manifest_of(self.files, self.conversion, self.method, errors, self.nbytes, sums)

    def _certified(self, manifest: Manifest) -> Manifest:
        """The manifest with a certificate, which is written beside the file."""
        beside(self.out).unlink(missing_ok=True)  # of another file, which had this name
        if self.certification is None:
            return manifest
        written = ModelFiles(str(self.out), GGUFCheckpoint(self.partial))
        digest = weights_sha256([bytes.fromhex(manifest.files[self.out.name])])
        found = self.certification.measure(written, manifest, digest)
        if found is not None:
            write_beside(self.out, found)
        return replace(manifest, certificate=found)

    def _tensor(
        self, target: Target, entry: Entry, error: Sqnr, curvature: Curvature | None
    ) -> Tensor:
        """The tensor's bytes, uint8 [rows, row_bytes]; adds the loss of packing to ``error``."""
        raw = torch.empty(entry.shape[0], entry.row_bytes, dtype=torch.uint8)
        for start, stop in row_blocks(target):
            rows = converted_rows(
                self.files.checkpoint, target, start, stop, self.method, error, curvature
            )
            if isinstance(rows, PackedWeight):
                raw[start:stop] = self._blocks(rows, entry)
                continue
            floats = rows.float() + self.family.offset(entry.name)
            stored = floats.to(FLOATS[entry.kind]).contiguous().view(torch.uint8)
            raw[start:stop] = stored.view(stop - start, entry.row_bytes)
        order = self.family.order(entry.name)
        return raw if order is None else raw[self._permutation(order, len(raw))]

    def _blocks(self, rows: PackedWeight, entry: Entry) -> Tensor:
        try:
            return to_blocks(in_scheme_of(entry.kind, rows), entry.kind)
        except QuantError as error:  # numbers that headers do not tell
            raise ModelFileError(
                f"{self.files.checkpoint.path}: tensor {entry.name} in a GGUF file: {error}"
            ) from error

    def _permutation(self, order: RowOrder, rows: int) -> Tensor:
        """Index of the row of Hugging Face's tensor for each row of the file."""
        config = self.files.config
        own = config.num_kv_heads if order.heads_key.endswith("_kv") else config.num_heads
        ids = torch.arange(rows)
        if order.parts > 1:
            return ids.view(own, order.parts, -1).transpose(0, 1).flatten()
        return ids.view(own, 2, -1).transpose(1, 2).flatten() if order.pairs else ids

    def _entry(self, target: Target) -> Entry:
        name = self._gguf_name(target.name)
        if target.scheme is None:
            matrix = len(target.shape) == 2
            kinds = [kind for kind, dtype in FLOATS.items() if dtype == target.dtype and matrix]
            kind = kinds[0] if kinds else "F32"
            return Entry(name, kind, target.shape)
        try:
            return Entry(name, kind_for(target.scheme, target.shape), target.shape)
        except QuantError as error:
            raise UsageError(f"quant: {target.name}: {error}.") from error

    def _gguf_name(self, hf_name: str) -> str:
        stem, _, kind = hf_name.rpartition(".")
        for pattern, theirs in self.family.names.items():
            for candidate in (theirs, theirs.removeprefix("transformer.")):
                match = re.fullmatch(re.escape(candidate).replace(r"\*", r"(\d+)"), stem)
                if match:
                    layer = match[1] if match.groups() else ""
                    return f"{pattern.replace('*', layer)}.{kind}"
        raise UnsupportedModelError(
            f"{self.files.name}: tensor {hf_name} has no name in GGUF files of "
            f"{self.files.config.model_type}. Give a folder as OUT."
        )

    def _rope_entry(self) -> list[Entry]:
        if self.divisors is None:
            return []
        return [Entry(ROPE_FACTORS, "F32", tuple(self.divisors.shape))]

    def _divisors(self) -> Tensor | None:
        rope = self.files.config.rope
        if rope is None or rope.rope_type != "llama3":
            return None
        return llama3_divisors(rope)
