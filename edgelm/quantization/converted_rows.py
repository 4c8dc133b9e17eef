"""Conversion of a weight's rows to their stored form: read and packed a block at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from edgelm.budget.units import BLOCK_BYTES
from edgelm.checkpoint.packed_layout import ROW_STEP
from edgelm.checkpoint.protocol import Checkpoint
from edgelm.errors import ModelFileError
from edgelm.quantization.conversion import TABLE_METHOD, Target
from quant import (
    CALIBRATED_METHODS,
    Curvature,
    PackedWeight,
    QuantError,
    Sqnr,
    pack,
    pack_calibrated,
)


def row_blocks(target: Target) -> Iterator[tuple[int, int]]:
    """Row ranges of about BLOCK_BYTES in float32; a scalar is one row."""
    rows = target.shape[0] if target.shape else 1
    row_bytes = 4 * max(1, torch.Size(target.shape[1:]).numel())
    step = max(1, BLOCK_BYTES // row_bytes // ROW_STEP) * ROW_STEP
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def block_bytes(target: Target) -> int:
    """Of the largest of ``row_blocks``, in float32, at most."""
    return min(BLOCK_BYTES, 4 * math.prod(target.shape))


def converted_rows(
    checkpoint: Checkpoint, target: Target, start: int, stop: int, method: str, error: Sqnr,
    curvature: Curvature | None = None,
) -> PackedWeight | torch.Tensor:  # fmt: skip
    """Convert rows [start, stop) of a weight to their stored form; adds the loss to ``error``.

    curvature: that of the weight's inputs, for a calibrated method.
    """
    source = target.source or target.name
    if target.kept:
        kept = checkpoint.read_packed(source, start, stop)
        try:
            kept.check()
        except QuantError as problem:
            raise _damaged(checkpoint, target.name, str(problem)) from problem
        return kept
    rows = checkpoint.read(source, start, stop)
    if target.scheme is None:
        if not bool(torch.isfinite(rows).all()):
            raise _damaged(checkpoint, target.name, "NaN or infinity")
        return rows.to(target.dtype)
    try:
        shape = (rows.shape[0], rows.shape[1])
        if curvature is not None:
            return pack_calibrated(rows, curvature, target.scheme, method, error)
        own = TABLE_METHOD if method in CALIBRATED_METHODS else method
        return pack([(0, rows)], shape, target.scheme, own, error=error)[0]
    except QuantError as problem:
        raise _damaged(checkpoint, target.name, str(problem)) from problem


def _damaged(checkpoint: Checkpoint, name: str, problem: str) -> ModelFileError:
    return ModelFileError(f"{checkpoint.path}: tensor {name}: {problem}")
