"""Conversion of float rows to packed matrices, a block at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from .errors import QuantError
from .groupwise import dequantize
from .hessian import Curvature
from .methods import CALIBRATED_METHODS, METHODS
from .methods.natively import quantize_natively
from .metrics import Sqnr
from .names import DEFAULT_METHOD
from .packing import PackedWeight
from .scheme import Scheme

# Number of weights processed at once: their float32 temporaries (a few MiB) stay in the cache.
_BLOCK_ELEMENTS = 1 << 18


def pack(
    blocks: Iterable[tuple[int, Tensor]],
    shape: tuple[int, int],
    scheme: Scheme,
    method: str = DEFAULT_METHOD,
    device: torch.device | str = "cpu",
    error: Sqnr | None = None,
) -> tuple[PackedWeight, float | None]:
    """Store a matrix of ``shape`` [N, K] whose rows arrive as ``blocks`` (first row, float [n, K]).

    Blocks come in order and without gaps, so a matrix of a gigabyte is never whole in float.
    Returns the packed matrix on ``device`` and its error in dB, None if every number is exact.
    Given ``error``, this call's is added to it, for a matrix that is packed in several calls.
    Raises QuantError for rows that miss, overlap or do not fit, numbers that are not finite, and
    an unknown method.
    """
    if method not in METHODS:
        raise QuantError(f"unknown method {method!r}; allowed: {', '.join(METHODS)}")
    packed = PackedWeight.empty(shape, scheme, device)
    error, filled = Sqnr() if error is None else error, 0
    for start, rows in blocks:
        if start != filled or rows.dim() != 2 or rows.shape[1] != shape[1]:
            raise QuantError(
                f"expected rows [n, {shape[1]}] from row {filled} on, "
                f"got {list(rows.shape)} at row {start}"
            )
        filled += rows.shape[0]
        if filled > shape[0]:
            raise QuantError(f"got rows up to {filled} for a matrix of {shape[0]} rows")
        for offset, block in _cache_sized(rows):
            stored = packed.rows(start + offset, start + offset + block.shape[0])
            _store(block, stored, method, error)
        del rows, block  # before the next ones are read
    if filled != shape[0]:
        raise QuantError(f"got {filled} rows for a matrix of {shape[0]} rows")
    return packed, None if math.isinf(error.db) else error.db


def pack_calibrated(
    rows: Tensor, curvature: Curvature, scheme: Scheme, method: str, error: Sqnr
) -> PackedWeight:
    """Store ``rows`` (float [n, K]) by a calibrated method, all at once: few rows are slow.

    curvature: that of the matrix's inputs. The error in the weights, which
    such a method increases in order to reduce that of the outputs, is added to ``error``.
    Raises QuantError for numbers that are not finite.
    """
    packed = CALIBRATED_METHODS[method](rows.float(), curvature, scheme)
    for start, block in _cache_sized(rows):
        error.add(block, dequantize(packed.rows(start, start + len(block))))
    return packed


def _cache_sized(rows: Tensor) -> Iterator[tuple[int, Tensor]]:
    step = max(1, _BLOCK_ELEMENTS // rows.shape[1])
    for start in range(0, rows.shape[0], step):
        yield start, rows[start : start + step].float().contiguous()


def _store(block: Tensor, stored: PackedWeight, method: str, error: Sqnr) -> None:
    """Pack ``block`` into ``stored`` and count its error."""
    sums = quantize_natively(block, stored, method)
    if sums is not None:
        error.signal, error.noise = error.signal + sums[0], error.noise + sums[1]
        return
    if stored.scheme.is_float:
        stored.qweight.copy_(block)
        if not bool(torch.isfinite(stored.qweight).all()):
            raise QuantError(
                f"weights hold NaN, infinite numbers or numbers beyond {stored.scheme}"
            )
    else:
        stored.copy_rows_(0, METHODS[method](block, stored.scheme))
    error.add(block, dequantize(stored).to(block.device))
