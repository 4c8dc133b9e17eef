"""Canonical names mapped to a file's tensors: one table per family, applied by one class."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from edgelm.checkpoint.protocol import Checkpoint, TensorInfo
from edgelm.errors import ModelFileError
from quant import PackedWeight

_INDEX = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Interleaved:
    """One of ``of`` matrices whose rows alternate, head by head, in one stored tensor."""

    name: str
    index: int
    of: int


Source = str | Interleaved
"""A tensor's name in the file without ``.weight`` / ``.bias``, ``{}`` standing for the layer."""


class WeightNames:
    """Finds a model's tensors in a checkpoint, checks their shapes, and reads them.

    Args:
        table: canonical name -> source. head_size: consecutive rows of a matrix when interleaved.
        first_layer: index in the file of the layer named ``layers.0``.
        tied: the head is the embedding, of which some files hold the head's name only.
    """

    def __init__(
        self, table: Mapping[str, Source], checkpoint: Checkpoint, head_size: int,
        first_layer: int = 0, tied: bool = False,
    ) -> None:  # fmt: skip
        self.table, self.checkpoint, self.head_size = table, checkpoint, head_size
        self._first_layer = first_layer
        self._present = set(checkpoint.names())
        if tied and not self.has("embed") and self.has("head"):
            self.table = {**table, "embed": table["head"]}

    def file_name(self, canonical: str, kind: str = "weight") -> str:
        """Stored name: ``layers.3.attn.q`` -> ``model.layers.3.self_attn.q_proj.weight``.

        Checkpoints of a bare decoder lack the family's prefix, and those of some heads have
        ``transformer.`` instead; the name that exists is returned.
        """
        names = self._candidates(canonical, kind)
        return next((name for name in names if name in self._present), names[0])

    def recipe_name(self, canonical: str) -> str:
        """The name by which recipes know a matrix: one for all parts of a stored tensor, such as
        ``layers.3.attn.qkv``, and for others their own."""
        source, _ = self._source(canonical)
        if not isinstance(source, Interleaved):
            return canonical
        parts = [
            name.rpartition(".")[2]
            for name, each in self.table.items()
            if isinstance(each, Interleaved) and each.name == source.name
        ]
        return f"{canonical.rpartition('.')[0]}.{''.join(parts)}"

    def has(self, canonical: str, kind: str = "weight") -> bool:
        return self.file_name(canonical, kind) in self._present

    def refuse_missing(self, canonical: str, kind: str = "weight") -> None:
        """Raise ModelFileError if the tensor is in a file that is not here."""
        for name in self._candidates(canonical, kind):
            with suppress(KeyError):
                self.checkpoint.info(name)

    def info(self, canonical: str, shape: tuple[int, ...], kind: str = "weight") -> TensorInfo:
        """Header entry of a tensor that must have ``shape`` (of its part only, if fused).

        Raises:
            ModelFileError: it is missing or has another shape.
        """
        name = self.file_name(canonical, kind)
        if name not in self._present:
            self.refuse_missing(canonical, kind)
            raise ModelFileError(
                f"{self.checkpoint.path} has no tensor {name}, which config.json implies. The "
                "file is damaged, incomplete or of another model: fetch it again."
            )
        info, expected = self.checkpoint.info(name), self.stored_shape(canonical, shape)
        if info.shape != expected:
            raise ModelFileError(
                f"{self.checkpoint.path}: tensor {name} has shape {list(info.shape)}; config.json "
                f"implies {list(expected)}. The two do not match: fetch both again."
            )
        return info

    def stored_shape(self, canonical: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the stored tensor that a tensor of ``shape`` is part of."""
        source = self._source(canonical)[0]
        turns = source.of if isinstance(source, Interleaved) else 1
        return (turns * shape[0], *shape[1:])

    def read(self, canonical: str, start: int, stop: int, kind: str = "weight") -> Tensor:
        """Rows ``start`` to ``stop`` of a tensor, as the file's floats."""
        name = self.file_name(canonical, kind)
        found = [self.checkpoint.read(name, *s) for s in self._spans(canonical, start, stop)]
        return found[0] if len(found) == 1 else torch.cat(found)

    def read_packed(self, canonical: str, shape: tuple[int, int]) -> PackedWeight:
        """A whole tensor stored as integers, unchanged."""
        name = self.file_name(canonical)
        scheme = self.checkpoint.info(name).scheme
        assert scheme is not None
        spans = list(self._spans(canonical, 0, shape[0]))
        if len(spans) == 1:
            return self.checkpoint.read_packed(name, *spans[0])
        packed, filled = PackedWeight.empty(shape, scheme), 0
        for span in spans:
            block = self.checkpoint.read_packed(name, *span)
            packed.copy_rows_(filled, block)
            filled += block.shape[0]
        return packed

    def _spans(self, canonical: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Row ranges of the stored tensor that hold rows ``start`` to ``stop``."""
        source = self._source(canonical)[0]
        if not isinstance(source, Interleaved):
            yield start, stop
            return
        while start < stop:
            head, offset = divmod(start, self.head_size)
            count = min(self.head_size - offset, stop - start)
            first = (head * source.of + source.index) * self.head_size + offset
            yield first, first + count
            start += count

    def _candidates(self, canonical: str, kind: str) -> tuple[str, ...]:
        """Names that the tensor has in files with the family's prefix, and those without it."""
        source, layer = self._source(canonical)
        pattern = source.name if isinstance(source, Interleaved) else source
        name = f"{pattern.format(layer)}.{kind}"
        prefix, _, rest = name.partition(".")
        within = prefix in ("model", "transformer")
        return (name, rest, f"transformer.{rest}") if within else (name,)

    def _source(self, canonical: str) -> tuple[Source, str]:
        index = _INDEX.search(canonical)
        pattern = _INDEX.sub(".{}.", canonical, count=1) if index else canonical
        layer = str(self._first_layer + int(index[1])) if index else ""
        return self.table[pattern], layer
