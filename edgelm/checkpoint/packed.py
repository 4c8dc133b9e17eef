"""Folders written by ``edgelm quantize``: packed integers under Hugging Face's names.

``edgelm.json`` says which weights are packed and how; the headers must agree with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from edgelm.checkpoint import bitsandbytes_files, canonical_layout
from edgelm.checkpoint.bitsandbytes_layout import METHOD
from edgelm.checkpoint.manifest import MANIFEST, Manifest, Module
from edgelm.checkpoint.packed_layout import Spec, first_row, from_stored, specs
from edgelm.checkpoint.packed_matrix import PackedMatrix
from edgelm.checkpoint.protocol import TensorInfo
from edgelm.checkpoint.rows import span
from edgelm.checkpoint.safetensors_files import FLOATS, INTEGERS, SafetensorsCheckpoint
from edgelm.errors import ModelFileError
from quant.groupwise import dequantize
from quant.packing import PackedWeight

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOATS.values()} | INTEGERS


class PackedCheckpoint:
    """A folder with edgelm.json, config.json and safetensors."""

    format = "edgelm"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, Any] = {}
        self.manifest = Manifest.read(path / MANIFEST)
        self._files = SafetensorsCheckpoint(path)
        self.config = dict(self._files.config)
        # Where weights lie as bitsandbytes has them it says so; else less than the manifest.
        settings = self.config.pop("quantization_config", None)
        self._canonical = self.manifest.format_version > 1
        self._theirs: Mapping[str, PackedMatrix] = {}
        in_theirs = isinstance(settings, dict) and settings.get("quant_method") == METHOD
        if in_theirs and not self._canonical:
            self._theirs = bitsandbytes_files.matrices(self._files, settings)
        self._infos = self._read_infos()

    @property
    def files(self) -> list[Path]:
        return [self.path / MANIFEST, *self._files.files]

    def names(self) -> list[str]:
        return list(self._infos)

    def info(self, name: str) -> TensorInfo:
        return self._infos[name]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows [start, stop): the stored float dtype, float32 if packed."""
        if name in self.manifest.modules:
            return dequantize(self.read_packed(name, start, stop))
        return self._files.read(name, start, stop)

    def read_packed(self, name: str, start: int = 0, stop: int | None = None) -> PackedWeight:
        """Rows [start, stop) of a weight stored as integers, in the canonical layout."""
        module = self.manifest.modules[name]
        start, stop = span(module.shape[0], start, stop, name)
        if name in self._theirs:
            return self._theirs[name].rows(start, stop)
        if self._canonical:
            stem = name.removesuffix("weight")
            parts = {
                suffix: self._files.read_stored(stem + suffix, start, stop)
                for suffix in self._specs(name, module)
            }
            return canonical_layout.from_stored(parts, module.scheme)
        found = {}
        for suffix, (_, shape) in self._specs(name, module).items():
            if suffix == "weight_shape":
                continue
            first = first_row(suffix, module.scheme, module.shape[1], start)
            last = shape[0] if stop == module.shape[0] else self._last(suffix, module, stop)
            part = name.removesuffix("weight") + suffix
            found[suffix] = self._files.read_stored(part, first, last)
        skip = start % (32 // module.scheme.bits)
        try:
            return from_stored(found, module.scheme, module.shape[1], skip)
        except OverflowError as error:
            raise ModelFileError(f"{self.path}: {name} has {error}. Fetch it again.") from None

    def _last(self, suffix: str, module: Module, stop: int) -> int:
        scheme, inputs = module.scheme, module.shape[1]
        return first_row(suffix, scheme, inputs, stop - 1) + 1 if stop else 0

    def _read_infos(self) -> dict[str, TensorInfo]:
        """Header entry of every weight by name; stored parts are checked against the manifest."""
        parts: dict[str, str] = {}
        sizes: dict[str, int] = {}
        for name, module in self.manifest.modules.items():
            own = self._parts(name, module)
            sizes[name] = sum(self._files.info(part).nbytes for part in own)
            parts |= dict.fromkeys(own, name)
        infos = {}
        for stored_name in self._files.names():
            name = parts.get(stored_name, stored_name)
            if name in self.manifest.modules:
                module = self.manifest.modules[name]
                scheme = module.scheme
                infos[name] = TensorInfo(module.shape, str(scheme), scheme, sizes[name])
            else:
                info = self._files.info(name)
                floats = name in self.manifest.floats
                infos[name] = TensorInfo(info.shape, info.dtype, None, info.nbytes, floats)
        return infos

    def _parts(self, name: str, module: Module) -> list[str]:
        """Names of the stored parts of a weight, after checking each of them."""
        if name in self._theirs:
            found = self._theirs[name]
            if (found.scheme, found.shape) != (module.scheme, module.shape):
                raise ModelFileError(
                    f"{self.path}: {name} is {found.scheme} {list(found.shape)}; edgelm.json says "
                    f"{module.scheme} {list(module.shape)}. Copy the folder again."
                )
            return list(found.parts)
        wanted = self._specs(name, module).items()
        own = {name.removesuffix("weight") + suffix: spec for suffix, spec in wanted}
        for part, spec in own.items():
            self._checked(part, spec)
        return list(own)

    def _specs(self, name: str, module: Module) -> dict[str, Spec]:
        """Expected dtypes and shapes of a weight's parts; version 1 may have scales in float32."""
        if self._canonical:
            return canonical_layout.specs(module.scheme, module.shape)
        scale = name.removesuffix("weight") + "weight_scale"
        found = self._files.info(scale).dtype if scale in self._files else ""
        return specs(module.scheme, module.shape, _DTYPES.get(found))

    def _checked(self, part: str, spec: Spec) -> TensorInfo:
        if part not in self._files:
            raise ModelFileError(
                f"{self.path}: edgelm.json lists {part}, which the safetensors files lack. The "
                "folder is incomplete or mixed up: copy all of it again."
            )
        info, (dtype, shape) = self._files.info(part), spec
        if _DTYPES.get(info.dtype) != dtype or info.shape != shape:
            raise ModelFileError(
                f"{self.path}: {part} is {info.dtype} {list(info.shape)}; edgelm.json implies "
                f"{dtype} {list(shape)}. Copy the folder again."
            )
        return info
