"""The canonical layout of a stored matrix, from which every kernel's layout is made.

int4: uint8 [N, K / 2], input k in byte k // 2, even k in the low nibble (the little-endian bytes
of compressed-tensors' int32 words). int8: int8 [N, K]. Floats: [N, K] in their type.
scales: [N, G] in the scheme's scale type, float16 by default. zeros: uint8 (int4) or
int8 (int8) for "int", the scales' type for "float". nf4 and fp4: codes as for int4.

A weight's value, with code q, scale s and zero z of its group:
    zeros "none":  (q - 8) * s for int4, q * s for int8
    zeros "int":   (q - z) * s
    zeros "float": q * s + z
    codebook:      codebook[q] * s
So GGUF's Q4_0 is int4-g32, its Q4_1 int4-g32-zfloat and its Q8_0 int8-g32, all of them exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .scheme import Scheme


@dataclass
class PackedWeight:
    """A matrix [N, K] in the canonical layout of its scheme (see the module docstring)."""

    scheme: Scheme
    shape: tuple[int, int]
    qweight: Tensor
    scales: Tensor | None = None
    zeros: Tensor | None = None

    @staticmethod
    def empty(
        shape: tuple[int, int], scheme: Scheme, device: torch.device | str = "cpu"
    ) -> PackedWeight:
        """Uninitialised storage for a matrix of ``shape`` [N, K]; QuantError if it cannot be."""
        scheme.check(shape)
        outputs, inputs = shape
        width = inputs // 2 if scheme.bits == 4 else inputs
        qweight = torch.empty(outputs, width, dtype=scheme.dtype, device=device)
        if scheme.is_float:
            return PackedWeight(scheme, shape, qweight)
        groups = scheme.groups(inputs)
        scales = torch.empty(outputs, groups, dtype=scheme.scale_dtype, device=device)
        zeros = None
        if scheme.zeros != "none":
            dtype = scheme.scale_dtype if scheme.zeros == "float" else scheme.dtype
            zeros = torch.empty(outputs, groups, dtype=dtype, device=device)
        return PackedWeight(scheme, shape, qweight, scales, zeros)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that exist, by field name."""
        named = {"qweight": self.qweight, "scales": self.scales, "zeros": self.zeros}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @staticmethod
    def of(tensors: dict[str, Tensor], scheme: Scheme) -> PackedWeight:
        """The matrix whose ``tensors()`` these are."""
        qweight = tensors["qweight"]
        inputs = qweight.shape[1] * (2 if scheme.bits == 4 else 1)
        shape = (qweight.shape[0], inputs)
        return PackedWeight(scheme, shape, qweight, tensors.get("scales"), tensors.get("zeros"))

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
    return stored[:, 0::2] | (stored[:, 1::2] << 4)


def unpack_codes(qweight: Tensor, scheme: Scheme, out: Tensor) -> Tensor:
    """``qweight`` rows -> integer codes written into ``out`` [n, K] of any numeric dtype."""
    if scheme.bits == 8:
        return out.copy_(qweight)
    out[:, 0::2].copy_(qweight & 15)
    out[:, 1::2].copy_(qweight >> 4)
    return out


def swap_nibbles(qweight: Tensor) -> Tensor:
    """Swap the two codes of each byte: bitsandbytes keeps the even one in the high nibble."""
    return (qweight << 4) | (qweight >> 4)
