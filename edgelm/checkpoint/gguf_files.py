"""GGUF files: weights in floats or in ggml's Q4_0, Q4_1 and Q8_0 blocks of 32.

Blocks are taken apart into the canonical packing bit by bit, nothing is rounded. Rows of q and k,
which ggml stores in pairs for interleaved rotation, come back in Hugging Face's order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from edgelm.checkpoint import TensorInfo
from edgelm.checkpoint.gguf_families import FAMILIES, ROPE_FACTORS, Family, Metadata
from edgelm.checkpoint.gguf_header import StoredTensor, read_header
from edgelm.checkpoint.rows import fill, opened, span
from edgelm.errors import ModelFileError, UnsupportedModelError
from quant.groupwise import dequantize
from quant.packing import PackedWeight
from quant.scheme import Scheme

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SCHEMES = {
    "Q4_0": Scheme(4, 32),
    "Q4_1": Scheme(4, 32, "float"),
    "Q8_0": Scheme(8, 32),
}
READ_BYTES = 1 << 20  # rows are read and taken apart in pieces of about this size


@dataclass(frozen=True)
class _Weight:
    """A tensor of the file under its Hugging Face name.

    head_rows: 0, or the rows of a head if each head's rows are stored in rotation pairs.
    """

    stored: StoredTensor
    head_rows: int


class GGUFCheckpoint:
    """One .gguf file; a file with a vocabulary and no weights opens as well."""

    format = "gguf"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._header = read_header(path)
        self.metadata = self._header.metadata
        self._refuse_parts()
        self._weights = self._name_weights() if self._header.tensors else {}

    @cached_property
    def config(self) -> dict[str, Any]:
        """The metadata as config.json; UnsupportedModelError for an unknown architecture."""
        family, keys = self._family()
        stored = self._header.tensors.get(ROPE_FACTORS)
        factors = self._floats(_Weight(stored, 0), 0, stored.shape[0]) if stored else None
        return family.config(keys, self._header, factors)

    def names(self) -> list[str]:
        return list(self._weights)

    def info(self, name: str) -> TensorInfo:
        stored = self._weights[name].stored
        kind = stored.type.name
        dtype = str(FLOATS[kind]).removeprefix("torch.") if kind in FLOATS else kind
        return TensorInfo(stored.shape, dtype, SCHEMES.get(kind), stored.nbytes)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows [start, stop) in the stored float dtype; packed integers give float32."""
        weight = self._weights[name]
        if weight.stored.type.name in SCHEMES:
            return dequantize(self.read_packed(name, start, stop))
        return self._floats(weight, *span(weight.stored.shape[0], start, stop, name))

    def read_packed(self, name: str, start: int = 0, stop: int | None = None) -> PackedWeight:
        """Rows [start, stop) of a Q4_0, Q4_1 or Q8_0 matrix in the canonical layout."""
        weight = self._weights[name]
        rows, inputs = weight.stored.shape
        scheme = SCHEMES.get(weight.stored.type.name)
        if scheme is None:
            raise TypeError(f"{name} is stored as {weight.stored.type.name}, not packed")
        start, stop = span(rows, start, stop, name)
        packed = PackedWeight.empty((stop - start, inputs), scheme)
        for first, raw in self._raw_rows(weight, start, stop):
            _take_apart(raw, packed.rows(first, first + len(raw)))
        return packed

    def _floats(self, weight: _Weight, start: int, stop: int) -> torch.Tensor:
        stored = weight.stored
        out = torch.empty(stop - start, *stored.shape[1:], dtype=FLOATS[stored.type.name])
        target = out.view(len(out), -1).view(torch.uint8)
        for first, raw in self._raw_rows(weight, start, stop):
            target[first : first + len(raw)] = raw
        return out

    def _raw_rows(
        self, weight: _Weight, start: int, stop: int
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Rows [start, stop) as (row, counted from start; uint8 [n, bytes of a row]) pieces.

        Rows of q and k are read by whole heads: pair j of a head holds its rows j and j + half.
        """
        stored, head = weight.stored, weight.head_rows
        row_bytes = stored.nbytes // stored.shape[0]
        step = head or max(1, READ_BYTES // row_bytes)
        begin, end = (start - start % head, stored.shape[0]) if head else (start, stop)
        with opened(self.path) as file:
            for top in range(begin, stop, step):
                raw = torch.empty(min(step, end - top), row_bytes, dtype=torch.uint8)
                fill(file, stored.offset + top * row_bytes, raw, self.path)
                if head:
                    raw = raw.view(head // 2, 2, row_bytes).transpose(0, 1).reshape(head, row_bytes)
                piece = raw[max(start - top, 0) : stop - top]
                yield max(top - start, 0), piece

    def _refuse_parts(self) -> None:
        parts = self.metadata.get("split.count", 1)
        if parts not in (0, 1):
            raise UnsupportedModelError(
                f"{self.path} is one of {parts} parts of a model. Join them into one file first "
                "(llama.cpp's `llama-gguf-split --merge`)."
            )

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
            if stored.name in family.folded:
                continue
            name = family.hf_name(stored.name)
            if name is None:
                raise UnsupportedModelError(
                    f"{self.path} holds the tensor {stored.name!r}, which no {keys.architecture} "
                    "model that can be run here has."
                )
            if stored.type.name in SCHEMES and len(stored.shape) != 2:
                raise UnsupportedModelError(
                    f"{self.path}: tensor {stored.name!r} of shape {list(stored.shape)} is stored "
                    f"as {stored.type.name}; only matrices may be."
                )
            weights[name] = _Weight(stored, self._head_rows(stored, family, keys))
        return weights

    def _head_rows(self, stored: StoredTensor, family: Family, keys: Metadata) -> int:
        key = family.heads_key(stored.name)
        if key is None:
            return 0
        heads = keys.get(key, int, keys.get("attention.head_count", int))
        if heads < 1 or stored.shape[0] % (2 * heads):
            raise ModelFileError(
                f"{self.path}: the {stored.shape[0]} rows of {stored.name!r} cannot be those of "
                f"{heads} heads with an even size. The file is damaged: fetch it again."
            )
        return stored.shape[0] // heads


def _take_apart(raw: torch.Tensor, packed: PackedWeight) -> None:
    """ggml's blocks (uint8 [n, bytes]) into the rows of `packed`, every number as stored.

    A block is a float16 scale, for Q4_1 a float16 minimum, then the codes: 32 bytes for Q8_0, and
    for 4 bits 16 bytes that hold code i low and code i + 16 high (ggml's dequantize_row_q4_0).
    All is moved in 16-bit words, which is twice as fast as bytes: a word of 4-bit codes
    has i, i + 16, i + 1, i + 17 from its lowest nibble up.
    """
    assert packed.scales is not None
    groups = packed.scales.shape
    blocks = raw.view(torch.int16).view(*groups, -1)
    packed.scales.copy_(blocks[..., 0].view(torch.float16))
    if packed.zeros is not None:
        packed.zeros.copy_(blocks[..., 1].view(torch.float16))
    words = blocks[..., 1 if packed.zeros is None else 2 :]
    if packed.scheme.bits == 8:
        packed.qweight.view(torch.int16).view(words.shape).copy_(words)
        return
    words = words.contiguous()
    higher = words >> 4
    halves = packed.qweight.view(*groups, 2, 8)
    halves[..., 0, :] = (words & 15) | (higher & 240)
    halves[..., 1, :] = (higher & 15) | ((words >> 8) & 240)
