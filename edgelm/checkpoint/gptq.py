"""GPTQ checkpoints (AutoGPTQ, GPTQModel): codes packed along the inputs, a column per output.

Per module: ``qweight`` int32 [K * bits / 32, N], ``qzeros`` int32 [G, N * bits / 32], ``scales``
[G, N], ``g_idx`` [K]. Version 1 stores each zero point less one. Frantar et al. 2022,
arXiv:2210.17323; the layout is auto_gptq's qlinear_cuda.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgelm.checkpoint.packed_matrix import (
    PackedMatrix,
    canonical_codes,
    checked,
    damaged,
    part,
    reordered,
    row_blocks,
    scale_type,
    setting,
    shaped,
    unpack_rows,
    unsupported,
)
from edgelm.checkpoint.safetensors_files import SafetensorsCheckpoint
from quant.packing import PackedWeight, unpack_codes
from quant.scheme import Scheme


@dataclass(frozen=True)
class GPTQMatrix:
    """One weight; zero_offset must be added to its stored zero points."""

    files: SafetensorsCheckpoint
    module: str
    shape: tuple[int, int]
    scheme: Scheme
    zero_offset: int

    @property
    def parts(self) -> tuple[str, ...]:
        names = (f"{self.module}.{kind}" for kind in ("qweight", "qzeros", "scales", "g_idx"))
        return tuple(name for name in names if name in self.files)

    def rows(self, start: int, stop: int) -> PackedWeight:
        """Rows [start, stop): columns of the file, whose words' bytes are canonical bytes."""
        files, bits = self.files, self.scheme.bits
        packed = PackedWeight.empty((stop - start, self.shape[1]), self.scheme)
        assert packed.scales is not None
        for first, last in row_blocks(start, stop, packed.qweight.shape[1]):
            words = files.read_columns(f"{self.module}.qweight", first, last).t().contiguous()
            codes = canonical_codes(words.view(torch.uint8), bits)
            packed.qweight[first - start : last - start] = codes
        packed.scales.copy_(files.read_columns(f"{self.module}.scales", start, stop).t())
        zeros = self._zeros(start, stop)
        if packed.zeros is not None:
            packed.zeros.copy_(canonical_codes(zeros, bits))
        elif bool((zeros != 1 << (bits - 1)).any()):
            raise damaged(
                files, f"{self.module}.qzeros holds zero points where config.json says sym = true"
            )
        return packed

    def _zeros(self, start: int, stop: int) -> Tensor:
        """Zero points among unsigned codes, uint8 [n, G]."""
        bits, per_word = self.scheme.bits, 32 // self.scheme.bits
        first = start // per_word
        words = self.files.read_columns(f"{self.module}.qzeros", first, -(-stop // per_word))
        stored = unpack_rows(words.t().contiguous(), bits)
        stored = stored[start - first * per_word : stop - first * per_word]
        # Modulo the number of codes: version 1 wraps zero 0 to the highest code.
        return (stored + self.zero_offset) & ((1 << bits) - 1)


@dataclass(frozen=True)
class ActOrder:
    """A weight whose inputs are grouped by importance (desc_act).

    The kernels need groups of neighbouring inputs, so it is read as floats and requantized.
    """

    matrix: GPTQMatrix

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
        assert packed.scales is not None
        order = self.matrix.files.read_stored(f"{self.matrix.module}.g_idx").long()
        codes = unpack_codes(packed.qweight, scheme, torch.empty(packed.shape))
        zeros = 8 if scheme.bits == 4 else 0
        codes -= zeros if packed.zeros is None else packed.zeros[:, order]
        return codes * packed.scales.float()[:, order]


def matrices(
    files: SafetensorsCheckpoint, settings: Mapping[str, Any]
) -> Mapping[str, PackedMatrix | ActOrder]:
    """The packed weights by name; ``settings`` is the quantization_config.

    Raises:
        UnsupportedModelError: other bits or groups.
        ModelFileError: a part of a weight is missing or has another shape.
    """
    bits = setting(files, settings, "bits", (4, 8))
    group_size = setting(files, settings, "group_size", (-1, 32, 64, 128))
    symmetric = setting(files, settings, "sym", (True, False, None)) is not False
    version = setting(files, settings, "checkpoint_format", ("gptq", "gptq_v2", None))
    if settings.get("dynamic"):
        raise unsupported(
            files, "was quantized with different settings per module (GPTQ's dynamic)"
        )
    offset = 0 if version == "gptq_v2" else 1
    ending = ".qweight"
    modules = [name.removesuffix(ending) for name in files.names() if name.endswith(ending)]
    return {
        f"{module}.weight": _open(files, module, bits, group_size, symmetric, offset)
        for module in modules
    }


def _open(
    files: SafetensorsCheckpoint, module: str, bits: int, group_size: int, symmetric: bool,
    zero_offset: int,
) -> GPTQMatrix | ActOrder:  # fmt: skip
    words = part(files, f"{module}.qweight").shape
    if len(words) != 2 or min(words) < 1:
        raise damaged(files, f"{module}.qweight has shape {list(words)}, expected two sizes")
    inputs, outputs = words[0] * 32 // bits, words[1]
    groups = 1 if group_size == -1 else -(-inputs // group_size)
    shaped(files, f"{module}.qweight", words, ("I32",))
    shaped(files, f"{module}.qzeros", (groups, -(-outputs * bits // 32)), ("I32",))
    kept = scale_type(files, f"{module}.scales", (groups, outputs))
    by_importance = False
    if f"{module}.g_idx" in files:
        size = inputs if group_size == -1 else group_size
        by_importance = reordered(files, f"{module}.g_idx", inputs, size)
    scheme = checked(
        files, module, (outputs, inputs), bits=bits,
        group_size=None if group_size == -1 else group_size,
        zeros="none" if symmetric else "int", scales=kept,
    )  # fmt: skip
    matrix = GPTQMatrix(files, module, (outputs, inputs), scheme, zero_offset)
    if not by_importance:
        return matrix
    order = files.read_stored(f"{module}.g_idx")
    if int(order.min()) < 0 or int(order.max()) >= groups:
        raise damaged(files, f"{module}.g_idx refers to groups beyond the {groups} that exist")
    return ActOrder(matrix)
