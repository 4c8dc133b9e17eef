"""compressed-tensors' ``pack-quantized`` layout of packed matrices: pure functions both ways.

A matrix [N, K] named ``x.weight`` becomes, under ``x.``:
    weight_packed      int32 [N, ceil(K * bits / 32)]: unsigned codes, the first in the lowest bits
    weight_scale       [N, G] in the scheme's type; some older folders have float32 instead
    weight_zero_point  int32 [ceil(N * bits / 32), G]: unsigned zeros, packed along the rows
    weight_shape       int64 [2]
    weight_minimum     [N, G] in the scales' type: the float zeros of ``-zfloat`` schemes
Unsigned codes are 0..15 as in the canonical layout, and for 8 bits the signed code plus 128.
Float zeros and codebooks (nf4, fp4) are not part of that format; folders of format version 1 have
them all the same, and are still read.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from quant import PackedWeight, Scheme
from quant.scheme import FLOATS

ROW_STEP = 8
"""Blocks of rows start at multiples of this, the number of int4 zeros that share a word."""

METHOD = "compressed-tensors"
Spec = tuple[torch.dtype, tuple[int, ...]]


def holds(scheme: Scheme) -> bool:
    """True if compressed-tensors can express matrices in ``scheme``."""
    return expresses(scheme) and scheme.zeros != "float" and scheme.codebook is None


def expresses(scheme: Scheme) -> bool:
    """True if folders of format version 1 may hold matrices in ``scheme``."""
    coded = scheme.coded or scheme.codebook == "iq4"
    return scheme.bits in (4, 8) and not coded and scheme.group_size != 16


def specs(
    scheme: Scheme, shape: tuple[int, int], scales: torch.dtype | None = None
) -> dict[str, Spec]:
    """Stored tensors of a matrix of ``shape``: suffix of the name -> dtype and shape.

    scales: their stored type in the files at hand; None is the scheme's type.
    """
    assert expresses(scheme), scheme
    own = FLOATS[scheme.scales]
    outputs, inputs = shape
    groups, per_word = scheme.groups(inputs), 32 // scheme.bits
    found: dict[str, Spec] = {
        "weight_packed": (torch.int32, (outputs, -(-inputs // per_word))),
        "weight_scale": (scales or own, (outputs, groups)),
        "weight_shape": (torch.int64, (2,)),
    }
    if scheme.zeros == "int":
        found["weight_zero_point"] = (torch.int32, (-(-outputs // per_word), groups))
    if scheme.zeros == "float":
        found["weight_minimum"] = (own, (outputs, groups))
    return found


def stored_bytes(spec: Spec) -> int:
    """Bytes of one stored tensor."""
    return math.prod(spec[1]) * spec[0].itemsize


def constants(scheme: Scheme, shape: tuple[int, int]) -> dict[str, Tensor]:
    """The stored tensors that do not depend on the weights."""
    return {"weight_shape": torch.tensor(shape)}


def first_row(suffix: str, scheme: Scheme, inputs: int, start: int) -> int:
    """The row of the stored tensor in which row ``start`` of the matrix lies."""
    return start * scheme.bits // 32 if suffix == "weight_zero_point" else start


def to_stored(packed: PackedWeight) -> dict[str, Tensor]:
    """Convert rows of a matrix to its stored tensors; only the last block may end mid-word."""
    assert packed.scales is not None
    scheme = packed.scheme
    found = {
        "weight_packed": _words(_unsigned(packed.qweight, scheme)),
        "weight_scale": packed.scales,
    }
    if scheme.zeros == "float":
        assert packed.zeros is not None
        found["weight_minimum"] = packed.zeros
    elif packed.zeros is not None:
        zeros = _unsigned(packed.zeros, scheme).t()
        if scheme.bits == 4:
            zeros = pad(zeros, (0, zeros.shape[1] % 2))
            zeros = zeros[:, 0::2] | (zeros[:, 1::2] << 4)
        found["weight_zero_point"] = _words(zeros).t().contiguous()
    return found


def from_stored(
    stored: dict[str, Tensor], scheme: Scheme, inputs: int, skip: int = 0
) -> PackedWeight:
    """Convert stored tensors back to rows of a matrix; every integer is preserved.

    skip: rows of the first word of zeros that lie before the block. Raises OverflowError for a
    scale that the scheme's type cannot represent, because it would be changed.
    """
    rows = stored["weight_packed"].shape[0]
    width = inputs * scheme.bits // 8
    qweight = _signed(_bytes(stored["weight_packed"])[:, :width], scheme)
    scales = stored["weight_scale"].to(FLOATS[scheme.scales])
    if not torch.equal(scales.to(stored["weight_scale"].dtype), stored["weight_scale"]):
        raise OverflowError(f"scales that are no {scheme.scales} numbers")
    zeros = stored.get("weight_minimum")
    if scheme.zeros == "int":
        packed = _bytes(stored["weight_zero_point"].t())
        if scheme.bits == 4:
            packed = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)
        zeros = _signed(packed[:, skip : skip + rows], scheme).t().contiguous()
    return PackedWeight(scheme, (rows, inputs), qweight.contiguous(), scales, zeros)


def _unsigned(codes: Tensor, scheme: Scheme) -> Tensor:
    """uint8 as stored; flipping the top bit adds 128 to a signed byte."""
    return codes if scheme.bits == 4 else codes.view(torch.uint8) ^ 128


def _signed(stored: Tensor, scheme: Scheme) -> Tensor:
    return stored if scheme.bits == 4 else (stored ^ 128).view(torch.int8)


def _words(rows: Tensor) -> Tensor:
    """uint8 [n, b] -> int32 [n, ceil(b / 4)], little-endian, padded with zeros."""
    padded = pad(rows, (0, -rows.shape[1] % 4))
    return padded.reshape(-1).view(torch.int32).view(len(rows), padded.shape[1] // 4)


def _bytes(words: Tensor) -> Tensor:
    return words.reshape(-1).view(torch.uint8).view(len(words), 4 * words.shape[1])
