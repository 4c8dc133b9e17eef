"""GGUF files: weights in floats or in ggml's blocks, under Hugging Face's names.

Blocks that a scheme equals are taken apart into it, see ``gguf_blocks`` and ``gguf_low_bits``; rows
that a converter reordered are returned in Hugging Face's order, and what it added to norms is
subtracted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch

from edgelm.checkpoint import gguf_blocks, gguf_low_bits
from edgelm.checkpoint.gguf_blocks import NEAREST, dequantized, is_finite
from edgelm.checkpoint.gguf_families import FAMILIES, ROPE_FACTORS, Family, RowOrder
from edgelm.checkpoint.gguf_header import StoredTensor
from edgelm.checkpoint.gguf_metadata import Metadata
from edgelm.checkpoint.gguf_names import part_paths
from edgelm.checkpoint.gguf_parts import read_model
from edgelm.checkpoint.protocol import TensorInfo
from edgelm.checkpoint.rows import fill, opened, span
from edgelm.errors import ModelFileError, UnsupportedModelError
from quant.groupwise import dequantize
from quant.packing import PackedWeight

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SCHEMES = gguf_blocks.SCHEMES | gguf_low_bits.SCHEMES  # of types that are held value for value
READ_BYTES = 1 << 20  # rows are read and unpacked in pieces of about this size


@dataclass(frozen=True)
class _Weight:
    """A tensor of the file under its Hugging Face name.

    order, head_rows: order of its rows in the file, and number of rows of a head; None and 0 if
        they are in Hugging Face's order.
    offset: the number that a converter added to every weight.
    """

    stored: StoredTensor
    order: RowOrder | None = None
    head_rows: int = 0
    offset: float = 0.0


class GGUFCheckpoint:
    """One .gguf file, or one in parts; a file with a vocabulary and no weights opens as well.

    path: the file, of parts the first.
    """

    format = "gguf"

    def __init__(self, path: Path) -> None:
        self.path, self._header = read_model(path)
        self.metadata = self._header.metadata
        self._weights = self._name_weights() if self._header.tensors else {}

    @cached_property
    def config(self) -> dict[str, Any]:
        """The metadata as config.json; UnsupportedModelError for an unknown architecture."""
        family, keys = self._family()
        stored = self._header.tensors.get(ROPE_FACTORS)
        factors = self._floats(_Weight(stored), 0, stored.shape[0]) if stored else None
        return family.config(keys, self._header, factors)

    @property
    def files(self) -> list[Path]:
        return part_paths(self.path)

    def names(self) -> list[str]:
        return list(self._weights)

    def info(self, name: str) -> TensorInfo:
        stored = self._weights[name].stored
        kind = stored.type.name
        dtype = str(FLOATS[kind]).removeprefix("torch.") if kind in FLOATS else kind
        return TensorInfo(
            stored.shape, dtype, SCHEMES.get(kind), stored.nbytes, nearest=NEAREST.get(kind)
        )

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows [start, stop) in the stored float dtype; blocks and shifted norms give float32."""
        weight = self._weights[name]
        kind = weight.stored.type.name
        if kind in SCHEMES:
            return dequantize(self.read_packed(name, start, stop))
        rows = span(weight.stored.shape[0], start, stop, name)
        if kind in FLOATS:
            floats = self._floats(weight, *rows)
            return floats.float() - weight.offset if weight.offset else floats
        out = torch.empty(rows[1] - rows[0], *weight.stored.shape[1:])
        for first, raw in self._raw_rows(weight, *rows):
            out[first : first + len(raw)] = dequantized(raw, kind)
        return out

    def read_packed(self, name: str, start: int = 0, stop: int | None = None) -> PackedWeight:
        """Rows [start, stop) of a matrix of one of the types in SCHEMES, in the canonical layout.

        ModelFileError for scales that are NaN or infinite.
        """
        weight = self._weights[name]
        rows, inputs = weight.stored.shape
        kind = weight.stored.type.name
        scheme = SCHEMES.get(kind)
        if scheme is None:
            raise TypeError(f"{name} is stored as {kind}, not packed")
        start, stop = span(rows, start, stop, name)
        packed = PackedWeight.empty((stop - start, inputs), scheme)
        for first, raw in self._raw_rows(weight, start, stop):
            piece = packed.rows(first, first + len(raw))
            part = gguf_low_bits if kind in gguf_low_bits.SCHEMES else gguf_blocks
            part.take_apart(raw, kind, piece)
            if not is_finite(piece):
                raise ModelFileError(
                    f"{weight.stored.path}: tensor {weight.stored.name} ({kind}) holds a scale "
                    "that is NaN or infinite. The file is damaged: fetch it again."
                )
        return packed

    def _floats(self, weight: _Weight, start: int, stop: int) -> torch.Tensor:
        stored = weight.stored
        out = torch.empty(stop - start, *stored.shape[1:], dtype=FLOATS[stored.type.name])
        target = out.view(len(out), prod(stored.shape[1:])).view(torch.uint8)
        for first, raw in self._raw_rows(weight, start, stop):
            target[first : first + len(raw)] = raw
        return out

    def _raw_rows(
        self, weight: _Weight, start: int, stop: int
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Rows [start, stop) as (row, counted from start; uint8 [n, bytes of a row]) pieces.

        Reordered rows are read by whole heads, which are contiguous in both orders.
        """
        stored, head = weight.stored, weight.head_rows
        row_bytes = stored.nbytes // stored.shape[0]
        step = head or max(1, READ_BYTES // row_bytes)
        begin, end = (start - start % head, stored.shape[0]) if head else (start, stop)
        with opened(stored.path) as file:
            for top in range(begin, stop, step):
                raw = torch.empty(min(step, end - top), row_bytes, dtype=torch.uint8)
                first = _stored_row(weight, top)
                fill(file, stored.offset + first * row_bytes, raw, stored.path)
                if weight.order is not None and weight.order.pairs:
                    raw = raw.view(head // 2, 2, row_bytes).transpose(0, 1).reshape(head, row_bytes)
                piece = raw[max(start - top, 0) : stop - top]
                yield max(top - start, 0), piece

    def _family(self) -> tuple[Family, Metadata]:
        name = self.metadata.get("general.architecture")
        family = FAMILIES.get(name) if isinstance(name, str) else None
        if family is None:
            raise UnsupportedModelError(
                f"{self.path} is of the architecture {name!r} (general.architecture); supported "
                f"in GGUF files: {', '.join(FAMILIES)}."
            )
        return family, Metadata(self.metadata, str(name), self.path)

    def _name_weights(self) -> dict[str, _Weight]:
        family, keys = self._family()
        weights = {}
        for stored in self._header.tensors.values():
            folded = stored.name in family.folded
            name = family.hf_name(stored.name)
            if name is None and not folded:
                raise UnsupportedModelError(
                    f"{self.path} holds the tensor {stored.name!r}, which no supported "
                    f"{keys.architecture} model has."
                )
            if stored.type.name not in FLOATS and len(stored.shape) != 2:
                raise UnsupportedModelError(
                    f"{self.path}: tensor {stored.name!r} of shape {list(stored.shape)} is stored "
                    f"as {stored.type.name}; only matrices may be."
                )
            if name is None:
                continue
            order = family.order(stored.name)
            head_rows = self._head_rows(stored, order, keys) if order else 0
            weights[name] = _Weight(stored, order, head_rows, family.offset(stored.name))
        return weights

    def _head_rows(self, stored: StoredTensor, order: RowOrder, keys: Metadata) -> int:
        heads = keys.get(order.heads_key, int, keys.get("attention.head_count", int))
        turns = heads * order.parts
        if heads < 1 or stored.shape[0] % (turns * (2 if order.pairs else 1)):
            raise ModelFileError(
                f"{self.path}: the {stored.shape[0]} rows of {stored.name!r} cannot be those of "
                f"{heads} heads with an even size. The file is damaged: fetch it again."
            )
        return stored.shape[0] // turns


def _stored_row(weight: _Weight, row: int) -> int:
    """First stored row of the head that begins at Hugging Face's row ``row``."""
    if weight.order is None or weight.order.parts == 1:
        return row
    head, part = divmod(row // weight.head_rows, weight.order.parts)
    heads = weight.stored.shape[0] // weight.head_rows // weight.order.parts
    return (part * heads + head) * weight.head_rows
