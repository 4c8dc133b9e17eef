"""Float32 rows of one width in an open file."""

from __future__ import annotations

from typing import BinaryIO

import torch
from torch import Tensor

from edgelm.errors import ModelFileError


class Rows:
    """Rows [*, width] float32 from byte ``offset`` of a file on; written ones may be read again."""

    def __init__(self, file: BinaryIO, offset: int, width: int) -> None:
        self._file, self._offset, self._width = file, offset, width

    def read(self, start: int, count: int) -> Tensor:
        """Read rows ``start`` to ``start + count`` into new memory.

        Raises:
            ModelFileError: the file ends earlier.
        """
        rows = torch.empty(count, self._width)
        self._seek(start)
        if self._file.readinto(rows.numpy()) != rows.nbytes:  # type: ignore[attr-defined]
            raise ModelFileError(f"{self._file.name} was cut off while it was read.")
        return rows

    def write(self, start: int, rows: Tensor) -> None:
        """Write rows [count, width] of any float type at ``start``."""
        self._seek(start)
        self._file.write(rows.float().contiguous().numpy().data)

    def _seek(self, start: int) -> None:
        self._file.seek(self._offset + 4 * start * self._width)
