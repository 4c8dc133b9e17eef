"""bitsandbytes' layout of packed nf4 and fp4 matrices, for folders that its loaders can also read.

A matrix [N, K] named ``x.weight`` in blocks of 64 becomes, under ``x.``:
    weight              uint8 [N * K / 2, 1]: two codes a byte, the first one high
    weight.absmax       float32 [N * K / 64]: the scales
    weight.quant_map    float32 [16]: the code's numbers
    weight.quant_state.bitsandbytes__nf4   uint8: JSON of code, block size, dtype and shape
Layout: bitsandbytes' functional.QuantState.as_dict; ``bitsandbytes_files.py`` reads it.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from edgelm.checkpoint.packed_layout import Spec
from quant import PackedWeight, Scheme
from quant.codebooks import numbers
from quant.packing import swap_nibbles

BLOCK = 64
METHOD = "bitsandbytes"


def holds(scheme: Scheme) -> bool:
    """True if matrices in ``scheme`` can be stored in this layout without loss."""
    return scheme.codebook in ("nf4", "fp4") and scheme.group_size == BLOCK and (
        scheme.scale_dtype == torch.float32
    )  # fmt: skip


def specs(scheme: Scheme, shape: tuple[int, int]) -> dict[str, Spec]:
    """Stored tensors of a matrix of ``shape``: suffix of the name -> dtype and shape."""
    count = shape[0] * shape[1]
    found: dict[str, Spec] = {
        "weight": (torch.uint8, (count // 2, 1)),
        "weight.absmax": (torch.float32, (count // BLOCK,)),
    }
    return found | {s: (t.dtype, tuple(t.shape)) for s, t in constants(scheme, shape).items()}


def constants(scheme: Scheme, shape: tuple[int, int]) -> dict[str, Tensor]:
    """The stored tensors that do not depend on the weights."""
    state = {"quant_type": scheme.codebook, "blocksize": BLOCK, "dtype": "float32"}
    text = json.dumps(state | {"shape": [*shape]}).encode()
    return {
        "weight.quant_map": numbers(str(scheme.codebook), torch.device("cpu")),
        f"weight.quant_state.bitsandbytes__{scheme.codebook}": torch.tensor(
            list(text), dtype=torch.uint8
        ),
    }


def first_row(suffix: str, scheme: Scheme, inputs: int, start: int) -> int:
    """The row of the stored tensor in which row ``start`` of the matrix begins."""
    return start * inputs // (2 if suffix == "weight" else BLOCK)


def to_stored(packed: PackedWeight) -> dict[str, Tensor]:
    """Convert rows of a matrix to its stored tensors."""
    assert packed.scales is not None
    codes = swap_nibbles(packed.qweight)
    return {"weight": codes.view(-1, 1), "weight.absmax": packed.scales.flatten()}


def settings(scheme: Scheme, compute: torch.dtype, ignored: list[str]) -> dict[str, Any]:
    """Settings as transformers' BitsAndBytesConfig saves them; ignored: modules left in floats."""
    return {
        "quant_method": METHOD,
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": scheme.codebook,
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_use_double_quant": False,
        "bnb_4bit_compute_dtype": str(compute).removeprefix("torch."),
        "llm_int8_skip_modules": ignored,
    }
