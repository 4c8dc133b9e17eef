"""GPTQ checkpoints (AutoGPTQ, GPTQModel): codes packed along the inputs, a column per output.

Per module: ``qweight`` int32 [K * bits / 32, N], ``qzeros`` int32 [G, N * bits / 32], ``scales``
[G, N], ``g_idx`` [K]. Version 1 stores each zero point less one. Frantar et al. 2022,
arXiv:2210.17323; the layout is auto_gptq's qlinear_cuda.py. GPTQModel's ``dynamic`` gives modules
other bits and groups by patterns of their names; the shapes of a module's tensors say which it got.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from edgelm.checkpoint.act_order import ActOrder, in_order
from edgelm.checkpoint.packed_matrix import (
    PackedMatrix,
    canonical_codes,
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
from quant.packing import PackedWeight
from quant.scheme import Scheme

logger = logging.getLogger("edgelm")
Layout = tuple[int, int]
"""Bits and group size, -1 for one group per output."""


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
        zeros = self.zeros(start, stop)
        if packed.zeros is not None:
            packed.zeros.copy_(canonical_codes(zeros, bits))
        elif bool((zeros != 1 << (bits - 1)).any()):
            raise damaged(
                files, f"{self.module}.qzeros holds zero points where config.json says sym = true"
            )
        return packed

    def zeros(self, start: int, stop: int) -> Tensor:
        """Zero points among unsigned codes, uint8 [n, G]."""
        bits, per_word = self.scheme.bits, 32 // self.scheme.bits
        first = start // per_word
        words = self.files.read_columns(f"{self.module}.qzeros", first, -(-stop // per_word))
        stored = unpack_rows(words.t().contiguous(), bits)
        stored = stored[start - first * per_word : stop - first * per_word]
        # Modulo the number of codes: version 1 wraps zero 0 to the highest code.
        return (stored + self.zero_offset) & ((1 << bits) - 1)


def matrices(
    files: SafetensorsCheckpoint, settings: Mapping[str, Any]
) -> Mapping[str, PackedMatrix | ActOrder]:
    """The packed weights by name; ``settings`` is the quantization_config.

    Raises:
        UnsupportedModelError: other bits or groups.
        ModelFileError: a part of a weight is missing or has another shape.
    """
    rules = _rules(files, settings)
    layouts = list(dict.fromkeys(_layout(files, rule) for rule in rules))
    told = [setting(files, rule, "sym", (True, False, None)) for rule in rules]
    symmetric = False not in told
    version = setting(files, settings, "checkpoint_format", ("gptq", "gptq_v2", None))
    offset = 0 if version == "gptq_v2" else 1
    ending = ".qweight"
    modules = [name.removesuffix(ending) for name in files.names() if name.endswith(ending)]
    found = [_open(files, module, layouts, symmetric, offset) for module in modules]
    if symmetric and found and _has_other_version(found[0]):
        logger.warning(
            "%s: its zero points are those of version %s of GPTQ, though checkpoint_format says "
            "%r: sym = true holds only so, and they are read so.",
            files.path, 1 if offset == 0 else 2, version or "gptq",
        )  # fmt: skip
        found = [replace(matrix, zero_offset=1 - offset) for matrix in found]
    return {
        f"{matrix.module}.weight": in_order(files, matrix, f"{matrix.module}.g_idx")
        for matrix in found
    }


def _rules(files: SafetensorsCheckpoint, settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The settings of any module, and with the changes that each pattern of ``dynamic`` makes.

    Patterns with "-:" name modules that are not quantized.
    """
    dynamic = settings.get("dynamic") or {}
    if not isinstance(dynamic, dict):
        raise damaged(files, "quantization_config has dynamic that is not an object")
    rules: list[Mapping[str, Any]] = [settings]
    for pattern, changes in dynamic.items():
        if pattern.startswith("-:"):
            continue
        if not isinstance(changes, dict):
            raise damaged(files, f"quantization_config has dynamic[{pattern!r:.80}] = {changes!r}")
        rules.append({**settings, **changes})
    return rules


def _layout(files: SafetensorsCheckpoint, rule: Mapping[str, Any]) -> Layout:
    setting(files, rule, "pack_dtype", ("int32", None))
    bits = setting(files, rule, "bits", (4, 8))
    return bits, setting(files, rule, "group_size", (-1, 32, 64, 128))


def _has_other_version(matrix: GPTQMatrix) -> bool:
    """True if a symmetric matrix has its zero in the middle only in the other version's reading."""
    middle = 1 << (matrix.scheme.bits - 1)
    zeros = matrix.zeros(0, min(matrix.shape[0], 32 // matrix.scheme.bits))
    return bool((zeros == middle + 2 * matrix.zero_offset - 1).all())


def _open(
    files: SafetensorsCheckpoint, module: str, layouts: list[Layout], symmetric: bool,
    zero_offset: int,
) -> GPTQMatrix:  # fmt: skip
    words = part(files, f"{module}.qweight").shape
    if len(words) != 2 or min(words) < 1:
        raise damaged(files, f"{module}.qweight has shape {list(words)}, expected two sizes")
    stored = part(files, f"{module}.qzeros").shape
    # The first is that of most modules, whose shapes an error then names.
    bits, group_size = next(
        (own for own in layouts if _zero_shape(words, own) == stored), layouts[0]
    )
    inputs, outputs = words[0] * 32 // bits, words[1]
    groups, width = _zero_shape(words, (bits, group_size))
    shaped(files, f"{module}.qweight", words, ("I32",))
    shaped(files, f"{module}.qzeros", (groups, width), ("I32",))
    kept = scale_type(files, f"{module}.scales", (groups, outputs))
    scheme = checked(
        files, module, (outputs, inputs), bits=bits,
        group_size=None if group_size == -1 else group_size,
        zeros="none" if symmetric else "int", scales=kept,
    )  # fmt: skip
    return GPTQMatrix(files, module, (outputs, inputs), scheme, zero_offset)


def _zero_shape(words: tuple[int, ...], layout: Layout) -> tuple[int, int]:
    """Shape of ``qzeros`` beside ``qweight`` of shape ``words``."""
    bits, group_size = layout
    inputs = words[0] * 32 // bits
    groups = 1 if group_size == -1 else -(-inputs // group_size)
    return groups, -(-words[1] * bits // 32)
