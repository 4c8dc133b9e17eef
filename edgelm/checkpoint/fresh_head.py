"""A checkpoint extended by the head it lacks: random weights, the same every time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgelm.checkpoint.protocol import Checkpoint, TensorInfo
from edgelm.checkpoint.rows import span
from quant import PackedWeight

SEED = 0


class FreshHead:
    """The weights of ``under`` plus those of ``shapes``: normal matrices and zero vectors.

    Args:
        shapes: by Hugging Face name. std: the matrices' standard deviation.
    """

    def __init__(self, under: Checkpoint, shapes: dict[str, tuple[int, ...]], std: float) -> None:
        self.under, self.shapes, self.std = under, shapes, std
        self.path: Path = under.path
        self.format = under.format

    @property
    def files(self) -> list[Path]:
        return self.under.files

    @property
    def config(self) -> dict[str, Any]:
        return self.under.config

    @property
    def metadata(self) -> dict[str, Any]:
        return self.under.metadata

    def names(self) -> list[str]:
        return [*self.under.names(), *self.shapes]

    def info(self, name: str) -> TensorInfo:
        if name not in self.shapes:
            return self.under.info(name)
        shape = self.shapes[name]
        return TensorInfo(shape, "float32", None, torch.Size(shape).numel() * 4)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        if name not in self.shapes:
            return self.under.read(name, start, stop)
        shape = self.shapes[name]
        first, last = span(shape[0], start, stop, name)
        if len(shape) == 1:
            return torch.zeros(last - first)
        generator = torch.Generator().manual_seed(SEED)
        return torch.randn(shape, generator=generator)[first:last] * self.std

    def read_packed(self, name: str, start: int = 0, stop: int | None = None) -> PackedWeight:
        return self.under.read_packed(name, start, stop)
