"""Calibration: the inputs of each layer for a text's tokens, layer by layer, for GPTQ.

One layer is in memory at a time, as floats, with the tokens' inputs to it. Every layer gets its
inputs from the original model, not from the quantized layers before it: a layer runs once instead
of twice, and a resumed run chooses the same integers without needing those packed before. It
reruns the finished layers, without their Hessians.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from edgelm.engine.engine import Engine, RowTokens
from edgelm.errors import ModelFileError, NonFiniteError, UsageError
from edgelm.evaluation.layerwise import layer_bytes, layer_engine
from edgelm.machine import hardware
from edgelm.models.layers import Projection, part_names
from edgelm.models.model_files import ModelFiles
from edgelm.planning.settings import KV_DTYPES, Settings
from edgelm.quantization.conversion import Target
from edgelm.text.lines import UTF8
from quant import Hessian, QuantError

if TYPE_CHECKING:
    from edgelm.text.tokenizer import Tokenizer

SEQUENCES = 32
SEQUENCE_TOKENS = 256
LEAST_SEQUENCES = 4
_MOST_CHARACTERS = 1 << 20  # only the beginning of a longer text is used
_BUILT_IN = "data/calibration.txt"
# torch's float products are the same whether or not the native library is built.
_EXACT: dict[str, Any] = {
    "quant": "none",
    "dtype": "float32",
    "kv": "float32",
    "backend": "torch",
    "rows": 1,
}


@dataclass(frozen=True)
class CalibrationText:
    """Ids [sequences, tokens] int64, spread over a text; each begins with BOS if texts do."""

    name: str
    ids: Tensor

    @classmethod
    def read(cls, path: str | Path | None, tokenizer: Tokenizer, context: int) -> CalibrationText:
        """Read a UTF-8 file, or the text built into the package.

        context: the model's context, which limits the length of sequences.

        Raises:
            UsageError: the file is missing, not UTF-8, or too short.
        """
        name = "the built-in text" if path is None else str(path)
        ids = tokenizer.encode(_text(path), add_special=False)
        start = [tokenizer.bos_id] if tokenizer.add_bos else []
        length = max(1, min(SEQUENCE_TOKENS, context) - len(start))
        found = len(ids) // length
        if found < LEAST_SEQUENCES:
            raise UsageError(
                f"calibration: {name} has {len(ids)} tokens; {LEAST_SEQUENCES * length} are needed "
                f"at least, and {SEQUENCES * length} are used. Give a longer text."
            )
        count = min(found, SEQUENCES)
        firsts = [number * found // count * length for number in range(count)]
        return cls(name, torch.tensor([start + ids[first : first + length] for first in firsts]))

    def to_dict(self) -> dict[str, Any]:
        """Summary of the calibration as JSON-able data."""
        sequences, tokens = self.ids.shape
        return {"sequences": sequences, "tokens_each": tokens, "text": self.name}


def _text(path: str | Path | None) -> str:
    if path is None:
        return package_files("edgelm").joinpath(_BUILT_IN).read_text(encoding="utf-8")
    try:
        with Path(path).open(encoding=UTF8) as file:
            return file.read(_MOST_CHARACTERS)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"calibration: {path} cannot be read as UTF-8 text: {error}. Give a plain text file, "
            "or none for the built-in text."
        ) from error


@dataclass(frozen=True)
class Inputs:
    """Matrices that multiply the same inputs: ``size`` numbers per token, in ``projection``."""

    projection: str
    size: int
    targets: tuple[Target, ...]


class Calibration:
    """One model's layers over one text; ``parts`` is the memory that ``factored`` takes."""

    def __init__(self, files: ModelFiles, text: CalibrationText, targets: Sequence[Target]) -> None:
        self.files, self.text = files, text
        self._targets = targets
        tokens = text.ids.shape[1]
        self._settings = Settings(**_EXACT, context=tokens, chunk=tokens)
        self._layers = [self._inputs(index) for index in range(files.config.num_layers)]

    @property
    def identity(self) -> str:
        """Hash of the tokens."""
        return hashlib.sha256(self.text.ids.numpy().tobytes()).hexdigest()

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by name, in addition to those of any method; known from headers."""
        config = self.files.config
        kinds = {window: index for index, window in enumerate(config.windows)}
        kinds |= {0: 0, -1: config.num_layers - 1}  # with the embedding's norm and the final one
        hessians = [sum(Hessian.nbytes(own.size) for own in layer) for layer in self._layers]
        return {
            "layer in float32": max(
                layer_bytes(self.files, index, self._settings) for index in kinds.values()
            ),
            "Hessians, then factors": max(hessians),
            "calibration activations": 4 * self.text.ids.numel() * config.hidden_size,
        }

    def factored(self, done: Container[str]) -> Iterator[tuple[Target, Tensor | None]]:
        """Yield every target with its inputs' factor (see ``quant.Hessian``), layer by layer.

        Targets without a factor come first: copied and kept ones, embedding and head. ``done``:
        names of targets whose factor is no longer needed.

        Raises:
            NonFiniteError: a layer produced NaN or infinity.
            ModelFileError: a matrix's inputs give no valid Hessian.
        """
        layered = {t.name for layer in self._layers for own in layer for t in own.targets}
        yield from ((target, None) for target in self._targets if target.name not in layered)
        pending = [
            [any(target.name not in done for target in own.targets) for own in layer]
            for layer in self._layers
        ]
        last = max((index for index, own in enumerate(pending) if any(own)), default=-1)
        hidden = torch.empty(self.text.ids.numel(), self.files.config.hidden_size)
        for index, layer in enumerate(self._layers):
            hessians = {
                own.projection: Hessian(own.size)
                for own, needed in zip(layer, pending[index], strict=True)
                if needed
            }
            if index <= last:
                self._run_layer(index, hidden, hessians)
            for own in layer:
                factor = self._factor(own, hessians.pop(own.projection, None))
                yield from ((target, factor) for target in own.targets)
                del factor

    def _inputs(self, index: int) -> tuple[Inputs, ...]:
        """The projections of a layer that hold matrices to pack."""
        layer = self.files.assemble_layer(index)
        packed = {t.name: t for t in self._targets if t.scheme is not None and not t.kept}
        found = []
        for path, projection in layer.decoder.named_modules():
            if not isinstance(projection, Projection):
                continue
            prefix = path.rpartition(".")[0]
            parts = part_names(prefix, list(projection.parts))
            stored = dict.fromkeys(layer.names.file_name(part) for part in parts)
            targets = tuple(packed[name] for name in stored if name in packed)
            if targets:
                found.append(Inputs(path, projection.in_size, targets))
        return tuple(found)

    def _run_layer(self, index: int, hidden: Tensor, hessians: dict[str, Hessian]) -> None:
        """Run all tokens through a layer: ``hidden`` [tokens, N] becomes the next layer's input."""
        engine = layer_engine(self.files, index, self._settings)
        for name, hessian in hessians.items():
            engine.decoder.get_submodule(name).register_forward_pre_hook(
                lambda _, given, hessian=hessian: hessian.add(given[0])
            )
        try:
            self._run(engine, index, hidden)
        except NonFiniteError as error:
            raise NonFiniteError(
                f"{self.files.name}: layer {index} produced NaN or infinity; its weights are "
                "damaged."
            ) from error

    def _run(self, engine: Engine, index: int, hidden: Tensor) -> None:
        cache = engine.make_cache(1, engine.plan.context, KV_DTYPES[engine.plan.kv])
        for ids, rows in zip(self.text.ids, hidden.split(self.text.ids.shape[1]), strict=True):
            cache.truncate(0, 0)
            rows.copy_(engine.run(cache, [RowTokens(0, rows if index else ids)]).states)

    def _factor(self, own: Inputs, hessian: Hessian | None) -> Tensor | None:
        hardware.release_freed_memory()  # of the layer
        try:
            return None if hessian is None else hessian.factor()
        except QuantError as error:
            names = ", ".join(target.name for target in own.targets)
            raise ModelFileError(f"{self.files.checkpoint.path}: {names}: {error}") from error


def factored(
    calibration: Calibration | None, targets: Sequence[Target], done: Container[str]
) -> Iterator[tuple[Target, Tensor | None]]:
    """``calibration.factored``, or without calibration every target in order with no factor."""
    if calibration is None:
        return ((target, None) for target in targets)
    return calibration.factored(done)
