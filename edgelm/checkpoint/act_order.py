"""A packed weight whose inputs are grouped by importance: GPTQ's desc_act, act order.

``g_idx`` int32 [K] names the group of each input; codes stand in the inputs' own order. Frantar et
al. 2022, arXiv:2210.17323, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgelm.checkpoint.packed_matrix import PackedMatrix, damaged, shaped
from edgelm.checkpoint.safetensors_files import SafetensorsCheckpoint
from quant.packing import unpack_codes
from quant.scheme import Scheme


@dataclass(frozen=True)
class ActOrder:
    """One weight and the name of its ``g_idx``; ``matrix`` is int4 or int8 in groups.

    The kernels need groups of neighbouring inputs, so it is read as floats and requantized.
    """

    files: SafetensorsCheckpoint
    matrix: PackedMatrix
    order: str

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape

    @property
    def parts(self) -> tuple[str, ...]:
        return self.matrix.parts

    @property
    def nearest(self) -> Scheme:
        return Scheme(8, self.matrix.scheme.group_size)

    def values(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop) in float32, each input with the scale and zero of its group."""
        packed, scheme = self.matrix.rows(start, stop), self.matrix.scheme
        order = self.files.read_stored(self.order).long()
        codes = unpack_codes(packed.qweight, scheme, torch.empty(packed.shape))
        codes -= scheme.middle if packed.zeros is None else packed.zeros[:, order]
        return codes * packed.grid.steps()[:, order]


def in_order(
    files: SafetensorsCheckpoint, matrix: PackedMatrix, order: str
) -> PackedMatrix | ActOrder:
    """``matrix`` itself if ``order`` is absent, unset, or one group after another.

    Raises ModelFileError for groups that do not exist.
    """
    if order not in files:
        return matrix
    inputs = matrix.shape[1]
    shaped(files, order, (inputs,), ("I32", "I64"))
    groups = files.read_stored(order)
    in_turn = torch.arange(inputs, dtype=groups.dtype) // (matrix.scheme.group_size or inputs)
    if torch.equal(groups, in_turn) or not bool((groups != -1).any()):
        return matrix
    count = matrix.scheme.groups(inputs)
    if int(groups.min()) < 0 or int(groups.max()) >= count:
        raise damaged(files, f"{order} refers to groups beyond the {count} that exist")
    return ActOrder(files, matrix, order)
