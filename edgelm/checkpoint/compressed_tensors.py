"""compressed-tensors' ``pack-quantized`` layout: int4 and int8, in groups or per output row.

Per weight: ``weight_packed`` int32 [N, K * bits / 32], unsigned codes from the lowest bits up;
``weight_scale`` [N, G]; ``weight_shape``; for asymmetric ones ``weight_zero_point``, int32
[N * bits / 32, G], packed along the outputs; where actorder is "group", ``weight_g_idx`` [K].
Layout: compressed_tensors' pack_quantized/helpers.py. Which group of settings a module belongs to
(``targets`` and ``ignore``, by names, classes or patterns) is said by its tensors too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

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
    unsupported,
)
from edgelm.checkpoint.safetensors_files import SafetensorsCheckpoint
from quant.packing import PackedWeight
from quant.scheme import Scheme

FORMAT = "pack-quantized"
MIXED = "mixed-precision"  # each group of settings names its own format
ORDERS = ("group", "dynamic", "weight", "static", True, False, None)
"""Values of actorder: dynamic and true are names of group, static of weight."""
_ENDING = ".weight_packed"


@dataclass(frozen=True)
class PackQuantized:
    """One weight of such a folder; ``name`` is its Hugging Face name, ending in ``.weight``."""

    files: SafetensorsCheckpoint
    name: str
    shape: tuple[int, int]
    scheme: Scheme

    @property
    def parts(self) -> tuple[str, ...]:
        kinds = ("packed", "scale", "zero_point", "shape", "g_idx")
        names = (f"{self.name}_{kind}" for kind in kinds)
        return tuple(name for name in names if name in self.files)

    def rows(self, start: int, stop: int) -> PackedWeight:
        """Rows [start, stop); a word's bytes are canonical, with flipped sign bits for 8 bits."""
        bits = self.scheme.bits
        packed = PackedWeight.empty((stop - start, self.shape[1]), self.scheme)
        assert packed.scales is not None
        width = packed.qweight.shape[1]
        for first, last in row_blocks(start, stop, width):
            words = self.files.read_stored(f"{self.name}_packed", first, last)
            codes = words.view(torch.uint8)[:, :width]
            packed.qweight[first - start : last - start] = canonical_codes(codes, bits)
        packed.scales.copy_(self.files.read_stored(f"{self.name}_scale", start, stop))
        if packed.zeros is not None:
            per_word = 32 // bits
            first = start // per_word
            words = self.files.read_stored(f"{self.name}_zero_point", first, -(-stop // per_word))
            zeros = unpack_rows(words, bits)
            zeros = zeros[start - first * per_word : stop - first * per_word]
            packed.zeros.copy_(canonical_codes(zeros, bits))
        return packed


def matrices(
    files: SafetensorsCheckpoint, settings: Mapping[str, Any]
) -> Mapping[str, PackedMatrix | ActOrder]:
    """The packed weights by name; ``settings`` is the quantization_config.

    Raises:
        UnsupportedModelError: another format, bits or groups, or activations quantized too.
        ModelFileError: a part of a weight is missing or has another shape.
    """
    rules = _rules(files, settings)
    by_row = any(rule.get("strategy") == "channel" for rule in rules)
    asymmetric = not any(rule.get("symmetric", True) for rule in rules)
    names = [name.removesuffix("_packed") for name in files.names() if name.endswith(_ENDING)]
    return {
        name: in_order(files, _open(files, name, by_row, asymmetric), f"{name}_g_idx")
        for name in names
    }


def _rules(files: SafetensorsCheckpoint, settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Weight settings of each group of modules, all of them checked."""
    groups = settings.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise damaged(files, "quantization_config has no config_groups")
    transforms = settings.get("transform_config") or {}
    sparsity = settings.get("sparsity_config") or {}
    if not isinstance(transforms, dict) or not isinstance(sparsity, dict):
        raise damaged(files, "transform_config or sparsity_config is not an object")
    if transforms.get("config_groups") or sparsity.get("format", "dense") != "dense":
        raise unsupported(files, "holds transformed or sparse weights (compressed-tensors)")
    whole = setting(files, settings, "format", (FORMAT, MIXED, None))
    rules: list[Mapping[str, Any]] = []
    for group in groups.values():
        rule = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(rule, dict):
            raise damaged(files, "quantization_config has a group of config_groups without weights")
        setting(files, group, "format", (FORMAT,) if whole == MIXED else (FORMAT, None))
        setting(files, group, "input_activations", (None,))
        setting(files, group, "output_activations", (None,))
        setting(files, rule, "type", ("int", None))
        setting(files, rule, "num_bits", (4, 8))
        setting(files, rule, "strategy", ("group", "channel"))
        setting(files, rule, "actorder", ORDERS)
        rules.append(rule)
    return rules


def _open(files: SafetensorsCheckpoint, name: str, by_row: bool, asymmetric: bool) -> PackQuantized:
    shaped(files, f"{name}_shape", (2,), ("I64", "I32"))
    rows, inputs = (int(size) for size in files.read_stored(f"{name}_shape"))
    words = part(files, f"{name}_packed").shape
    # A row of ceil(K * bits / 32) words tells the bits.
    bits = next((b for b in (4, 8) if words == (rows, -(-inputs * b // 32))), None)
    if bits is None or rows < 1 or inputs < 8:
        raise damaged(
            files, f"{name}_packed of shape {list(words)} cannot hold {rows} x {inputs} codes"
        )
    shaped(files, f"{name}_packed", words, ("I32",))
    scales = part(files, f"{name}_scale").shape
    groups = scales[1] if len(scales) == 2 else 0
    if groups < 1 or inputs % groups:
        raise damaged(files, f"{name}_scale has shape {list(scales)}, expected [{rows}, groups]")
    kept = scale_type(files, f"{name}_scale", (rows, groups))
    zeros = asymmetric or f"{name}_zero_point" in files
    if zeros:
        shaped(files, f"{name}_zero_point", (-(-rows * bits // 32), groups), ("I32",))
    scheme = checked(
        files, name, (rows, inputs), bits=bits,
        group_size=None if by_row and groups == 1 else inputs // groups,
        zeros="int" if zeros else "none", scales=kept,
    )  # fmt: skip
    return PackQuantized(files, name, (rows, inputs), scheme)
