"""Conversion plan: all decisions about the stored weights of a model that is quantized.

Weights keep the names of the file. A matrix that several canonical ones share (query_key_value of
BLOOM and Persimmon) is packed as a whole, so that transformers finds it under its name; rows are
packed independently of each other, so its integers are those of its parts. If a recipe gives the
parts different schemes, the whole takes the one with the most bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from edgelm.checkpoint import bitsandbytes_layout, packed_layout
from edgelm.checkpoint.manifest import Manifest, Module
from edgelm.checkpoint.packed_layout import Spec
from edgelm.checkpoint.protocol import Checkpoint
from edgelm.errors import UnsupportedModelError, UsageError
from edgelm.models import family_of
from edgelm.models.assembled import Assembled
from edgelm.models.model_files import ModelFiles
from edgelm.planning.setting_table import QuantChoice
from edgelm.reports.inspection import HEAD, licence_of
from edgelm.version import __version__
from quant import CALIBRATED_METHODS, METHODS, PackedWeight, QuantError, Recipe, Scheme

TABLE_METHOD = "mse"  # for embedding and head when the method is calibrated

DTYPES = {
    name: getattr(torch, name) for name in ("float64", "float32", "float16", "bfloat16")
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """One weight of the new folder.

    scheme: None for a weight copied unchanged, in ``dtype``. kept: the file's integers are kept.
    parts: canonical names of the matrices in it, none for norms, biases and other tensors.
    theirs: in bitsandbytes' layout instead of compressed-tensors'.
    source: the weight's name in the old files, if it is another one.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    scheme: Scheme | None = None
    kept: bool = False
    parts: tuple[str, ...] = ()
    note: str = ""
    theirs: bool = False
    source: str = ""

    def specs(self, scales: torch.dtype | None) -> dict[str, Spec]:
        """Dtype and shape of its stored tensors, by full name."""
        if self.scheme is None:
            return {self.name: (self.dtype, self.shape)}
        outputs, inputs = self.shape
        if self.theirs:
            found = bitsandbytes_layout.specs(self.scheme, (outputs, inputs))
        else:
            found = packed_layout.specs(self.scheme, (outputs, inputs), scales)
        return {self.stem + suffix: spec for suffix, spec in found.items()}

    @property
    def stem(self) -> str:
        """Common prefix of the names of its stored tensors."""
        return self.name.removesuffix("weight")

    def stored(
        self, rows: PackedWeight, start: int, scales: torch.dtype | None
    ) -> Iterator[tuple[str, int, torch.Tensor]]:
        """Yield (full name, row of that tensor, numbers) of the weight's rows from ``start`` on."""
        if self.theirs:
            for suffix, part in bitsandbytes_layout.to_stored(rows).items():
                row = bitsandbytes_layout.first_row(suffix, self.shape[1], start)
                yield self.stem + suffix, row, part
            return
        for suffix, part in packed_layout.to_stored(rows, scales).items():
            yield self.stem + suffix, packed_layout.first_row(suffix, rows.scheme, start), part

    def constants(self) -> dict[str, torch.Tensor]:
        """The stored tensors of a packed weight that do not depend on its numbers."""
        assert self.scheme is not None
        if not self.theirs:
            return {f"{self.stem}weight_shape": torch.tensor(self.shape)}
        found = bitsandbytes_layout.constants(self.scheme, (self.shape[0], self.shape[1]))
        return {self.stem + suffix: part for suffix, part in found.items()}


@dataclass(frozen=True)
class Conversion:
    """All weights of the new folder, in the order of the old one.

    peer_note: reason why transformers cannot load the folder, empty if it can.
    """

    targets: tuple[Target, ...]
    recipe: Recipe
    settings: dict[str, Any] | None
    peer_note: str

    @property
    def scale_dtype(self) -> torch.dtype | None:
        """float32 if transformers dequantizes while loading, in the scales' type; else None, for
        the scheme's type."""
        exact = self.settings is not None and self.settings.get("dequantize")
        return torch.float32 if exact else None

    @property
    def parameters(self) -> int:
        return sum(math.prod(target.shape) for target in self.targets)


def plan_conversion(files: ModelFiles, quant: QuantChoice, method: str) -> Conversion:
    """Plan the conversion of every weight of a model, from headers alone.

    Raises:
        UsageError: unknown scheme or method, or overrides that match nothing.
        ModelFileError: a weight is missing or has another shape.
    """
    allowed = (*METHODS, *CALIBRATED_METHODS)
    if method not in allowed:
        raise UsageError(f"method {method!r} is not known; allowed: {', '.join(allowed)}.")
    try:
        recipe = Recipe.parse("int4" if quant == "auto" else quant)
        matrices = _matrices(files, recipe)
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
    if _fits_bitsandbytes(targets):
        targets = tuple(replace(t, theirs=t.scheme is not None) for t in targets)
    if method in CALIBRATED_METHODS:
        targets = tuple(_said_of_tables(target) for target in targets)
    return Conversion(targets, recipe, *_settings(files, targets))


def assembled(files: ModelFiles) -> Assembled:
    """The model without weights, with the head of a language model where the files have one."""
    has_head = files.config.tied or HEAD in files.checkpoint.names()
    return files.assemble("causal-lm" if has_head else "base")


def _said_of_tables(target: Target) -> Target:
    """Note for embedding and head, which have no layer inputs to calibrate on."""
    if target.scheme is None or target.kept or target.parts[0] not in ("embed", "head"):
        return target
    return replace(target, note=f"{TABLE_METHOD}: only layers are calibrated")


def _fits_bitsandbytes(targets: tuple[Target, ...]) -> bool:
    """True if transformers + bitsandbytes can load it: one code for all, in linear layers alone."""
    packed = [target for target in targets if target.scheme is not None]
    return len({target.scheme for target in packed}) == 1 and all(
        bitsandbytes_layout.holds(t.scheme) and "embed" not in t.parts for t in packed if t.scheme
    )


def _embedding(files: ModelFiles) -> str:
    """The embedding's name, whatever the files hold."""
    source = family_of(files.checkpoint.config).WEIGHTS["embed"]
    return f"{source}.weight"


def _matrices(files: ModelFiles, recipe: Recipe) -> dict[str, Target]:
    """The matrices that a recipe applies to, by the file's names."""
    model = assembled(files)
    names = model.names
    parts: dict[str, list[tuple[str, tuple[int, int]]]] = {}
    for name, shape in model.decoder.matrices():
        names.info(name, shape)
        parts.setdefault(names.file_name(name), []).append((name, shape))
    known = ["head", *(name for own in parts.values() for name, _ in own)]
    unused = recipe.unused_patterns(known)
    if unused:
        raise UsageError(f"quant: the overrides {', '.join(unused)} match nothing in this model.")
    return {name: _matrix(files, name, own, recipe) for name, own in parts.items()}


def _matrix(
    files: ModelFiles, name: str, parts: list[tuple[str, tuple[int, int]]], recipe: Recipe
) -> Target:
    info = files.checkpoint.info(name)
    canonical = tuple(part for part, _ in parts)
    float_dtype = DTYPES.get(info.dtype, torch.float32)
    if info.scheme is not None and all(recipe.accepts(part, info.scheme) for part in canonical):
        note = "kept as stored"
        return Target(name, info.shape, float_dtype, info.scheme, True, canonical, note)
    wanted = [recipe.scheme_for(part, shape, float_dtype) for part, shape in parts]
    scheme = max(wanted, key=lambda each: (each.bits, each.nbytes(parts[0][1])))
    note = "" if len(set(wanted)) == 1 else "fused in the file: the scheme with the most bits"
    if info.scheme is not None or info.nearest is not None:
        note = f"requantized: the file holds {info.dtype}"
    if scheme.is_float:
        return Target(name, info.shape, float_dtype, None, False, canonical, note)
    return Target(name, info.shape, float_dtype, scheme, False, canonical, note)


def _copied(checkpoint: Checkpoint, name: str) -> Target:
    info = checkpoint.info(name)
    if info.scheme is None and info.nearest is None and info.dtype not in DTYPES:
        raise UnsupportedModelError(
            f"{checkpoint.path}: tensor {name} is stored as {info.dtype}; supported: "
            f"{', '.join(DTYPES)}. Convert the model to one of these."
        )
    return Target(name, info.shape, DTYPES.get(info.dtype, torch.float32))


def _settings(
    files: ModelFiles, targets: tuple[Target, ...]
) -> tuple[dict[str, Any] | None, str]:  # fmt: skip
    """config.json's quantization_config, and the reason why transformers cannot use it.

    transformers 5.23 with compressed-tensors 0.20 loads in two ways. With "dequantize" it reads
    every matrix by the first group, so there may be only one; without, it reads mixed groups, but
    only symmetric ones of linear layers. Other mixes are described correctly but fail to load.
    """
    packed = [target for target in targets if target.scheme is not None]
    if not packed:
        return None, ""
    floats = [t.name.removesuffix(".weight") for t in targets if t.parts and t.scheme is None]
    head = HEAD.removesuffix(".weight")
    ignored = [*floats, head] if files.config.tied else floats
    if packed[0].theirs:
        assert packed[0].scheme is not None
        return bitsandbytes_layout.settings(packed[0].scheme, packed[0].dtype, ignored), ""
    if any(t.scheme.zeros == "float" or t.scheme.codebook for t in packed if t.scheme):
        note = (
            "float zeros or codebooks, which compressed-tensors cannot express: loads in edgelm "
            "only; nf4 with the embedding in floats loads in transformers with bitsandbytes too"
        )
        return {"quant_method": "edgelm"}, note
    groups: dict[Scheme, list[str]] = {}
    for target in packed:
        assert target.scheme is not None
        groups.setdefault(target.scheme, []).append(target.name.removesuffix(".weight"))
    simple = all(scheme.zeros == "none" for scheme in groups) and not any(
        "embed" in target.parts for target in packed
    )
    one = len(groups) == 1
    note = "" if one or simple else (
        "several schemes with a quantized embedding or zero points: transformers 5.23 cannot "
        "load this mix, which edgelm does; one scheme for all, such as int4-g32, loads in both"
    )  # fmt: skip
    settings = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{number}": _group(scheme, names)
            for number, (scheme, names) in enumerate(groups.items())
        },
        "ignore": ignored,
        "dequantize": one and not simple,
    }
    return settings, note


def _group(scheme: Scheme, names: list[str]) -> dict[str, Any]:
    return {
        "targets": names,
        "weights": {
            "num_bits": scheme.bits,
            "type": "int",
            "symmetric": scheme.zeros == "none",
            "strategy": "group" if scheme.group_size else "channel",
            "group_size": scheme.group_size,
            "dynamic": False,
        },
    }


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
    )
