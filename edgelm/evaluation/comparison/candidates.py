"""Candidates of a comparison: schemes of the model's weights, and files that hold them already."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelm.errors import UsageError
from edgelm.evaluation.baseline import tokenizer_sha256
from edgelm.models.model_files import ModelFiles
from edgelm.planning.setting_table import SCHEMES, QuantChoice
from quant import QuantError, Recipe

GGUF = "gguf:"


@dataclass(frozen=True)
class Candidate:
    """``files`` loaded with ``quant``; ``label`` is how it was given."""

    label: str
    files: ModelFiles
    quant: QuantChoice

    def digest(self, settings: Mapping[str, Any]) -> str:
        """Hash of everything that its figures depend on, the work apart."""
        quant = "auto" if self.quant == "auto" else Recipe.parse(self.quant).to_dict()
        told = [self.files.sha256, quant, sorted((n, str(v)) for n, v in settings.items())]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def split(given: Iterable[str]) -> list[str]:
    """Candidates of a command line: several in one word are separated by commas."""
    found: list[str] = []
    for word in given:
        whole = os.path.exists(word.removeprefix(GGUF))
        found += [word] if whole else [part.strip() for part in word.split(",")]
    return found


def open_candidates(model: ModelFiles, given: Iterable[Any]) -> list[Candidate]:
    """The candidates with the headers of their files.

    Raises:
        UsageError: what is neither scheme nor file, given twice, or of another model.
        ModelFileError: a damaged file.
    """
    found: dict[str, Candidate] = {}
    for number, one in enumerate(given, start=1):
        own = _open(model, one, number)
        if own.label in found:
            raise UsageError(f"candidates has {own.label} twice; give it once.")
        found[own.label] = own
    return [*found.values()]


def _open(model: ModelFiles, given: Any, number: int) -> Candidate:
    name = os.fspath(given) if isinstance(given, os.PathLike) else given
    if isinstance(name, str) and (name.startswith(GGUF) or name.lower().endswith(".gguf")):
        return _of_files(model, name, name.removeprefix(GGUF))
    try:
        if name != "auto":
            Recipe.parse(name)
        label = name if isinstance(name, str) else f"recipe {number}"
        return Candidate(label, model, given)
    except (QuantError, TypeError, AttributeError):
        if isinstance(name, str) and Path(name).is_dir():
            return _of_files(model, name, name)
        raise UsageError(
            f"candidates has {name!r:.60}; allowed: auto, {SCHEMES}, gguf:FILE, a .gguf file, or a "
            "folder of the model's weights that is quantized already."
        ) from None


def _of_files(model: ModelFiles, label: str, reference: str) -> Candidate:
    """The weights of another file, which must be this model's."""
    files = ModelFiles.open(reference)
    if _shape(files) != _shape(model):
        raise UsageError(
            f"{label} is not a file of {model.name}: it has {_shape(files)}, not {_shape(model)}. "
            "Give files of this model's weights."
        )
    if tokenizer_sha256(files.tokenizer) != tokenizer_sha256(model.tokenizer):
        raise UsageError(
            f"{label} has another tokenizer than {model.name}: only models that read the same "
            "tokens can be compared. Give files of this model's weights."
        )
    if files.source_sha256 not in (None, model.sha256):
        raise UsageError(
            f"{label} was quantized from other weights than those of {model.name} "
            f"({str(files.source_sha256)[:16]}, not {model.sha256[:16]}). Give its original as "
            "MODEL, or quantize this model."
        )
    return Candidate(label, files, "auto")


def _shape(files: ModelFiles) -> str:
    """The family and the sizes that every file of a model shares, in words."""
    config, family = files.config, files.checkpoint.config["model_type"]
    return (
        f"{config.num_layers} layers of {config.hidden_size} of {family} and a vocabulary of "
        f"{config.vocab_size}"
    )
