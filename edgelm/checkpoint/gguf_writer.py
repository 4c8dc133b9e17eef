"""Writer of GGUF files: header and names by the package ``gguf``, then tensors at their offsets."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgelm.checkpoint.gguf_blocks import LAYOUTS
from edgelm.checkpoint.gguf_header import read_header
from edgelm.checkpoint.rows import fill, opened
from edgelm.checkpoint.safetensors_writer import reserve
from edgelm.errors import ModelFileError

FLOAT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class Entry:
    """One tensor of the file: its GGUF name, ggml type and Hugging Face shape."""

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row; for a vector, of one number."""
        inputs = torch.Size(self.shape[1:]).numel()
        if self.kind in FLOAT_BYTES:
            return inputs * FLOAT_BYTES[self.kind]
        layout = LAYOUTS[self.kind]
        return inputs // layout.weights * layout.nbytes

    @property
    def nbytes(self) -> int:
        return self.shape[0] * self.row_bytes


def create_gguf(
    path: Path, architecture: str, metadata: Mapping[str, Any], entries: list[Entry]
) -> None:
    """Create a file at its full length with everything except the tensors' bytes."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        _add(writer, key, value)
    for entry in entries:
        kind = gguf.GGMLQuantizationType[entry.kind]
        shape = entry.shape if entry.kind in FLOAT_BYTES else (entry.shape[0], entry.row_bytes)
        dtype = np.dtype(np.float32 if entry.kind in FLOAT_BYTES else np.uint8)
        writer.add_tensor_info(entry.name, shape, dtype, entry.nbytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    align = writer.data_alignment
    sizes = [path.stat().st_size, *(entry.nbytes for entry in entries)]
    with path.open("r+b") as file:
        whole = sum(-(-size // align) * align for size in sizes)
        reserve(file.fileno(), whole)
        file.truncate(whole)


class GGUFTensors:
    """The tensors of a file that ``create_gguf`` made, written in any order."""

    def __init__(self, path: Path) -> None:
        self.path, self._places = path, read_header(path).tensors
        self._file = path.open("r+b", buffering=0)

    def write(self, name: str, data: Tensor) -> str:
        """Write all bytes of a tensor, uint8; returns their sha256."""
        view = data.contiguous().numpy().reshape(-1).data
        self._file.seek(self._places[name].offset)
        written = 0
        while written < len(view):
            written += self._file.write(view[written:]) or 0
        return hashlib.sha256(view).hexdigest()

    def verify(self, digests: Mapping[str, str]) -> None:
        """Flush the file to disk and read it back.

        Raises ModelFileError for a tensor whose sha256 is not the one in ``digests``.
        """
        os.fsync(self._file.fileno())
        with opened(self.path) as file:
            for name, expected in digests.items():
                stored = self._places[name]
                data = torch.empty(stored.nbytes, dtype=torch.uint8)
                fill(file, stored.offset, data, self.path)
                if hashlib.sha256(data.numpy().data).hexdigest() != expected:
                    raise ModelFileError(
                        f"{self.path}: {name} does not read back as it was written. The disk may "
                        "be failing. Delete the file and quantize again, elsewhere if this repeats."
                    )

    def close(self) -> None:
        self._file.close()


def _add(writer: Any, key: str, value: Any) -> None:
    """Add a key with the type that llama.cpp expects."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
