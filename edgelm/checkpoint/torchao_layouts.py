"""torchao's layouts of a weight: rows of each in the canonical layout.

    Bytes    Int8Tensor, IntxUnpackedToInt8Tensor: a code a byte, (q - zero_point) * scale
    Nibbles  Int4Tensor: two codes a byte, q * scale + zero_point
    Tiles    Int4TilePackedTo4dTensor: the tiles of a CUDA kernel, (q - 8) * scale + zero

Sources: torchao's quantization/quantize_/workflows, and for tiles PyTorch's cuda/int4mm.cu.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgelm.checkpoint.packed_matrix import damaged, row_blocks
from edgelm.checkpoint.safetensors_files import SafetensorsCheckpoint
from quant.packing import PackedWeight, pack_codes
from quant.scheme import Scheme

SIGNED_NIBBLES = 0x88 - 256  # between two codes -8..7 in a byte and the canonical 0..15, as int8
TILE_ROWS, TILE_INPUTS = 8, 128  # of a tile: 32 lanes, each with 4 words of 8 codes


@dataclass(frozen=True)
class Stored:
    """One weight: its name, sizes and scheme. block: inputs that share a scale in the file."""

    files: SafetensorsCheckpoint
    name: str
    shape: tuple[int, int]
    scheme: Scheme
    block: int

    @property
    def parts(self) -> tuple[str, ...]:
        kinds = ("qdata", "scale", "zero_point", "scale_and_zero")
        names = (part_name(self.name, kind) for kind in kinds)
        return tuple(name for name in names if name in self.files)

    def groups(self, stored: Tensor) -> Tensor:
        """[n, blocks] as stored -> [n, G] of the scheme, whose groups may be shorter."""
        inputs = self.shape[1]
        repeated = stored.repeat_interleave(self.block // (self.scheme.group_size or inputs), 1)
        return repeated[:, : self.scheme.groups(inputs)]


@dataclass(frozen=True)
class Bytes(Stored):
    """Int8Tensor and IntxUnpackedToInt8Tensor: qdata int8 [N, K], scale and zero_point [N, G]."""

    def rows(self, start: int, stop: int) -> PackedWeight:
        packed = PackedWeight.empty((stop - start, self.shape[1]), self.scheme)
        assert packed.scales is not None
        middle = self.scheme.middle
        for first, last in row_blocks(start, stop, self.shape[1]):
            codes = self._codes("qdata", first, last) + middle
            packed.qweight[first - start : last - start] = pack_codes(codes, self.scheme)
        scales = self.files.read_stored(part_name(self.name, "scale"), start, stop)
        packed.scales.copy_(self.groups(scales))
        if part_name(self.name, "zero_point") in self.files:
            zeros = self._codes("zero_point", start, stop)
            if packed.zeros is not None:
                packed.zeros.copy_(self.groups(zeros + middle))
            elif bool(zeros.any()):
                raise damaged(self.files, f"{self.name} is symmetric, but has zero points")
        return packed

    def _codes(self, kind: str, start: int, stop: int) -> Tensor:
        """int8 rows of a part, which must be in the range of the scheme's bits."""
        codes = self.files.read_stored(part_name(self.name, kind), start, stop)
        if self.scheme.bits == 4 and bool(((codes < -8) | (codes > 7)).any()):
            raise damaged(self.files, f"{part_name(self.name, kind)} holds more than 4 bits")
        return codes


@dataclass(frozen=True)
class Nibbles(Stored):
    """Int4Tensor: qdata int8 [N, K / 2], the even code low; scale and zero_point [G, N]."""

    def rows(self, start: int, stop: int) -> PackedWeight:
        packed = PackedWeight.empty((stop - start, self.shape[1]), self.scheme)
        for first, last in row_blocks(start, stop, packed.qweight.shape[1]):
            codes = self.files.read_stored(part_name(self.name, "qdata"), first, last)
            packed.qweight[first - start : last - start] = (codes ^ SIGNED_NIBBLES).view(
                torch.uint8
            )
        kinds = ("scale", "zero_point")
        own = (self.files.read_columns(part_name(self.name, k), start, stop).t() for k in kinds)
        return _with_middle(packed, *(self.groups(each) for each in own))


@dataclass(frozen=True)
class Tiles(Stored):
    """Int4TilePackedTo4dTensor: qdata int32 [N / 8, K / 128, 32, 4], scale_and_zero [G, N, 2].

    Lane 4 * r + c holds row r of a tile; nibble p of its word j, from the lowest bits up, input
    32 * j + 8 * (p % 4) + 2 * c + p // 4 (PyTorch's cuda/int4mm.cu, as written for NVIDIA).
    """

    def rows(self, start: int, stop: int) -> PackedWeight:
        packed = PackedWeight.empty((stop - start, self.shape[1]), self.scheme)
        for first, last in row_blocks(start, stop, packed.qweight.shape[1]):
            codes = self._codes(first, last)
            packed.qweight[first - start : last - start] = pack_codes(codes, self.scheme)
        both = self.files.read_stored(part_name(self.name, "scale_and_zero"))[:, start:stop]
        scales, zeros = (self.groups(each.t()) for each in both.unbind(-1))
        return _with_middle(packed, scales, zeros)

    def _codes(self, start: int, stop: int) -> Tensor:
        """Codes of rows [start, stop), uint8 [n, K]."""
        tile = start // TILE_ROWS
        name = part_name(self.name, "qdata")
        words = self.files.read_stored(name, tile, -(-stop // TILE_ROWS))
        lanes = words.view(*words.shape[:2], 8, 4, 4)  # tiles, their inputs, r, c, j
        nibbles = torch.stack([(lanes >> 4 * place) & 15 for place in range(8)], -1)
        nibbles = nibbles.to(torch.uint8).unflatten(-1, (2, 4))  # p // 4, p % 4
        codes = nibbles.permute(0, 2, 1, 4, 6, 3, 5).reshape(len(words) * TILE_ROWS, -1)
        return codes[start - tile * TILE_ROWS : stop - tile * TILE_ROWS, : self.shape[1]]


def _with_middle(packed: PackedWeight, scales: Tensor, zeros: Tensor) -> PackedWeight:
    """Set scales and minima of a matrix whose zeros are the values of code 8."""
    assert packed.scales is not None and packed.zeros is not None
    packed.scales.copy_(scales)
    packed.zeros.copy_(zeros.float() - 8 * packed.scales)
    return packed


def part_name(name: str, kind: str) -> str:
    return f"{name.removesuffix('weight')}_weight_{kind}"
