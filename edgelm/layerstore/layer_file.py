"""LayerFile: one layer's matrices in their kernels' layout, read into a buffer or mapped.

The file is the buffer's image, each tensor at a multiple of ``placement.ALIGNMENT``; then JSON that
describes the tensors, then the tail: the JSON's length and checksum, and a magic word. It is
written under a temporary name and renamed, so a file of that name is complete unless changed.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Iterable
from dataclasses import asdict
from io import BufferedWriter
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from edgelm.budget.placement import aligned
from edgelm.checkpoint.rows import fill
from edgelm.errors import ModelFileError
from quant import ModuleReport, Scheme

_TAIL = struct.Struct("<QI8s")
_MAGIC = b"EdgeLML1"
_BLOCK_BYTES = 4 << 20
Prepared = tuple[str, dict[str, Tensor], list[ModuleReport]]
"""A product: its first name, its tensors in the kernel's layout, and the reports of its parts."""


class DamagedLayerError(Exception):
    """The file is not as written; it is only a copy and can be recreated."""


class LayerFile:
    """An opened file whose content was checked, with the reports of its modules.

    Args:
        whole: check by reading all of it. Otherwise only its size and its table's checksum are
            checked, which detects interrupted writes: weights reach the disk before the name.

    Raises:
        FileNotFoundError: the file does not exist.
        DamagedLayerError: it was cut off or changed, or belongs to a different job.
    """

    def __init__(self, path: Path, job: str, whole: bool = True) -> None:
        self.path = path
        self._file = path.open("rb", buffering=0)
        try:
            self._told = self._read_told(job)
            if whole:
                self._check_image()
        except BaseException:
            self._file.close()
            raise
        self._stamp = self._stamp_now()

    @property
    def nbytes(self) -> int:
        """Bytes of the image."""
        return int(self._told["image_bytes"])

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
        found = {}
        for name, kind, shape, offset in self._told["products"][product]["tensors"]:
            dtype = getattr(torch, kind)
            nbytes = torch.Size(shape).numel() * dtype.itemsize
            found[name] = buffer[offset : offset + nbytes].view(dtype).view(shape)
        return found

    def modules(self, product: str) -> list[ModuleReport]:
        """Reports of a product's parts from when they were packed."""
        told: list[dict[str, Any]] = self._told["products"][product]["modules"]
        return [
            ModuleReport(
                **(own | {"scheme": Scheme.parse(own["scheme"]), "shape": tuple(own["shape"])})
            )
            for own in told
        ]

    def close(self) -> None:
        self._file.close()

    def _stamp_now(self) -> tuple[int, int]:
        stat = os.fstat(self._file.fileno())
        return stat.st_size, stat.st_mtime_ns

    def _read_told(self, job: str) -> dict[str, Any]:
        size = os.fstat(self._file.fileno()).st_size
        self._file.seek(max(0, size - _TAIL.size))
        tail = self._file.read(_TAIL.size) or b""
        length, checksum, magic = _TAIL.unpack(tail.rjust(_TAIL.size, b"\0"))
        if magic != _MAGIC or length > size - _TAIL.size:
            raise DamagedLayerError("it ends early")
        self._file.seek(size - _TAIL.size - length)
        text = self._file.read(length) or b""
        if crc32(text) != checksum:
            raise DamagedLayerError("its table was changed")
        told: dict[str, Any] = json.loads(text)
        if told["job"] != job or told["image_bytes"] != size - _TAIL.size - length:
            raise DamagedLayerError("it belongs to another model or has another size")
        return told

    def _check_image(self) -> None:
        """Read all of it once to make sure that the weights are those that were written."""
        self._file.seek(0)
        checksum, left = 0, self.nbytes
        block = memoryview(bytearray(min(left, _BLOCK_BYTES)))
        while left:
            count = self._file.readinto(block[: min(left, _BLOCK_BYTES)])
            if not count:
                raise DamagedLayerError("it ends early")
            checksum = crc32(block[:count], checksum)
            left -= count
        if checksum != self._told["image_crc32"]:
            raise DamagedLayerError("its weights were changed")


def write_layer(path: Path, job: str, prepared: Iterable[Prepared]) -> None:
    """Write a temporary file, one product in memory at a time, and rename it once on the disk.

    Raises:
        OSError: the disk is full or refuses; no part of the file is left then.
    """
    beside = path.with_name(f"{path.name}.partial")
    try:
        with beside.open("wb") as file:
            _write(file, job, prepared)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


class _Image:
    """The image being written: its current end and checksum."""

    def __init__(self, file: BufferedWriter) -> None:
        self.file = file
        self.end = self.checksum = 0

    def append(self, tensors: dict[str, Tensor]) -> list[tuple[str, str, tuple[int, ...], int]]:
        """Append tensors; returns (name, dtype, shape, offset) of each."""
        table = []
        for name, tensor in tensors.items():
            self._add(bytes(aligned(self.end) - self.end))
            kind = str(tensor.dtype).removeprefix("torch.")
            table.append((name, kind, tuple(tensor.shape), self.end))
            self._add(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
        return table

    def _add(self, piece: bytes | memoryview) -> None:
        self.file.write(piece)
        self.checksum = crc32(piece, self.checksum)
        self.end += len(piece)


def _write(file: BufferedWriter, job: str, prepared: Iterable[Prepared]) -> None:
    image = _Image(file)
    products: dict[str, dict[str, Any]] = {}
    for product, tensors, modules in prepared:
        reports = [asdict(module) | {"scheme": str(module.scheme)} for module in modules]
        products[product] = {"tensors": image.append(tensors), "modules": reports}
        tensors.clear()  # before the next product is made
    told = {
        "job": job,
        "image_bytes": image.end,
        "image_crc32": image.checksum,
        "products": products,
    }
    text = json.dumps(told).encode()
    file.write(text + _TAIL.pack(len(text), crc32(text), _MAGIC))
