"""AWQ checkpoints in the GEMM layout: int4 codes packed along the outputs, in AWQ's order.

Per module: ``qweight`` int32 [K, N / 8], ``qzeros`` int32 [G, N / 8], ``scales`` [G, N]. Of a
word's eight outputs the even ones stand in the low half. Lin et al. 2023, arXiv:2306.00978; the
layout is AutoAWQ's modules/linear/gemm.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from edgelm.checkpoint.packed_matrix import (
    PackedMatrix,
    checked,
    damaged,
    part,
    row_blocks,
    scale_type,
    setting,
    shaped,
    unpack_rows,
)
from edgelm.checkpoint.safetensors_files import SafetensorsCheckpoint
from quant.packing import PackedWeight, pack_codes
from quant.scheme import Scheme

NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)  # positions of a word's outputs 0 to 7, from the lowest bits up


@dataclass(frozen=True)
class AWQMatrix:
    """One weight."""

    files: SafetensorsCheckpoint
    module: str
    shape: tuple[int, int]
    scheme: Scheme

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(f"{self.module}.{kind}" for kind in ("qweight", "qzeros", "scales"))

    def rows(self, start: int, stop: int) -> PackedWeight:
        """Rows [start, stop): columns of the file, nibble by nibble."""
        packed = PackedWeight.empty((stop - start, self.shape[1]), self.scheme)
        assert packed.scales is not None and packed.zeros is not None
        for first, last in row_blocks(start, stop, packed.qweight.shape[1]):
            codes = self._columns("qweight", first, last)
            packed.qweight[first - start : last - start] = pack_codes(codes, self.scheme)
        packed.scales.copy_(self.files.read_columns(f"{self.module}.scales", start, stop).t())
        packed.zeros.copy_(self._columns("qzeros", start, stop))
        return packed

    def _columns(self, kind: str, start: int, stop: int) -> Tensor:
        """Codes of outputs [start, stop), uint8 [n, rows of the stored tensor]."""
        first = start // 8
        words = self.files.read_columns(f"{self.module}.{kind}", first, -(-stop // 8))
        codes = unpack_rows(words.t().contiguous(), 4, NIBBLES)
        return codes[start - first * 8 : stop - first * 8]


def matrices(
    files: SafetensorsCheckpoint, settings: Mapping[str, Any]
) -> Mapping[str, PackedMatrix]:
    """The packed weights by name; ``settings`` is the quantization_config.

    Raises:
        UnsupportedModelError: other bits or groups, a layout other than GEMM.
        ModelFileError: a part of a weight is missing or has another shape.
    """
    keys = ("bits", "w_bit")
    setting(files, settings, next((key for key in keys if key in settings), keys[0]), (4,))
    keys = ("group_size", "q_group_size")
    group_size = setting(
        files, settings, next((key for key in keys if key in settings), keys[0]), (-1, 32, 64, 128)
    )
    for key in ("version", "format"):
        setting(files, settings, key, ("gemm", "GEMM", None))
    setting(files, settings, "zero_point", (True, None))
    ending = ".qweight"
    modules = [name.removesuffix(ending) for name in files.names() if name.endswith(ending)]
    return {f"{module}.weight": _open(files, module, group_size) for module in modules}


def _open(files: SafetensorsCheckpoint, module: str, group_size: int) -> AWQMatrix:
    words = part(files, f"{module}.qweight").shape
    if len(words) != 2 or min(words) < 1:
        raise damaged(files, f"{module}.qweight has shape {list(words)}, expected two sizes")
    inputs, outputs = words[0], words[1] * 8
    groups = 1 if group_size == -1 else -(-inputs // group_size)
    shaped(files, f"{module}.qweight", words, ("I32",))
    shaped(files, f"{module}.qzeros", (groups, words[1]), ("I32",))
    kept = scale_type(files, f"{module}.scales", (groups, outputs))
    scheme = checked(
        files, module, (outputs, inputs), bits=4,
        group_size=None if group_size == -1 else group_size, zeros="int", scales=kept,
    )  # fmt: skip
    return AWQMatrix(files, module, (outputs, inputs), scheme)
