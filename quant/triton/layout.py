"""Memory layout of a matrix for the Triton kernels: 32-bit words in planes.

A word holds 8 codes of int4 (nf4, fp4) or 4 of int8. Its codes are not neighbours: the words of a
group hold, in their lowest bits, the first inputs of the group, in the next bits the inputs after
those, and so on. So all threads take the same bits of their word at once, and the activations they
need are contiguous. If a row has one scale, the whole row is such a group.

Codes are unsigned (int8 has 128 added, and its integer zeros too), scales and zeros as packed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..packing import PackedWeight, unpack_codes
from ..scheme import Scheme

# Rows with one scale are padded to a multiple of this number of words, so that every plane begins
# at a multiple of 16 bytes of activations.
_ROW_WORDS = 16
_ROW_PIECE = 4  # words of such a row that are summed before the rest: one load of 16 bytes
_BLOCK_ELEMENTS = 1 << 20  # codes that ``words`` processes at once


@dataclass(frozen=True)
class Geometry:
    """Position of each input of a row: word j of plane i of piece p holds input
    k = p * piece_stride + i * plane_stride + j, in bits [i * bits, (i + 1) * bits).

    span: words of a piece. A piece is a group, or 4 words of a row with one scale. groups: scales
    of a row. planes: codes of a word.
    """

    bits: int
    inputs: int
    groups: int
    grouped: bool
    pieces: int
    span: int
    piece_stride: int
    plane_stride: int

    @property
    def planes(self) -> int:
        return 32 // self.bits

    @property
    def words(self) -> int:
        """Words of a row."""
        return self.pieces * self.span


@cache
def geometry(scheme: Scheme, inputs: int) -> Geometry:
    """The layout of rows of ``inputs`` weights."""
    planes = 32 // scheme.bits
    if scheme.group_size is not None:
        groups, span = scheme.groups(inputs), scheme.group_size // planes
        return Geometry(scheme.bits, inputs, groups, True, groups, span, scheme.group_size, span)
    words = -(-inputs // (planes * _ROW_WORDS)) * _ROW_WORDS
    pieces = words // _ROW_PIECE
    return Geometry(scheme.bits, inputs, 1, False, pieces, _ROW_PIECE, _ROW_PIECE, words)


def nbytes(scheme: Scheme, shape: tuple[int, int]) -> int:
    """Bytes of words, scales and zeros."""
    outputs, inputs = shape
    codes = outputs * inputs * scheme.bits // 8
    return scheme.nbytes(shape) - codes + outputs * geometry(scheme, inputs).words * 4


def empty(scheme: Scheme, shape: tuple[int, int]) -> dict[str, Tensor]:
    """Types and shapes of what ``laid_out`` returns, on the meta device."""
    tensors = PackedWeight.empty(shape, scheme, "meta").tensors()
    words = torch.empty(
        shape[0], geometry(scheme, shape[1]).words, dtype=torch.int32, device="meta"
    )
    tensors["qweight"] = words
    if "zeros" in tensors and scheme.bits == 8 and scheme.zeros == "int":
        tensors["zeros"] = tensors["zeros"].view(torch.uint8)
    return tensors


def laid_out(packed: PackedWeight) -> dict[str, Tensor]:
    """qweight: int32 [N, words]; scales and zeros [N, G]."""
    assert packed.scales is not None
    tensors = {"qweight": words(packed), "scales": packed.scales.contiguous()}
    if packed.zeros is not None:
        unsigned = packed.scheme.bits == 8 and packed.scheme.zeros == "int"
        zeros = packed.zeros.contiguous()
        tensors["zeros"] = zeros.view(torch.uint8) ^ 128 if unsigned else zeros
    return tensors


def words(packed: PackedWeight) -> Tensor:
    """The codes of ``packed`` as int32 [N, words], a block of rows at a time."""
    outputs, inputs = packed.shape
    own = geometry(packed.scheme, inputs)
    made = torch.zeros(outputs, own.words, dtype=torch.int32, device=packed.qweight.device)
    step = max(1, _BLOCK_ELEMENTS // inputs)
    filled = own.words * own.planes
    codes = made.new_zeros(min(step, outputs), filled, dtype=torch.uint8)
    for start in range(0, outputs, step):
        part = packed.rows(start, min(start + step, outputs))
        block = codes[: part.shape[0]]
        if own.bits == 8:
            torch.bitwise_xor(part.qweight.view(torch.uint8), 128, out=block[:, :inputs])
        else:
            unpack_codes(part.qweight, part.scheme, block[:, :inputs])
        planes = block.view(len(block), own.groups, own.planes, -1)
        target = made[start : start + len(block)].view(len(block), own.groups, -1)
        for plane in range(own.planes):
            target |= planes[:, :, plane].int() << (own.bits * plane)
    return made


def words_bytes(scheme: Scheme, shape: tuple[int, int]) -> int:
    """Upper bound of the bytes ``words`` takes in addition to its result."""
    width = geometry(scheme, shape[1]).words * (32 // scheme.bits)
    block = min(max(1, _BLOCK_ELEMENTS // shape[1]), shape[0]) * width
    # Codes of a byte, nibbles of it apart, and of a plane int32 codes before and after the shift.
    return block * 3 + 2 * 4 * block // (32 // scheme.bits)
