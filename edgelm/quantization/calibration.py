"""Calibration: the inputs of each layer and of the head for a text's tokens, for GPTQ.

One layer is in memory at a time, as floats, with the tokens' inputs to it. Some sequences are held
back, and tell whether what was fitted to the others is better there too. Every layer gets
its inputs from the original model, not from the quantized layers before it: a layer runs once
instead of twice, and a resumed run chooses the same integers without needing those packed before.
It reruns the finished layers, without their Hessians.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgelm.engine.engine import RowTokens
from edgelm.errors import ModelFileError, NonFiniteError
from edgelm.evaluation.layerwise import largest_layer_bytes, layer_engine
from edgelm.machine import hardware
from edgelm.models.layers import Projection, part_names
from edgelm.models.model_files import ModelFiles
from edgelm.planning.settings import KV_DTYPES, Settings
from edgelm.quantization.calibration_text import CalibrationText
from edgelm.quantization.conversion import Target
from edgelm.quantization.converted_rows import block_bytes
from quant import Curvature, Hessian, QuantError
from quant.methods.gptq import ROUNDING_COPIES

# torch's float products are the same whether or not the native library is built.
_EXACT: dict[str, Any] = {
    "quant": "none",
    "dtype": "float32",
    "kv": "float32",
    "backend": "torch",
    "rows": 1,
}


@dataclass(frozen=True)
class Inputs:
    """Matrices that multiply the same inputs: ``size`` numbers per token, in ``projection``."""

    projection: str
    size: int
    targets: tuple[Target, ...]

    def hessians(self) -> tuple[Hessian, Hessian]:
        """Empty ones: of inputs to fit to, and of those held back."""
        return Hessian(self.size), Hessian(self.size)


Sums = dict[str, tuple[Hessian, Hessian]]
"""By projection."""


class Calibration:
    """One model's layers over one text; ``parts`` is the memory that ``curved`` takes."""

    def __init__(self, files: ModelFiles, text: CalibrationText, targets: Sequence[Target]) -> None:
        self.files, self.text = files, text
        self._targets = targets
        tokens = text.shape[1]
        self._settings = Settings(**_EXACT, context=tokens, chunk=tokens)
        self._layers = [self._inputs(index) for index in range(files.config.num_layers)]
        self._head = self._head_inputs()

    @property
    def tokens_per_input(self) -> float:
        """Of the matrix with most inputs."""
        sizes = [own.size for layer in (*self._layers, self._head) for own in layer]
        return self.text.tokens_per_input(max(sizes, default=1))

    def to_dict(self) -> dict[str, Any]:
        """Summary of text and tokens as JSON-able data."""
        return self.text.to_dict() | {"tokens_per_input": self.tokens_per_input}

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by name, in addition to those of any method; known from headers."""
        config = self.files.config
        return {
            "layer in float32": largest_layer_bytes(self.files, self._settings),
            "Hessians and a factor": max(map(_hessian_bytes, (*self._layers, self._head))),
            "rows on their way to codes": ROUNDING_COPIES * max(map(block_bytes, self._targets)),
            "calibration activations": 4 * math.prod(self.text.shape) * config.hidden_size,
        }

    def curved(self, done: Container[str]) -> Iterator[tuple[Target, Curvature | None]]:
        """Yield every target with its inputs' curvature, layer by layer, then the head.

        Targets without one come first: copied and kept ones, and an embedding that is not tied.
        ``done``: names of targets that are written already; they get no curvature.

        Raises:
            NonFiniteError: a layer produced NaN or infinity.
            ModelFileError: a matrix's inputs give no valid Hessian.
        """
        every = [*self._layers, self._head]
        fitted = {t.name for layer in every for own in layer for t in own.targets}
        yield from ((target, None) for target in self._targets if target.name not in fitted)
        pending = [
            [any(target.name not in done for target in own.targets) for own in layer]
            for layer in every
        ]
        last = max((index for index, own in enumerate(pending) if any(own)), default=-1)
        hidden = torch.empty(math.prod(self.text.shape), self.files.config.hidden_size)
        for index, layer in enumerate(every):
            sums: Sums = {
                own.projection: own.hessians()
                for own, needed in zip(layer, pending[index], strict=True)
                if needed
            }
            if layer is not self._head and index <= last:
                self._run_layer(index, hidden, sums)
            elif sums:
                self._add_final(hidden, *sums["head"])
            for own in layer:
                curvature = self._curvature(own, sums.pop(own.projection, None))
                yield from ((target, curvature) for target in own.targets)
                del curvature

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

    def _head_inputs(self) -> tuple[Inputs, ...]:
        """The head, or the table that is one, if it is packed."""
        name = "embed" if self.files.config.tied else "head"
        targets = tuple(
            t for t in self._targets if name in t.parts and t.scheme is not None and not t.kept
        )
        return (Inputs("head", self.files.config.hidden_size, targets),) if targets else ()

    def _run_layer(self, index: int, hidden: Tensor, sums: Sums) -> None:
        """Run all tokens through a layer: ``hidden`` [tokens, N] becomes the next layer's input."""
        engine = layer_engine(self.files, index, self._settings)
        cache = engine.make_cache(1, engine.plan.context, KV_DTYPES[engine.plan.kv])
        for held in (False, True):
            hooks = [
                engine.decoder.get_submodule(name).register_forward_pre_hook(
                    lambda _, given, hessian=own[held]: hessian.add(given[0])
                )
                for name, own in sums.items()
            ]
            try:
                for ids, rows in self._sequences(hidden, held):
                    cache.truncate(0, 0)
                    given = RowTokens(0, rows if index else ids)
                    rows.copy_(engine.run(cache, [given]).states)
            except NonFiniteError as error:
                raise NonFiniteError(
                    f"{self.files.name}: layer {index} produced NaN or infinity; its weights are "
                    "damaged."
                ) from error
            for hook in hooks:
                hook.remove()

    def _sequences(self, hidden: Tensor, held: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Ids and hidden states of each sequence that is held back, or of the others."""
        states = hidden.split(self.text.shape[1])
        for ids, rows, own in zip(self.text.ids, states, self.text.held_back, strict=True):
            if own == held:
                yield ids, rows

    def _add_final(self, hidden: Tensor, seen: Hessian, held: Hessian) -> None:
        """Count the last layer's normed states, which the head multiplies."""
        for hessian, own in ((seen, False), (held, True)):
            for _, rows in self._sequences(hidden, own):
                hessian.add(rows)

    def _curvature(self, own: Inputs, sums: tuple[Hessian, Hessian] | None) -> Curvature | None:
        hardware.release_freed_memory()  # of the layer
        try:
            return None if sums is None else Curvature.of(*sums)
        except QuantError as error:
            names = ", ".join(target.name for target in own.targets)
            raise ModelFileError(f"{self.files.checkpoint.path}: {names}: {error}") from error


def _hessian_bytes(layer: Sequence[Inputs]) -> int:
    """Of two Hessians for each projection, and the factor of one at a time."""
    sizes = [Hessian.nbytes(own.size) for own in layer]
    return 2 * sum(sizes) + max(sizes, default=0)


def curved(
    calibration: Calibration | None, targets: Sequence[Target], done: Container[str]
) -> Iterator[tuple[Target, Curvature | None]]:
    """``calibration.curved``, or without calibration every target in order with no curvature."""
    if calibration is None:
        return ((target, None) for target in targets)
    return calibration.curved(done)
