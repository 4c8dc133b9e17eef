"""torchao's four layouts of a matrix, written from their formulas: the library writes int4 on GPUs
alone, so for ``Int4Tensor`` and the tiles these folders are all there is on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from packed_folders import FLOATS, Packed, Variant, grid, ungrid
from torch import Tensor

WHOLE = {"vocab_size": 203}
"""No multiple of a tile's 8 rows."""


def data_type(name: str | None) -> Any:
    return name and {"_type": "torch.dtype", "_data": name}


def settings(kind: str, **fields: Any) -> dict[str, Any]:
    own = {"_type": kind, "_version": 2, "_data": fields}
    return {"quant_method": "torchao", "quant_type": {"default": own}}


def bytes_variant(
    kind: str, block: int | None, scheme: str, *, target: str = "int8", symmetric: bool = True,
    keeps: tuple[str, ...] = FLOATS,
) -> Variant:  # fmt: skip
    """Int8Tensor and IntxUnpackedToInt8Tensor; block None is a scale per row."""
    bits = int(target.removeprefix("int"))

    def pack(weight: Tensor) -> Packed:
        codes, zeros, scales = grid(weight, bits, block or weight.shape[1], symmetric)
        middle = 1 << (bits - 1)
        parts = {
            "_weight_qdata": (codes - middle).to(torch.int8),
            "_weight_scale": scales.float(),
            "_weight_zero_point": (zeros - middle).to(torch.int8),
        }
        return parts, ungrid(codes, zeros, scales)

    def describe(weight: Tensor) -> dict[str, Any]:
        fields: dict[str, Any] = {"block_size": [1, block or weight.shape[1]]}
        fields |= {"dtype": data_type("float32")}
        if kind == "Int8Tensor":
            fields |= {"act_quant_kwargs": None, "reduce_range": False}
        else:
            fields |= {"activation_quantization": None, "target_dtype": data_type(target)}
        return {"_type": kind, "_data": fields}

    mapping = {"_type": "MappingType", "_data": "SYMMETRIC" if symmetric else "ASYMMETRIC"}
    config = {} if kind == "Int8Tensor" else {"mapping_type": mapping}
    name = f"torchao-{kind}-{target}-{scheme}"
    return Variant(
        name, settings("Config", **config), pack, scheme, keeps, WHOLE, describe
    )  # fmt: skip


def with_middle(weight: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(codes 0..15, bfloat16 scales and values of code 8 [N, G], float32 values)."""
    codes, zeros, scales = grid(weight, 4, block, symmetric=False)
    scales = scales.bfloat16()
    middle = ((8 - zeros) * scales.float()).bfloat16()
    wide = (each.float().repeat_interleave(block, 1) for each in (scales, middle))
    scale, at_8 = wide
    return codes, scales, middle, (codes - 8) * scale + at_8


def nibbles(block: int) -> Variant:
    def pack(weight: Tensor) -> Packed:
        codes, scales, middle, values = with_middle(weight, block)
        signed = (codes - 8) & 15
        parts = {
            "_weight_qdata": (signed[:, ::2] | signed[:, 1::2] << 4)
            .to(torch.uint8)
            .view(torch.int8),
            "_weight_scale": scales.t(),
            "_weight_zero_point": middle.t(),
        }
        return parts, values

    def describe(weight: Tensor) -> dict[str, Any]:
        fields = {"block_size": [1, block], "shape": [*weight.shape]}
        return {
            "_type": "Int4Tensor",
            "_data": fields | {"activation_dtype": data_type("bfloat16")},
        }

    scheme = f"int4-g{block}-zfloat-sfloat32"
    return Variant(f"torchao-nibbles-g{block}", settings("Int4"), pack, scheme, describe=describe)


def tile_words(codes: Tensor) -> Tensor:
    """int32 [N / 8, K / 128, 32, 4] of codes [N, K], lane by lane as PyTorch's CUDA kernel does."""
    rows, inputs = codes.shape
    words = torch.zeros(rows // 8, inputs // 128, 32, 4, dtype=torch.int64)
    for lane in range(32):
        for word in range(4):
            first = 32 * word + 2 * (lane % 4)
            places = [first + step for step in (0, 1, 8, 9, 16, 17, 24, 25)]
            for shift, value in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
                own = codes[lane // 4 :: 8, places[value] :: 128]
                words[:, :, lane, word] |= own << 4 * shift
    return words.to(torch.int32)


def tiles(block: int, keeps: tuple[str, ...] = FLOATS) -> Variant:
    def pack(weight: Tensor) -> Packed:
        rows, inputs = weight.shape
        filled = torch.nn.functional.pad(weight, (0, -inputs % 1024, 0, -rows % 8))
        codes, scales, middle, values = with_middle(filled, block)
        parts = {
            "_weight_qdata": tile_words(codes),
            "_weight_scale_and_zero": torch.stack([scales.t(), middle.t()], -1),
        }
        return parts, values[:rows, :inputs]

    def describe(weight: Tensor) -> dict[str, Any]:
        fields = {"block_size": [1, block], "shape": [*weight.shape]}
        return {"_type": "Int4TilePackedTo4dTensor", "_data": fields}

    scheme = f"int4-g{min(block, 128)}-zfloat-sfloat32"
    name = f"torchao-tiles-g{block}{'' if keeps else '-whole'}"
    return Variant(name, settings("Int4"), pack, scheme, keeps, WHOLE, describe)


INTX = "IntxUnpackedToInt8Tensor"
TORCHAO = [
    bytes_variant("Int8Tensor", None, "int8-sfloat32", keeps=()),
    bytes_variant(INTX, 32, "int4-g32-sfloat32", target="int4"),
    bytes_variant(INTX, 64, "int4-g64-zint-sfloat32", target="int4", symmetric=False),
    bytes_variant(INTX, 32, "int4-g32-sfloat32", target="int3"),
    bytes_variant(INTX, 64, "int8-g64-sfloat32", target="int6"),
    nibbles(32),
    tiles(64, keeps=()),
    tiles(256),
]
