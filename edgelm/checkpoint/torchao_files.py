"""torchao folders, as transformers saves them.

The tensors of a weight ``x.weight`` are ``x._weight_qdata`` and more. What they are stands as JSON
under the weight's name in the metadata of the safetensors file (torchao's
prototype/safetensors/safetensors_support.py): its class, whose layout ``torchao_layouts`` reads,
and its fields.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from math import gcd
from typing import Any

from edgelm.checkpoint.packed_matrix import (
    PackedMatrix,
    checked,
    damaged,
    part,
    scale_type,
    setting,
    shaped,
    unsupported,
)
from edgelm.checkpoint.safetensors_files import SafetensorsCheckpoint
from edgelm.checkpoint.torchao_layouts import (
    TILE_INPUTS,
    TILE_ROWS,
    Bytes,
    Nibbles,
    Tiles,
    part_name,
)
from quant.scheme import GROUP_SIZES, Scheme

TARGETS = {f"int{bits}": 4 if bits <= 4 else 8 for bits in range(1, 9)}  # type -> bits held in
PADDED_INPUTS = 1024  # rows of tiles are filled up to a multiple of this


def matrices(
    files: SafetensorsCheckpoint, settings: Mapping[str, Any]
) -> Mapping[str, PackedMatrix]:
    """The packed weights by name; ``settings`` is the quantization_config.

    Raises:
        UnsupportedModelError: another layout, other bits or groups, or activations quantized too.
        ModelFileError: metadata or a part of a weight is missing, damaged or has another shape.
    """
    mapping = _mapping_type(settings)
    found: dict[str, PackedMatrix] = {}
    for name, (kind, fields) in _described(files).items():
        if kind not in OPENERS:
            raise unsupported(
                files, f"holds {name} as torchao's {kind}; supported: {', '.join(OPENERS)}"
            )
        for absent in ("act_pre_scale", "act_quant_scale", "act_quant_zero_point"):
            if part_name(name, absent) in files:
                raise unsupported(files, f"scales or quantizes the inputs of {name} ({absent})")
        found[name] = OPENERS[kind](files, name, fields | {"mapping_type": mapping})
    return found


def _described(files: SafetensorsCheckpoint) -> dict[str, tuple[str, dict[str, Any]]]:
    """Class and fields of every quantized weight, from the metadata of all files."""
    from safetensors import safe_open

    texts: dict[str, str] = {}
    for path in (own for own in files.files if own.suffix == ".safetensors"):
        with safe_open(path, framework="pt") as file:
            texts |= file.metadata() or {}
    found = {}
    for name, text in texts.items():
        if not name.endswith(".weight"):
            continue
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            raise damaged(files, f"the metadata of {name} is not JSON") from None
        kind = content.get("_type") if isinstance(content, dict) else None
        if not isinstance(kind, str):
            raise damaged(files, f"the metadata of {name} has no _type")
        if kind == "Tensor":
            continue
        fields = content.get("_data")
        if not isinstance(fields, dict):
            raise damaged(files, f"the metadata of {name} has no _data")
        found[name] = (kind, fields)
    return found


def _mapping_type(settings: Mapping[str, Any]) -> Any:
    """IntxWeightOnlyConfig's, if it holds for all modules; it stands in no weight's fields."""
    value: Any = settings
    for key in ("quant_type", "default", "_data", "mapping_type", "_data"):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _int8(files: SafetensorsCheckpoint, name: str, fields: Mapping[str, Any]) -> Bytes:
    setting(files, fields, "act_quant_kwargs", (None,))
    return _bytes(files, name, fields, 8, symmetric=True)


def _intx(files: SafetensorsCheckpoint, name: str, fields: Mapping[str, Any]) -> Bytes:
    setting(files, fields, "activation_quantization", (None,))
    given = {"target_dtype": _dtype(fields, "target_dtype")}
    bits = TARGETS[setting(files, given, "target_dtype", tuple(TARGETS))]
    # A weight without zero points is known by its settings alone: torchao stores zeros for it.
    symmetric = fields["mapping_type"] in ("SYMMETRIC", "SYMMETRIC_NO_CLIPPING_ERR")
    return _bytes(files, name, fields, bits, symmetric)


def _bytes(
    files: SafetensorsCheckpoint, name: str, fields: Mapping[str, Any], bits: int, symmetric: bool
) -> Bytes:
    sizes = part(files, part_name(name, "qdata")).shape
    shape, block = _sizes(files, name, sizes, fields)
    shaped(files, part_name(name, "qdata"), shape, ("I8",))
    blocks = (shape[0], shape[1] // block)
    kept = scale_type(files, part_name(name, "scale"), blocks)
    zero_point = part_name(name, "zero_point")
    if zero_point in files or not symmetric:
        shaped(files, zero_point, blocks, ("I8",))
    zeros = "none" if symmetric else "int"
    return Bytes(files, name, shape, _scheme(files, name, shape, block, bits, zeros, kept), block)


def _nibbles(files: SafetensorsCheckpoint, name: str, fields: Mapping[str, Any]) -> Nibbles:
    given = {"activation_dtype": _dtype(fields, "activation_dtype")}
    setting(files, given, "activation_dtype", ("bfloat16", None))
    shape, block = _sizes(files, name, fields.get("shape"), fields)
    shaped(files, part_name(name, "qdata"), (shape[0], shape[1] // 2), ("I8",))
    for kind in ("scale", "zero_point"):
        scale_type(files, part_name(name, kind), (shape[1] // block, shape[0]))
    return Nibbles(files, name, shape, _scheme(files, name, shape, block), block)


def _tiles(files: SafetensorsCheckpoint, name: str, fields: Mapping[str, Any]) -> Tiles:
    shape, block = _sizes(files, name, fields.get("shape"), fields, padded=PADDED_INPUTS)
    rows = -(-shape[0] // TILE_ROWS)
    inputs = -(-shape[1] // PADDED_INPUTS) * PADDED_INPUTS
    shaped(files, part_name(name, "qdata"), (rows, inputs // TILE_INPUTS, 32, 4), ("I32",))
    scale_type(files, part_name(name, "scale_and_zero"), (inputs // block, rows * TILE_ROWS, 2))
    return Tiles(files, name, shape, _scheme(files, name, shape, block), block)


Opener = Callable[[SafetensorsCheckpoint, str, Mapping[str, Any]], PackedMatrix]
OPENERS: dict[str, Opener] = {
    "Int8Tensor": _int8,
    "IntxUnpackedToInt8Tensor": _intx,
    "Int4Tensor": _nibbles,
    "Int4TilePackedTo4dTensor": _tiles,
}


def _sizes(
    files: SafetensorsCheckpoint, name: str, shape: Any, fields: Mapping[str, Any],
    padded: int = 1,
) -> tuple[tuple[int, int], int]:  # fmt: skip
    """(shape [N, K], inputs that share a scale); padded: of what the file's rows are multiples."""
    block = fields.get("block_size")
    for sizes in (shape, block):
        if not (
            isinstance(sizes, list | tuple)
            and len(sizes) == 2
            and all(type(size) is int and 0 < size < 1 << 31 for size in sizes)
        ):
            raise damaged(files, f"{name} has shape {shape!r:.80} and block_size {block!r:.80}")
    assert block is not None
    inputs = -(-shape[1] // padded) * padded
    if block[0] != 1 or inputs % block[1]:
        raise unsupported(files, f"holds {name} {shape!r} with a scale per block of {block!r}")
    return (shape[0], shape[1]), block[1]


def _scheme(
    files: SafetensorsCheckpoint, name: str, shape: tuple[int, int], block: int, bits: int = 4,
    zeros: str = "float", scales: str = "float32",
) -> Scheme:  # fmt: skip
    """The scheme of a matrix; blocks that no scheme has are cut into groups that divide them.

    Zeros in the middle, zero - 8 * scale, need float32, where 16-bit scales would round them.
    """
    group_size = None if block == shape[1] and zeros != "float" else gcd(
        shape[1], block, GROUP_SIZES[-1]
    )  # fmt: skip
    return checked(files, name, shape, bits=bits, group_size=group_size, zeros=zeros, scales=scales)


def _dtype(fields: Mapping[str, Any], key: str) -> Any:
    value = fields.get(key)
    return value.get("_data") if isinstance(value, dict) else value
