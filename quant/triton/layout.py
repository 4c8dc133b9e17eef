"""Memory layout of a matrix for the Triton kernels: 32-bit words in planes.

A word holds 8 codes of int4 (nf4, fp4, iq4) or 4 of int8. Its codes are not neighbours: the words
of a group hold, in their lowest bits, the first inputs of the group, in the next bits the inputs
after those, and so on. So all threads take the same bits of their word at once, and the activations
they need are contiguous. If a row has one scale, the whole row is such a group.

Of codes of 5 and 6 bits, words hold the lower 4; the upper bits of a word's 8 codes are one number
of 8 or 16 bits, at the place of the word in a tensor of their own (``upper_place``).

Codes are unsigned (int8 has 128 added, and its integer zeros too); scales, zeros and super-scales
as packed.
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

    bits: of a code in its word. upper: further bits of a code, beside the word. span: words of a
    piece. A piece is a group, or 4 words of a row with one scale. groups: scales
    of a row. planes: codes of a word.
    """

    bits: int
    upper: int
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

    def upper_place(self, plane: int) -> int:
        """Lowest of the upper bits of a plane's code, among those of its word.

        4 bits apart as the nibbles are, so that one shift aligns several planes with theirs.
        """
        aligned = 2 * self.upper  # planes
        return 4 * (plane % aligned) + self.upper * (plane // aligned)


@cache
def geometry(scheme: Scheme, inputs: int) -> Geometry:
    """The layout of rows of ``inputs`` weights."""
    bits = 8 if scheme.bits == 8 else 4
    held, planes = (bits, scheme.bits - bits, inputs), 32 // bits
    if scheme.group_size is not None:
        groups, span = scheme.groups(inputs), scheme.group_size // planes
        return Geometry(*held, groups, True, groups, span, scheme.group_size, span)
    words = -(-inputs // (planes * _ROW_WORDS)) * _ROW_WORDS
    pieces = words // _ROW_PIECE
    return Geometry(*held, 1, False, pieces, _ROW_PIECE, _ROW_PIECE, words)


def nbytes(scheme: Scheme, shape: tuple[int, int]) -> int:
    """Bytes of words with their upper bits, and of scales, zeros and super-scales."""
    outputs, inputs = shape
    codes, own = outputs * inputs * scheme.bits // 8, geometry(scheme, inputs)
    return scheme.nbytes(shape) - codes + outputs * own.words * (4 + own.upper)


def empty(scheme: Scheme, shape: tuple[int, int]) -> dict[str, Tensor]:
    """Types and shapes of what ``laid_out`` returns, on the meta device."""
    tensors = PackedWeight.empty(shape, scheme, "meta").tensors()
    tensors |= _empty_words(scheme, shape, torch.device("meta"))
    if "zeros" in tensors and scheme.bits == 8 and scheme.zeros == "int":
        tensors["zeros"] = tensors["zeros"].view(torch.uint8)
    return tensors


def laid_out(packed: PackedWeight) -> dict[str, Tensor]:
    """qweight: int32 [N, words]; upper: uint8 or int16 [N, words]; the rest as packed."""
    tensors = words(packed)
    for name, tensor in packed.tensors().items():
        if name != "qweight":
            tensors[name] = tensor.contiguous()
    if packed.scheme.bits == 8 and packed.scheme.zeros == "int":
        tensors["zeros"] = tensors["zeros"].view(torch.uint8) ^ 128
    return tensors


def _empty_words(scheme: Scheme, shape: tuple[int, int], device: torch.device) -> dict[str, Tensor]:
    own = geometry(scheme, shape[1])
    size = (shape[0], own.words)
    made = {"qweight": torch.empty(size, dtype=torch.int32, device=device)}
    if own.upper:
        dtype = torch.uint8 if own.upper == 1 else torch.int16
        made["upper"] = torch.empty(size, dtype=dtype, device=device)
    return made


def words(packed: PackedWeight) -> dict[str, Tensor]:
    """The codes of ``packed``: words and what lies beside them, a block of rows at a time."""
    outputs, inputs = packed.shape
    own = geometry(packed.scheme, inputs)
    made = _empty_words(packed.scheme, packed.shape, packed.qweight.device)
    for tensor in made.values():
        tensor.zero_()
    step = max(1, _BLOCK_ELEMENTS // inputs)
    filled = own.words * own.planes
    codes = packed.qweight.new_zeros(min(step, outputs), filled, dtype=torch.uint8)
    for start in range(0, outputs, step):
        part = packed.rows(start, min(start + step, outputs))
        block = codes[: part.shape[0]]
        if own.bits == 8:
            torch.bitwise_xor(part.qweight.view(torch.uint8), 128, out=block[:, :inputs])
        else:
            unpack_codes(part.qweight, part.scheme, block[:, :inputs])
        planes = block.view(len(block), own.groups, own.planes, -1)
        parts = {
            name: tensor[start : start + len(block)].view(len(block), own.groups, -1)
            for name, tensor in made.items()
        }
        for plane in range(own.planes):
            taken = planes[:, :, plane]
            lower = taken & 15 if own.upper else taken
            parts["qweight"] |= lower.int() << (own.bits * plane)
            if own.upper:
                higher = (taken >> 4).to(parts["upper"].dtype)
                parts["upper"] |= higher << own.upper_place(plane)
    return made


def words_bytes(scheme: Scheme, shape: tuple[int, int]) -> int:
    """Upper bound of the bytes ``words`` takes in addition to its result."""
    own = geometry(scheme, shape[1])
    block = min(max(1, _BLOCK_ELEMENTS // shape[1]), shape[0]) * own.words * own.planes
    # Codes of a byte, parts of it apart, and of a plane int32 codes before and after the shift.
    return block * 3 + 2 * 4 * block // own.planes
