"""Inspection of a model's files and of their default loading plan, from headers alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from statistics import fmean
from typing import Any

from edgelm.checkpoint.certificate import read_beside
from edgelm.checkpoint.packed import PackedCheckpoint
from edgelm.checkpoint.protocol import Checkpoint, TensorInfo
from edgelm.config import ModelConfig
from edgelm.errors import EdgeLMError
from edgelm.models.model_files import ModelFiles
from edgelm.planning.settings import Settings
from edgelm.planning.solver import solve
from edgelm.text.lines import UTF8

HEAD = "lm_head.weight"  # in every family; a tied model may store it a second time
_FRONT_MATTER_LICENCE = re.compile(r"\A---\n(?:.*\n)*?license:\s*(\S+)\s*\n(?:.*\n)*?---", re.M)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of the file: the file's dtype, bytes including scales."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


@dataclass(frozen=True)
class StoredType:
    """All tensors of one dtype."""

    dtype: str
    tensors: int
    parameters: int
    nbytes: int


@dataclass(frozen=True)
class Change:
    """Matrices that loading with default settings converts or requantizes.

    ``stored`` is the file's type, ``loaded`` the scheme in memory; ``names`` are the file's.
    """

    stored: str
    loaded: str
    parameters: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class Loading:
    """Effect of ``load`` with default settings. ``kept`` counts the matrices whose integers are
    used unchanged; ``error`` says why the files cannot be loaded, None if they can."""

    kept: int = 0
    changes: tuple[Change, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class Inspection:
    """Report on a model. ``tokenizer`` holds its facts, or ``error`` if the files have none.

    ``nbytes``: of all tensors in the file. ``bits_per_weight``: of their numbers, as a plan and a
    manifest count them.

    ``limits``: context in tokens, rope, window, vocabulary and the like.
    ``certificate``: of a folder that ``quantize`` wrote, its format version, recipe, method and
    ``measured``, which is what its predictions lost (None if that was not measured); of a .gguf
    file that alone; else None.
    """

    model: str
    path: str
    format: str
    licence: str | None
    config: dict[str, Any]
    parameters: int
    nbytes: int
    bits_per_weight: float
    types: tuple[StoredType, ...]
    tokenizer: dict[str, Any]
    limits: dict[str, Any]
    certificate: dict[str, Any] | None
    loading: Loading
    tensors: tuple[StoredTensor, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def inspect_files(files: ModelFiles) -> Inspection:
    """Report tensors, sizes, tokenizer and licence of an opened model."""
    checkpoint = files.checkpoint
    infos = {name: checkpoint.info(name) for name in checkpoint.names()}
    tensors = tuple(StoredTensor(n, i.shape, i.dtype, i.nbytes) for n, i in infos.items())
    parameters = sum(prod(tensor.shape) for tensor in tensors)
    numbers = sum(map(_number_bytes, infos.values()))
    return Inspection(
        model=files.name,
        path=str(checkpoint.path),
        format=checkpoint.format,
        licence=licence_of(checkpoint),
        config=asdict(files.config),
        parameters=parameters,
        nbytes=sum(tensor.nbytes for tensor in tensors),
        bits_per_weight=numbers * 8 / parameters if parameters else 0.0,
        types=_types(tensors),
        tokenizer=_tokenizer(files),
        limits=_limits(files.config),
        certificate=_certificate(checkpoint),
        loading=_loading(files),
        tensors=tensors,
    )


def _number_bytes(info: TensorInfo) -> int:
    """Bytes of a tensor's codes, scales and zeros, without the shapes and names that some formats
    store beside them."""
    if info.scheme is None:
        return info.nbytes
    return info.scheme.nbytes((info.shape[0], info.shape[1]))


def _types(tensors: Iterable[StoredTensor]) -> tuple[StoredType, ...]:
    by_dtype: dict[str, list[StoredTensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    return tuple(
        StoredType(dtype, len(own), sum(prod(t.shape) for t in own), sum(t.nbytes for t in own))
        for dtype, own in by_dtype.items()
    )


def _tokenizer(files: ModelFiles) -> dict[str, Any]:
    try:
        tokenizer = files.tokenizer
    except EdgeLMError as error:
        return {"error": str(error)}
    return {
        "vocab_size": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id,
        "eos_ids": sorted(tokenizer.eos_ids),
        "pad_id": tokenizer.pad_id,
        "add_bos": tokenizer.add_bos,
        "chat_template": tokenizer.chat_template is not None,
    }


def _limits(config: ModelConfig) -> dict[str, Any]:
    """Limits on prompts and settings; ``windows`` counts layers by window."""
    rope = config.rope
    windows = Counter(window for window in config.windows if window is not None)
    return {
        "context": config.max_context,
        "beyond_context": config.open_ended,
        "rope": None if rope is None else rope.rope_type,
        "rope_theta": None if rope is None else rope.theta,
        "trained_context": None if rope is None else rope.trained_context,
        "windows": {str(window): layers for window, layers in windows.items()},
        "vocabulary": config.vocab_size,
        "not_in_float16": config.not_in_float16 or None,
    }


def _loading(files: ModelFiles) -> Loading:
    """Report of the plan ``load`` would make; a model without a language head is loaded bare."""
    checkpoint = files.checkpoint
    try:
        has_head = files.config.tied or HEAD in checkpoint.names()
        model = files.assemble("causal-lm" if has_head else "base")
        plan = solve(model, Settings())
    except EdgeLMError as error:
        return Loading(error=str(error))
    kept = 0
    changes: dict[tuple[str, str], dict[str, int]] = {}
    for product in plan.products:
        if product.stored:
            kept += len(product.names)
            continue
        for name, shape in zip(product.names, product.shapes, strict=True):
            stored = model.names.info(name, shape).dtype
            if stored != product.scheme:
                found = changes.setdefault((stored, product.scheme), {})
                file_name = model.names.file_name(name)
                found[file_name] = found.get(file_name, 0) + prod(shape)
    converted = tuple(
        Change(stored, loaded, sum(found.values()), tuple(found))
        for (stored, loaded), found in changes.items()
    )
    return Loading(kept, converted)


def _certificate(checkpoint: Checkpoint) -> dict[str, Any] | None:
    if not isinstance(checkpoint, PackedCheckpoint):
        beside = None if checkpoint.path.is_dir() else read_beside(checkpoint.path)
        return None if beside is None else {"measured": beside.to_dict()}
    manifest = checkpoint.manifest
    errors = [m.error_db for m in manifest.modules.values() if m.error_db is not None]
    return {
        "measured": manifest.certificate and manifest.certificate.to_dict(),
        "format_version": manifest.format_version,
        "writer": manifest.writer,
        "recipe": manifest.recipe,
        "method": manifest.method,
        "matrices": len(manifest.modules),
        "lowest_error_db": min(errors, default=None),
        "mean_error_db": fmean(errors) if errors else None,
    }


def licence_of(checkpoint: Checkpoint) -> str | None:
    """Licence in the metadata, else in a model card's front matter, else a licence file's name."""
    if isinstance(checkpoint, PackedCheckpoint) and checkpoint.manifest.licence:
        return checkpoint.manifest.licence
    told = checkpoint.metadata.get("general.license")
    if told or not checkpoint.path.is_dir():
        return str(told) if told else None
    card = checkpoint.path / "README.md"
    if card.is_file():
        found = _FRONT_MATTER_LICENCE.search(_beginning(card))
        if found:
            return found[1]
    return next((path.name for path in sorted(checkpoint.path.glob("LICEN[CS]E*"))), None)


def _beginning(path: Path) -> str:
    with path.open(encoding=UTF8, errors="replace") as file:
        return file.read(1 << 14)
