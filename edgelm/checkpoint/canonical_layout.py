"""The layout of folders for this package alone: each part of a ``PackedWeight`` as it is.

A matrix named ``x.weight`` becomes ``x.qweight``, ``x.scales`` and, where its scheme has them,
``x.zeros`` and ``x.supers``, in the shapes and types of ``quant/packing.py``.
"""

from __future__ import annotations

from torch import Tensor

from edgelm.checkpoint.packed_layout import Spec
from quant import PackedWeight, Scheme

METHOD = "edgelm"
REFUSAL = (
    "this folder was written by `edgelm quantize` and opens in edgelm only; its README.md says why"
)
"""Value of ``transformers_weights`` in config.json. transformers 5 expects a file name there and
quotes any other text in its error. For an unknown ``quant_method`` alone it would only warn, and
load random weights."""


def specs(scheme: Scheme, shape: tuple[int, int]) -> dict[str, Spec]:
    """Stored tensors of a matrix of ``shape``: suffix of the name -> dtype and shape."""
    parts = PackedWeight.empty(shape, scheme, "meta").tensors()
    return {name: (part.dtype, tuple(part.shape)) for name, part in parts.items()}


def first_row(suffix: str, scheme: Scheme, inputs: int, start: int) -> int:
    """The row of the stored tensor in which row ``start`` of the matrix lies."""
    return start


def constants(scheme: Scheme, shape: tuple[int, int]) -> dict[str, Tensor]:
    """The stored tensors that do not depend on the weights: none."""
    return {}


def to_stored(packed: PackedWeight) -> dict[str, Tensor]:
    """Convert rows of a matrix to its stored tensors."""
    return packed.tensors()


def from_stored(stored: dict[str, Tensor], scheme: Scheme) -> PackedWeight:
    """Convert stored tensors back to rows of a matrix."""
    return PackedWeight.of(stored, scheme)
