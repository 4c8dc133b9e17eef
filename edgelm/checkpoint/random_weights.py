"""A checkpoint without a file: random weights made on demand, for measuring speed and memory.

Matrices are made directly in the requested scheme, so that no model is ever held in floats.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from edgelm.checkpoint.protocol import TensorInfo
from edgelm.checkpoint.rows import span
from quant.codebooks import numbers
from quant.groupwise import dequantize
from quant.packing import PackedWeight
from quant.scheme import Scheme

WEIGHT_STD = 0.02  # as models are initialised: hidden states and logits stay finite
_BLOCK_ROWS = 1024  # rows that one seed makes
_CODE_STD = {bits: (4**bits - 1) ** 0.5 / 12**0.5 for bits in (4, 5, 6, 8)}


class RandomWeights:
    """Weights seeded by their names: rows do not depend on when or in what pieces they are read.

    Args:
        name: shown as the path.
        config: the content of a config.json.
        tensors: shape and scheme by the weight's Hugging Face name; scheme None is a vector: ones
            (a norm), or small numbers where the name ends in ``.bias``.
    """

    format = "random"

    def __init__(
        self,
        name: str,
        config: dict[str, Any],
        tensors: Mapping[str, tuple[tuple[int, ...], Scheme | None]],
    ) -> None:
        self.path = Path(name)
        self.config = config
        self.metadata: dict[str, Any] = {}
        self._tensors = dict(tensors)
        self._last: tuple[str, int, PackedWeight] | None = None

    @property
    def files(self) -> list[Path]:
        return []

    def names(self) -> list[str]:
        return list(self._tensors)

    def info(self, name: str) -> TensorInfo:
        shape, scheme = self._tensors[name]
        if scheme is None:
            return TensorInfo(shape, "float32", None, torch.Size(shape).numel() * 4)
        packed = None if scheme.is_float else scheme
        return TensorInfo(shape, str(scheme), packed, scheme.nbytes((shape[0], shape[1])))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows [start, stop) in the scheme's float type, float32 where the scheme is packed."""
        shape, scheme = self._tensors[name]
        if scheme is None:
            start, stop = span(shape[0], start, stop, name)
            return self._vector(name, shape[0])[start:stop]
        packed = self._packed(name, start, stop)
        return packed.qweight if scheme.is_float else dequantize(packed)

    def read_packed(self, name: str, start: int = 0, stop: int | None = None) -> PackedWeight:
        """Rows [start, stop) of a matrix whose scheme is packed."""
        return self._packed(name, start, stop)

    def _vector(self, name: str, size: int) -> Tensor:
        if not name.endswith(".bias"):
            return torch.ones(size)
        return torch.empty(size).normal_(0, WEIGHT_STD, generator=_generator(name))

    def _packed(self, name: str, start: int, stop: int | None) -> PackedWeight:
        shape, scheme = self._tensors[name]
        assert scheme is not None
        start, stop = span(shape[0], start, stop, name)
        packed = PackedWeight.empty((stop - start, shape[1]), scheme)
        for first in range(start - start % _BLOCK_ROWS, stop, _BLOCK_ROWS):
            block = self._block(name, first)
            below, above = max(start, first), min(stop, first + block.shape[0])
            packed.copy_rows_(below - start, block.rows(below - first, above - first))
        if stop == shape[0]:
            self._last = None  # the tensor was read to its end: free the block
        return packed

    def _block(self, name: str, first: int) -> PackedWeight:
        """The block that starts at row ``first``.

        The last one is kept, since interleaved tensors are read a few rows (one head) at a time.
        """
        if self._last is None or self._last[:2] != (name, first):
            (rows, columns), scheme = self._tensors[name]
            assert scheme is not None
            shape = (min(_BLOCK_ROWS, rows - first), columns)
            block = _random_block(shape, scheme, _generator(f"{name}:{first}"))
            self._last = (name, first, block)
        return self._last[2]


def _generator(seed: str) -> torch.Generator:
    return torch.Generator().manual_seed(crc32(seed.encode()))


def _random_block(
    shape: tuple[int, int], scheme: Scheme, generator: torch.Generator
) -> PackedWeight:
    """Uniform codes under one scale (or normal floats) of standard deviation WEIGHT_STD."""
    block = PackedWeight.empty(shape, scheme)
    if block.scales is None:
        block.qweight.normal_(0, WEIGHT_STD, generator=generator)
        return block
    words = torch.empty(-(-block.qweight.nbytes // 8), dtype=torch.int64)
    words.random_(-(1 << 63), None, generator=generator)
    codes = words.view(block.qweight.dtype)[: block.qweight.numel()]
    block.qweight.copy_(codes.view(block.qweight.shape))
    deviation = float(numbers(scheme.codebook, torch.device("cpu")).std()) if scheme.codebook else 0
    scale = WEIGHT_STD / (deviation or _CODE_STD[scheme.bits])
    minimum = -scheme.middle * scale
    if block.supers is not None:
        scale_code, minimum_code = scheme.scale_codes[1], 63
        block.supers[..., 0] = scale / scale_code
        block.supers[..., -1] = (
            minimum / minimum_code if scheme.zeros == "float" else scale / scale_code
        )
        scale, minimum = scale_code, minimum_code
    block.scales.fill_(scale)
    if block.zeros is not None:
        block.zeros.fill_(scheme.middle if scheme.zeros == "int" else minimum)
    return block
