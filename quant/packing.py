"""The canonical layout of a stored matrix, from which every kernel's layout is made.

Codes of 4 bits: uint8 [N, K / 2], input k in byte k // 2, even k in the low nibble (the
little-endian bytes of compressed-tensors' int32 words). Codes of 5 and 6 bits: the lower four bits
of a row likewise, then its upper bits: uint8 [N, K / 2 + K / 8] with bit k % 8 of byte k // 8, or
[N, K / 2 + K / 4] with bits 2 (k % 4) and 2 (k % 4) + 1 of byte k // 4. int8: int8 [N, K]. Floats:
[N, K] in their type.
scales: [N, G] in the scheme's scale type, float16 by default. zeros: uint8 (4 to 6 bits) or int8
for "int", the scales' type for "float". Where scales are coded, they and "float" zeros are int8,
and supers [N, B, P] in the scale type are what they are multiplied by: of scales, then of zeros.

A weight's value, with code q, scale s and zero z of its group:
    zeros "none":  (q - 2^(bits - 1)) * s for 4 to 6 bits, q * s for int8
    zeros "int":   (q - z) * s
    zeros "float": q * s + z
    codebook:      codebook[q] * s
So each of GGUF's types in ``scheme.GGUF_NAMES`` is held exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .scheme import Scheme


class Grid(NamedTuple):
    """Scales, zeros and super-scales of some rows, as stored (see the module docstring).

    A field is None where the scheme has none. ``steps`` and ``minima`` are the numbers they mean.
    """

    scales: Tensor
    zeros: Tensor | None = None
    supers: Tensor | None = None

    def steps(self) -> Tensor:
        """The scale of every group, float32 [n, G]."""
        return self._decoded(self.scales, 0)

    def minima(self) -> Tensor:
        """The zero of every group where zeros are floats, float32 [n, G]."""
        assert self.zeros is not None
        return self._decoded(self.zeros, 1)

    def clone(self) -> Grid:
        """A copy whose scales and zeros may be changed."""
        return Grid(
            self.scales.clone(), None if self.zeros is None else self.zeros.clone(), self.supers
        )

    def _decoded(self, codes: Tensor, part: int) -> Tensor:
        if self.supers is None:
            return codes.float()
        blocks = self.supers.shape[1]
        factors = self.supers[..., part].float().unsqueeze(-1)
        return (codes.float().view(len(codes), blocks, -1) * factors).view(codes.shape)


@dataclass
class PackedWeight:
    """A matrix [N, K] in the canonical layout of its scheme (see the module docstring)."""

    scheme: Scheme
    shape: tuple[int, int]
    qweight: Tensor
    scales: Tensor | None = None
    zeros: Tensor | None = None
    supers: Tensor | None = None

    @staticmethod
    def empty(
        shape: tuple[int, int], scheme: Scheme, device: torch.device | str = "cpu"
    ) -> PackedWeight:
        """Uninitialised storage for a matrix of ``shape`` [N, K]; QuantError if it cannot be."""
        scheme.check(shape)
        outputs, inputs = shape
        width = inputs * scheme.bits // 8 if scheme.bits < 8 else inputs
        qweight = torch.empty(outputs, width, dtype=scheme.dtype, device=device)
        if scheme.is_float:
            return PackedWeight(scheme, shape, qweight)
        groups, stored = scheme.groups(inputs), scheme.stored_scale_dtype
        scales = torch.empty(outputs, groups, dtype=stored, device=device)
        zeros = supers = None
        if scheme.zeros != "none":
            dtype = stored if scheme.zeros == "float" else scheme.dtype
            zeros = torch.empty(outputs, groups, dtype=dtype, device=device)
        if scheme.coded:
            blocks = (outputs, scheme.super_groups(inputs), scheme.super_parts)
            supers = torch.empty(blocks, dtype=scheme.scale_dtype, device=device)
        return PackedWeight(scheme, shape, qweight, scales, zeros, supers)

    @property
    def grid(self) -> Grid:
        """The scales, zeros and super-scales; not of floats, which have none."""
        assert self.scales is not None
        return Grid(self.scales, self.zeros, self.supers)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that exist, by field name."""
        named = {name: getattr(self, name) for name in ("qweight", "scales", "zeros", "supers")}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @staticmethod
    def of(tensors: dict[str, Tensor], scheme: Scheme) -> PackedWeight:
        """The matrix whose ``tensors()`` these are."""
        rows, width = tensors["qweight"].shape
        inputs = width * 8 // scheme.bits if scheme.bits < 8 else width
        return PackedWeight(scheme, (rows, inputs), **tensors)

    def rows(self, start: int, stop: int) -> PackedWeight:
        """View of rows [start, stop)."""
        return self.of({n: t[start:stop] for n, t in self.tensors().items()}, self.scheme)

    def take(self, ids: Tensor) -> PackedWeight:
        """Copy of the rows ``ids`` (int64 [n])."""
        taken = {n: t.index_select(0, ids) for n, t in self.tensors().items()}
        return self.of(taken, self.scheme)

    def copy_rows_(self, start: int, block: PackedWeight) -> None:
        """Write ``block``'s rows at row ``start``."""
        for name, target in self.rows(start, start + block.shape[0]).tensors().items():
            target.copy_(block.tensors()[name])


def pack_codes(codes: Tensor, scheme: Scheme) -> Tensor:
    """Integer codes [n, K] of any numeric dtype -> ``qweight`` rows."""
    stored = codes.to(scheme.dtype)
    if scheme.bits == 8:
        return stored
    nibbles = stored[:, 0::2] & 15 | (stored[:, 1::2] << 4)
    if scheme.bits == 4:
        return nibbles
    return torch.cat([nibbles, _joined(stored >> 4, scheme.bits - 4)], dim=1)


def unpack_codes(qweight: Tensor, scheme: Scheme, out: Tensor) -> Tensor:
    """``qweight`` rows -> integer codes written into ``out`` [n, K] of any numeric dtype."""
    if scheme.bits == 8:
        return out.copy_(qweight)
    nibbles = qweight[:, : out.shape[1] // 2]
    out[:, 0::2].copy_(nibbles & 15)
    out[:, 1::2].copy_(nibbles >> 4)
    if scheme.bits > 4:
        bits = scheme.bits - 4
        upper = qweight[:, out.shape[1] // 2 :]
        for place in range(8 // bits):
            part = (upper >> (bits * place)) & (2**bits - 1)
            out[:, place :: 8 // bits] += part * 16
    return out


def _joined(parts: Tensor, bits: int) -> Tensor:
    """Numbers of ``bits`` bits, uint8 [n, K], in bytes, the first of each in its lowest bits."""
    count = 8 // bits
    joined = parts[:, 0::count].clone()
    for place in range(1, count):
        joined |= parts[:, place::count] << (bits * place)
    return joined


def swap_nibbles(qweight: Tensor) -> Tensor:
    """Swap the two codes of each byte: bitsandbytes keeps the even one in the high nibble."""
    return (qweight << 4) | (qweight >> 4)
