"""Folders quantized by other tools, run in the bits they are stored in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from edgelm.checkpoint.gptq import ActOrder
from edgelm.checkpoint.packed_matrix import PackedMatrix, damaged
from edgelm.checkpoint.protocol import TensorInfo
from edgelm.checkpoint.rows import span
from edgelm.checkpoint.safetensors_files import SafetensorsCheckpoint, read_json
from edgelm.errors import UnsupportedModelError
from quant.groupwise import dequantize
from quant.packing import PackedWeight

# quant_method -> the module whose ``matrices`` finds the packed weights
READERS = {
    "awq": "awq",
    "bitsandbytes": "bitsandbytes_files",
    "compressed-tensors": "compressed_tensors",
    "gptq": "gptq",
}

AUTOGPTQ_SETTINGS = "quantize_config.json"


def quantization_settings(path: Path) -> Any:
    """Quantization settings of a folder; None if it is not quantized.

    They are config.json's quantization_config. Before transformers supported GPTQ, AutoGPTQ wrote
    the same keys to a separate file.
    """
    settings = read_json(path / "config.json").get("quantization_config")
    if settings is None and (path / AUTOGPTQ_SETTINGS).is_file():
        return {"quant_method": "gptq"} | read_json(path / AUTOGPTQ_SETTINGS)
    return settings


class QuantizedFolder:
    """A folder with safetensors and settings of quantization; ``format`` is their quant_method."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, Any] = {}
        self._files = SafetensorsCheckpoint(path)
        self.config = self._files.config
        settings = quantization_settings(path)
        self.format = _method(path, settings)
        reader = import_module(f"edgelm.checkpoint.{READERS[self.format]}")
        self._packed: Mapping[str, PackedMatrix | ActOrder] = reader.matrices(self._files, settings)
        if not self._packed:
            raise damaged(self._files, f"no weight is packed as {self.format} packs them")
        parts = {name for matrix in self._packed.values() for name in matrix.parts}
        self._floats = [name for name in self._files.names() if name not in parts]

    @property
    def files(self) -> list[Path]:
        settings = self.path / AUTOGPTQ_SETTINGS
        return [*([settings] if settings.is_file() else []), *self._files.files]

    def names(self) -> list[str]:
        return [*self._packed, *self._floats]

    def info(self, name: str) -> TensorInfo:
        if name not in self._packed:
            return replace(self._files.info(name), stays_float=True)
        matrix = self._packed[name]
        nbytes = sum(self._files.info(part).nbytes for part in matrix.parts)
        if isinstance(matrix, ActOrder):
            told = f"{matrix.matrix.scheme} in act order"
            return TensorInfo(matrix.shape, told, None, nbytes, nearest=matrix.nearest)
        return TensorInfo(matrix.shape, str(matrix.scheme), matrix.scheme, nbytes)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows [start, stop) in the stored float dtype; packed weights give float32."""
        matrix = self._packed.get(name)
        if isinstance(matrix, ActOrder):
            return matrix.values(*span(matrix.shape[0], start, stop, name))
        if matrix is not None:
            return dequantize(self.read_packed(name, start, stop))
        return self._files.read(name, start, stop)

    def read_packed(self, name: str, start: int = 0, stop: int | None = None) -> PackedWeight:
        """Rows [start, stop) of a packed weight in the canonical layout, codes as stored."""
        matrix = self._packed[name]
        if isinstance(matrix, ActOrder):
            raise TypeError(f"{name} has its inputs in act order, which no packed layout has")
        return matrix.rows(*span(matrix.shape[0], start, stop, name))


def _method(path: Path, settings: Any) -> str:
    method = settings.get("quant_method") if isinstance(settings, dict) else settings
    if not isinstance(settings, dict) or not isinstance(method, str) or method not in READERS:
        raise UnsupportedModelError(
            f"{path} holds weights quantized by {method!r} (quantization_config in config.json); "
            f"supported: {', '.join(READERS)}. Use one of these, or the original 16-bit "
            "or 32-bit model and --quant."
        )
    return method
