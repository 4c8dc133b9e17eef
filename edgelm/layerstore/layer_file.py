"""LayerFile: one layer's matrices in their kernels' layout, read into a buffer or mapped.

The file is the buffer's image, each tensor at a multiple of ``placement.ALIGNMENT``; then the
table (``layer_table.py``) as JSON, then the tail: the JSON's length and checksum, and a magic word.
It is written under a temporary name and renamed, so a file of that name is complete unless changed.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable
from io import BufferedWriter
from pathlib import Path
from zlib import crc32

import torch
from torch import Tensor

from edgelm.budget.placement import aligned
from edgelm.checkpoint.rows import fill
from edgelm.errors import ModelFileError
from edgelm.layerstore.block_sums import BLOCK_BYTES, block_sum, block_sums
from edgelm.layerstore.layer_table import DamagedLayerError, KeptProduct, KeptTensor, LayerTable
from edgelm.machine import private_files
from quant import ModuleReport

_TAIL = struct.Struct("<QI8s")
_MAGIC = b"EdgeLML2"
Prepared = tuple[str, dict[str, Tensor], list[ModuleReport]]
"""A product: its first name, its tensors in the kernel's layout, and the reports of its parts."""


class LayerFile:
    """An opened file whose table was checked, with the reports of its modules.

    Raises:
        FileNotFoundError: the file does not exist.
        DamagedLayerError: it was cut off or changed, or may be another user's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb", buffering=0)
        try:
            self.table = self._read_table()
        except BaseException:
            self._file.close()
            raise
        self._stamp = self._stamp_now()

    @property
    def nbytes(self) -> int:
        """Bytes of the image."""
        return self.table.image_bytes

    def check(self) -> None:
        """Read all of it once and compare every block with its sum.

        Raises:
            DamagedLayerError: the weights are not those that were written.
        """
        buffer = memoryview(bytearray(BLOCK_BYTES))
        for tensor in self.table.tensors():
            self._file.seek(tensor.offset)
            for number, expected in enumerate(tensor.sums):
                block = buffer[: min(BLOCK_BYTES, tensor.nbytes - number * BLOCK_BYTES)]
                if self._file.readinto(block) != len(block):
                    raise DamagedLayerError("it ends early")
                if block_sum(block) != expected:
                    raise DamagedLayerError("its weights were changed")

    def read_into(self, buffer: Tensor) -> None:
        """Read the whole image into the start of ``buffer`` (uint8).

        Raises:
            ModelFileError: the file was changed since it was opened, or cannot be read.
        """
        try:
            changed = self._stamp_now() != self._stamp
            if not changed:
                fill(self._file, 0, buffer[: self.nbytes], self.path)
        except OSError as error:
            raise ModelFileError(
                f"{self.path}, from which a layer is streamed, cannot be read: "
                f"{error.strerror or error}. Load the model again."
            ) from error
        if changed:
            raise ModelFileError(
                f"{self.path}, from which a layer is streamed, was changed while it was in use. "
                "Load the model again: the layer is then rewritten."
            )

    def mapped(self) -> Tensor:
        """Map the image, uint8 [nbytes]; the mapping survives deletion of the file.

        A page becomes resident when it is read, and pages read ahead cause no wait.
        The mapping is writable because torch requires it; writes never reach the file.
        """
        pages = mmap.mmap(self._file.fileno(), self.nbytes, access=mmap.ACCESS_COPY)
        if hasattr(mmap, "MADV_WILLNEED"):
            pages.madvise(mmap.MADV_WILLNEED)
        return torch.frombuffer(pages, dtype=torch.uint8)

    def views(self, product: str, buffer: Tensor) -> dict[str, Tensor]:
        """Views of a product's tensors in ``buffer`` once it holds the image."""
        return {
            own.name: buffer[own.offset : own.offset + own.nbytes].view(own.dtype).view(own.shape)
            for own in self.table.products[product].tensors
        }

    def modules(self, product: str) -> list[ModuleReport]:
        """Reports of a product's parts from when they were packed."""
        return list(self.table.products[product].modules)

    def close(self) -> None:
        self._file.close()

    def _stamp_now(self) -> tuple[int, int]:
        stat = os.fstat(self._file.fileno())
        return stat.st_size, stat.st_mtime_ns

    def _read_table(self) -> LayerTable:
        stat = os.fstat(self._file.fileno())
        reason = private_files.refusal(stat)
        if reason is not None:
            raise DamagedLayerError(reason)
        size = stat.st_size
        self._file.seek(max(0, size - _TAIL.size))
        tail = self._file.read(_TAIL.size) or b""
        length, checksum, magic = _TAIL.unpack(tail.rjust(_TAIL.size, b"\0"))
        image_bytes = size - _TAIL.size - length
        if magic != _MAGIC or image_bytes < 0:
            raise DamagedLayerError("it ends early")
        self._file.seek(image_bytes)
        text = self._file.read(length) or b""
        if crc32(text) != checksum:
            raise DamagedLayerError("its table was changed")
        return LayerTable.parse(text, image_bytes)


def write_layer(path: Path, job: str, prepared: Iterable[Prepared]) -> None:
    """Write a temporary file, one product in memory at a time, and rename it once on the disk.

    Raises:
        OSError: the disk is full or refuses; no part of the file is left then.
    """
    beside = path.with_name(f"{path.name}.partial")
    try:
        with private_files.create(beside) as file:
            _write(file, job, prepared)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _write(file: BufferedWriter, job: str, prepared: Iterable[Prepared]) -> None:
    end = 0
    products: dict[str, KeptProduct] = {}
    for product, tensors, modules in prepared:
        table = []
        for name, tensor in tensors.items():
            file.write(bytes(aligned(end) - end))
            data = tensor.contiguous().view(-1).view(torch.uint8).numpy().data
            own = (name, tensor.dtype, tuple(tensor.shape), aligned(end), tuple(block_sums(data)))
            table.append(KeptTensor(*own))
            file.write(data)
            end = aligned(end) + len(data)
        products[product] = KeptProduct(tuple(table), tuple(modules))
        tensors.clear()  # before the next product is made
    text = LayerTable(job, end, products).to_bytes()
    file.write(text + _TAIL.pack(len(text), crc32(text), _MAGIC))
