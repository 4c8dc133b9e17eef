"""Conversion plan: all decisions about the stored weights of a model that is quantized.

Weights keep the names of the file. A matrix that several canonical ones share (query_key_value of
BLOOM and Persimmon) is packed as a whole, so that transformers finds it under its name; rows are
packed independently of each other, so its integers are those of its parts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from edgelm.checkpoint.manifest import Manifest, Module
from edgelm.checkpoint.packed_layout import Spec
from edgelm.checkpoint.protocol import Checkpoint
from edgelm.errors import UnsupportedModelError, UsageError
from edgelm.models import family_of
from edgelm.models.assembled import Assembled
from edgelm.models.model_files import ModelFiles
from edgelm.planning.setting_table import QuantChoice
from edgelm.planning.settings import refuse_unused_overrides
from edgelm.quantization.folder_layout import LAYOUTS, FolderLayout, choose_layout
from edgelm.reports.inspection import HEAD, licence_of
from edgelm.version import __version__
from quant import CALIBRATED_METHODS, METHODS, PackedWeight, QuantError, Recipe, Scheme

TABLE_METHOD = "mse"  # for an embedding that is not the head when the method is calibrated

DTYPES = {
    name: getattr(torch, name) for name in ("float64", "float32", "float16", "bfloat16")
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """One weight of the new folder.

    scheme: None for a weight copied unchanged, in ``dtype``. kept: the file's integers are kept.
    parts: canonical names of the matrices in it, none for norms, biases and other tensors.
    source: the weight's name in the old files, if it is another one.
    layout: the name in ``LAYOUTS`` of the form in which a packed weight is stored.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    scheme: Scheme | None = None
    kept: bool = False
    parts: tuple[str, ...] = ()
    note: str = ""
    source: str = ""
    layout: str = ""

    def specs(self) -> dict[str, Spec]:
        """Dtype and shape of its stored tensors, by full name."""
        if self.scheme is None:
            return {self.name: (self.dtype, self.shape)}
        found = LAYOUTS[self.layout].specs(self.scheme, (self.shape[0], self.shape[1]))
        return {self.stem + suffix: spec for suffix, spec in found.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers: codes, scales and zeros if packed."""
        if self.scheme is None:
            return math.prod(self.shape) * self.dtype.itemsize
        return self.scheme.nbytes(self.shape)

    @property
    def stem(self) -> str:
        """Common prefix of the names of its stored tensors."""
        return self.name.removesuffix("weight")

    def stored(self, rows: PackedWeight, start: int) -> Iterator[tuple[str, int, torch.Tensor]]:
        """Yield (full name, row of that tensor, numbers) of the weight's rows from ``start`` on."""
        layout = LAYOUTS[self.layout]
        for suffix, part in layout.to_stored(rows).items():
            row = layout.first_row(suffix, rows.scheme, self.shape[1], start)
            yield self.stem + suffix, row, part

    def constants(self) -> dict[str, torch.Tensor]:
        """The stored tensors of a packed weight that do not depend on its numbers."""
        assert self.scheme is not None
        found = LAYOUTS[self.layout].constants(self.scheme, (self.shape[0], self.shape[1]))
        return {self.stem + suffix: part for suffix, part in found.items()}


@dataclass(frozen=True)
class Conversion:
    """All weights of the new folder, in the order of the old one."""

    targets: tuple[Target, ...]
    recipe: Recipe
    layout: FolderLayout

    @property
    def nbytes(self) -> int:
        """Bytes of all numbers; beside them files hold shapes and names."""
        return sum(target.nbytes for target in self.targets)

    @property
    def parameters(self) -> int:
        return sum(math.prod(target.shape) for target in self.targets)


def plan_conversion(
    files: ModelFiles, quant: QuantChoice, method: str, keep: bool = False
) -> Conversion:
    """Plan the conversion of every weight of a model, from headers alone.

    keep: leave matrices that are quantized already as they are, whatever the recipe says, and so
        those beside them that a quantized file left in floats; "auto" does, and is int4 else.

    Raises:
        UsageError: unknown scheme or method, or overrides that match nothing.
        ModelFileError: a weight is missing or has another shape.
    """
    allowed = (*METHODS, *CALIBRATED_METHODS)
    if method not in allowed:
        raise UsageError(f"method {method!r} is not known; allowed: {', '.join(allowed)}.")
    try:
        recipe = Recipe.parse("int4" if quant == "auto" else quant)
        matrices = _matrices(files, recipe, keep or quant == "auto")
    except QuantError as error:
        raise UsageError(f"quant: {error}") from error
    if files.config.tied and HEAD in matrices:  # files that hold a tied matrix as the head only
        matrices[HEAD] = replace(matrices[HEAD], name=_embedding(files), source=HEAD)
    skipped = {HEAD} - matrices.keys() if files.config.tied else set()
    targets = tuple(
        matrices.get(name) or _copied(files.checkpoint, name)
        for name in files.checkpoint.names()
        if name not in skipped
    )
    if quant == "auto" and any(target.kept for target in targets):
        recipe = replace(recipe, name="auto")
    layout = choose_layout(targets, HEAD.removesuffix(".weight") if files.config.tied else "")
    targets = tuple(replace(target, layout=layout.method) for target in targets)
    if method in CALIBRATED_METHODS:
        targets = tuple(_said_of_table(target, files.config.tied) for target in targets)
    return Conversion(targets, recipe, layout)


def assembled(files: ModelFiles) -> Assembled:
    """The model without weights, with the head of a language model where the files have one."""
    has_head = files.config.tied or HEAD in files.checkpoint.names()
    return files.assemble("causal-lm" if has_head else "base")


def _said_of_table(target: Target, tied: bool) -> Target:
    """Note for an embedding, which multiplies no inputs unless it is the head too."""
    if tied or target.scheme is None or target.kept or "embed" not in target.parts:
        return target
    return replace(target, note=f"{TABLE_METHOD}: an embedding has no inputs to calibrate on")


def _embedding(files: ModelFiles) -> str:
    """The embedding's name, whatever the files hold."""
    source = family_of(files.checkpoint.config).WEIGHTS["embed"]
    return f"{source}.weight"


def _matrices(files: ModelFiles, recipe: Recipe, keep: bool) -> dict[str, Target]:
    """The matrices that a recipe applies to, by the file's names."""
    model = assembled(files)
    names = model.names
    parts: dict[str, list[str]] = {}
    for name, shape in model.decoder.matrices():
        names.info(name, shape)
        parts.setdefault(names.file_name(name), []).append(name)
    refuse_unused_overrides(recipe, model)
    return {
        stored: _matrix(files, stored, tuple(own), recipe, names.recipe_name(own[0]), keep)
        for stored, own in parts.items()
    }


def _matrix(
    files: ModelFiles, name: str, parts: tuple[str, ...], recipe: Recipe, known: str, keep: bool
) -> Target:
    """known: the matrix's name in recipes."""
    info = files.checkpoint.info(name)
    float_dtype = DTYPES.get(info.dtype, torch.float32)
    if info.scheme is not None and (keep or recipe.accepts(known, info.scheme)):
        note = "kept as stored"
        return Target(name, info.shape, float_dtype, info.scheme, True, parts, note)
    if keep and info.stays_float:
        note = "left in floats by the file"
        return Target(name, info.shape, float_dtype, None, False, parts, note)
    scheme = recipe.schemes_for(known, info.shape, float_dtype)[0]
    note = recipe.fallback_note(known, info.shape, scheme)
    if keep and info.nearest is not None:
        scheme = info.nearest
    if info.scheme is not None or info.nearest is not None:
        note = f"requantized: the file holds {info.dtype}"
    if scheme.is_float:
        return Target(name, info.shape, float_dtype, None, False, parts, note)
    return Target(name, info.shape, float_dtype, scheme, False, parts, note)


def _copied(checkpoint: Checkpoint, name: str) -> Target:
    info = checkpoint.info(name)
    if info.scheme is None and info.nearest is None and info.dtype not in DTYPES:
        raise UnsupportedModelError(
            f"{checkpoint.path}: tensor {name} is stored as {info.dtype}; supported: "
            f"{', '.join(DTYPES)}. Convert the model to one of these."
        )
    return Target(name, info.shape, DTYPES.get(info.dtype, torch.float32))


def manifest_of(
    files: ModelFiles, conversion: Conversion, method: str, errors: dict[str, float | None],
    nbytes: int, sums: dict[str, str],
) -> Manifest:  # fmt: skip
    """The manifest of the new folder. errors: in dB by weight; nbytes: of all tensors."""
    modules = {}
    for target in conversion.targets:
        if target.scheme is not None:
            outputs, inputs = target.shape
            modules[target.name] = Module(
                target.scheme, (outputs, inputs), target.parts, errors[target.name], target.note
            )
    return Manifest(
        writer=f"edgelm {__version__}",
        recipe=conversion.recipe.to_dict() | {"name": str(conversion.recipe)},
        method=method,
        licence=licence_of(files.checkpoint),
        bits_per_weight=nbytes * 8 / conversion.parameters,
        modules=modules,
        floats=tuple(t.name for t in conversion.targets if t.parts and t.scheme is None),
        files=sums,
        source_sha256=files.source_sha256 or files.sha256,
        format_version=conversion.layout.format_version,
    )
