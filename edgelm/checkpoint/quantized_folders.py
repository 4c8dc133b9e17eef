"""Folders quantized by other tools, run in the bits they are stored in."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from edgelm.checkpoint.act_order import ActOrder
from edgelm.checkpoint.packed_matrix import PackedMatrix, damaged
from edgelm.checkpoint.protocol import TensorInfo
from edgelm.checkpoint.rows import span
from edgelm.checkpoint.safetensors_files import INDEX, SINGLE, SafetensorsCheckpoint, read_json
from edgelm.checkpoint.stored import FLOATS
from edgelm.errors import UnsupportedModelError
from edgelm.plain_file import is_present
from quant.groupwise import dequantize
from quant.packing import PackedWeight

logger = logging.getLogger("edgelm")

# quant_method -> the module whose ``matrices`` finds the packed weights
READERS = {
    "awq": "awq",
    "bitsandbytes": "bitsandbytes_files",
    "compressed-tensors": "compressed_tensors",
    "gptq": "gptq",
    "torchao": "torchao_files",
}

AUTOGPTQ_SETTINGS = "quantize_config.json"
# Ends of the names of tensors that stand beside quantized weights, whatever type these are kept in.
BESIDE_QUANTIZED = ("scale", "scales", "scale_inv", "zero_point", "absmax", "SCB", "g_idx")


def quantization_settings(path: Path) -> Any:
    """Quantization settings of a folder; None if it is not quantized.

    They are config.json's quantization_config. Before transformers supported GPTQ, AutoGPTQ wrote
    the same keys to a separate file.
    """
    settings = read_json(path / "config.json").get("quantization_config")
    if settings is None and is_present(path / AUTOGPTQ_SETTINGS):
        return {"quant_method": "gptq"} | read_json(path / AUTOGPTQ_SETTINGS)
    return settings


def open_quantized(path: Path) -> QuantizedFolder | SafetensorsCheckpoint:
    """Open a folder that has settings of quantization.

    Its floats alone, with a warning, if nothing in it is quantized: training, merging and
    dequantizing leave the settings behind.

    Raises:
        UnsupportedModelError: another method, or weights that are pickled or in a layout of the
            method that is not read.
        ModelFileError: a damaged or incomplete file.
    """
    settings = quantization_settings(path)
    method = _method(path, settings)
    if not any((path / name).is_file() for name in (SINGLE, INDEX)) and any(path.glob("*.bin")):
        raise UnsupportedModelError(
            f"{path} holds pickled weights quantized by {method} (quantization_config), which are "
            "read from safetensors alone. Save the model again in the library that wrote it "
            "(save_pretrained in today's transformers), or remove that key if the weights are "
            "floats and add --allow-pickle if you trust them."
        )
    files = SafetensorsCheckpoint(path)
    if _holds_floats_alone(files):
        logger.warning(
            "%s: quantization_config says %s, but the weights are plain floats; they are loaded as "
            "such. Remove that key from config.json, or quantize_config.json, to have no warning.",
            path,
            method,
        )
        files.config = {k: v for k, v in files.config.items() if k != "quantization_config"}
        return files
    reader = import_module(f"edgelm.checkpoint.{READERS[method]}")
    packed: Mapping[str, PackedMatrix | ActOrder] = reader.matrices(files, settings)
    if not packed:
        raise damaged(files, f"no weight is packed as {method} packs them")
    return QuantizedFolder(files, method, packed)


class QuantizedFolder:
    """A folder with safetensors and settings of quantization.

    Args:
        files: its tensors. format: the quant_method of its settings.
        packed: its packed weights by name, as the method's reader found them.
    """

    def __init__(
        self, files: SafetensorsCheckpoint, format: str,
        packed: Mapping[str, PackedMatrix | ActOrder],
    ) -> None:  # fmt: skip
        self.path, self.config, self.format = files.path, files.config, format
        self.metadata: dict[str, Any] = {}
        self._files, self._packed = files, packed
        parts = {name for matrix in packed.values() for name in matrix.parts}
        self._floats = [name for name in files.names() if name not in parts]

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
    """quant_method; before transformers had that key, it wrote bitsandbytes' settings alone."""
    method = settings.get("quant_method") if isinstance(settings, dict) else settings
    if isinstance(settings, dict) and "quant_method" not in settings:
        method = "bitsandbytes" if _loads_bitsandbytes(settings) else None
    if not isinstance(settings, dict) or not isinstance(method, str) or method not in READERS:
        raise UnsupportedModelError(
            f"{path} holds weights quantized by {method!r} (quantization_config in config.json); "
            f"supported: {', '.join(READERS)}. Use one of these, or the original 16-bit "
            "or 32-bit model and --quant; if the weights are floats, remove that key."
        )
    return method


def _loads_bitsandbytes(settings: Mapping[str, Any]) -> bool:
    return any(settings.get(f"load_in_{bits}bit") is True for bits in (4, 8))


def _holds_floats_alone(files: SafetensorsCheckpoint) -> bool:
    floats = {str(dtype).removeprefix("torch.") for dtype in FLOATS.values()}
    names = files.names()
    return {files.info(name).dtype for name in names} <= floats and not any(
        name.endswith(BESIDE_QUANTIZED) for name in names
    )
