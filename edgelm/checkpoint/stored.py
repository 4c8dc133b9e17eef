"""Tensors stored row after row in files: their offsets, and reading parts of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from edgelm.checkpoint.protocol import TensorInfo
from edgelm.checkpoint.rows import fill, fill_columns, opened, span
from edgelm.errors import ModelFileError, UnsupportedModelError
from edgelm.plain_file import absence

if TYPE_CHECKING:
    from quant.packing import PackedWeight

FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
INTEGERS = {"U8": torch.uint8, "I8": torch.int8, "I32": torch.int32, "I64": torch.int64}


@dataclass(frozen=True)
class Stored:
    """One tensor: bytes [offset, offset + info.nbytes) of ``file``."""

    file: Path
    offset: int
    dtype: torch.dtype | None  # None: a type used by neither weights nor packed codes
    info: TensorInfo


class StoredTensors:
    """Tensors by name, read into private memory.

    missing: the file, which is not here, of every other tensor that the model is said to have.
    """

    def __init__(self, tensors: Mapping[str, Stored], missing: Mapping[str, Path]) -> None:
        self._tensors, self._missing = tensors, missing

    @property
    def files(self) -> list[Path]:
        own = {stored.file for stored in self._tensors.values()}
        indexes = {index for file in own for index in file.parent.glob("*.index.json")}
        return sorted(own | {index for index in indexes if index.is_file()})

    def names(self) -> list[str]:
        return list(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def info(self, name: str) -> TensorInfo:
        if name in self._missing:
            raise ModelFileError(
                f"{absence(self._missing[name])} The model needs its tensor {name}: fetch the file."
            )
        return self._tensors[name].info

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows [start, stop) (of a scalar: its one value) in the stored float dtype."""
        stored = self._tensors[name]
        if stored.dtype not in FLOATS.values():
            raise UnsupportedModelError(
                f"{stored.file}: tensor {name} is stored as {stored.info.dtype}; supported: "
                f"{', '.join(FLOATS)}. Convert the model to one of these."
            )
        return self.read_stored(name, start, stop)

    def read_stored(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows [start, stop) in the stored dtype, integers too."""
        stored, dtype = self._tensors[name], self._dtype(name)
        shape = stored.info.shape
        start, stop = span(shape[0] if shape else 1, start, stop, name)
        out = torch.empty((stop - start, *shape[1:]) if shape else (), dtype=dtype)
        row_bytes = prod(shape[1:]) * dtype.itemsize
        with opened(stored.file) as file:
            fill(file, stored.offset + start * row_bytes, out, stored.file)
        return out

    def read_columns(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Columns [start, stop) of a matrix in the stored dtype."""
        stored, dtype = self._tensors[name], self._dtype(name)
        rows, columns = stored.info.shape
        start, stop = span(columns, start, stop, name)
        out = torch.empty(rows, stop - start, dtype=dtype)
        size = dtype.itemsize
        with opened(stored.file) as file:
            fill_columns(file, stored.offset, columns * size, start * size, out, stored.file)
        return out

    def read_packed(self, name: str, start: int = 0, stop: int | None = None) -> PackedWeight:
        """Raise: these files hold floats, as ``info`` says."""
        raise TypeError(f"{name} is stored as {self.info(name).dtype}, not as packed integers")

    def _dtype(self, name: str) -> torch.dtype:
        stored = self._tensors[name]
        if stored.dtype is None:
            raise UnsupportedModelError(
                f"{stored.file}: tensor {name} is stored as {stored.info.dtype}; supported "
                f"dtypes: {', '.join(FLOATS | INTEGERS)}. Convert the model to one of these."
            )
        return stored.dtype
