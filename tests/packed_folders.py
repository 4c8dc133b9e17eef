"""Tiny folders in other people's packed layouts, and the same weights as plain floats.

Where a library writes the layout on CPUs, it does; GPTQ and AWQ are written from their formulas.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from conftest import TINY_LLAMA, tiny_llama_weights
from safetensors.torch import save_file
from torch import Tensor

CONFIG = TINY_LLAMA | {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
FLOATS = ("embed", "lm_head")  # in the names of matrices that most tools leave alone
AWQ_PACK_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # AutoAWQ: nibble i of a word holds this column

Packed = tuple[dict[str, Tensor], Tensor]
"""A matrix's stored tensors by their names behind the module's, and its values in float32."""


@dataclass(frozen=True)
class Variant:
    """A layout: its quantization_config, how it packs a matrix, which matrices it leaves alone."""

    name: str
    settings: dict[str, Any]
    pack: Callable[[Tensor], Packed]
    scheme: str
    keeps: tuple[str, ...] = FLOATS
    config: dict[str, Any] | None = None
    describe: Callable[[Tensor], dict[str, Any]] | None = None
    """What the metadata of the safetensors file say of a matrix, under its name."""

    def write(self, folder: Path) -> tuple[Path, Path]:
        """A tiny Llama: (the packed folder, the folder of floats)."""
        config = CONFIG | (self.config or {})
        return self.write_model(config, tiny_llama_weights(config), folder)

    def write_model(
        self, config: dict[str, Any], weights: dict[str, Tensor], folder: Path
    ) -> tuple[Path, Path]:
        """A model of any family: (the packed folder, the folder of floats)."""
        packed, plain = {}, {}
        told: dict[str, str] = {}
        for name, weight in weights.items():
            if weight.dim() == 1 or any(kept in name for kept in self.keeps):
                packed[name] = plain[name] = weight
                continue
            parts, plain[name] = self.pack(weight)
            if self.describe:
                told[name] = json.dumps(self.describe(weight))
            module = name.removesuffix(".weight")
            packed |= {f"{module}.{part}": tensor for part, tensor in parts.items()}
        quantized = config | {"quantization_config": self.settings}
        for place, tensors, data in (("packed", packed, quantized), ("plain", plain, config)):
            (folder / place).mkdir()
            (folder / place / "config.json").write_text(json.dumps(data), encoding="utf-8")
            contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
            metadata = told if place == "packed" else None
            save_file(contiguous, folder / place / "model.safetensors", metadata)
        return folder / "packed", folder / "plain"


def grid(weight: Tensor, bits: int, group: int, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(unsigned codes [N, K], zeros [N, G], float16 scales [N, G]) by round to nearest."""
    groups = weight.view(weight.shape[0], -1, group)
    top = 2**bits - 1
    if symmetric:
        scales = (groups.abs().amax(-1) / (top // 2)).half()
        zeros = torch.full(scales.shape, (top + 1) // 2)
    else:
        low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
        scales = ((high - low) / top).half()
        zeros = (-low / scales.float()).round().clamp(0, top).long()
    codes = (groups / scales.float().unsqueeze(-1)).round() + zeros.unsqueeze(-1)
    return codes.clamp(0, top).long().view(weight.shape), zeros, scales


def ungrid(codes: Tensor, zeros: Tensor, scales: Tensor) -> Tensor:
    group = codes.shape[1] // scales.shape[1]
    wide = (t.repeat_interleave(group, 1) for t in (zeros, scales.float()))
    zero, scale = wide
    return (codes - zero) * scale


def words(codes: Tensor, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """Columns packed into int32, one after another or in AWQ's order."""
    per_word = 32 // bits
    packed = torch.zeros(codes.shape[0], codes.shape[1] // per_word, dtype=torch.int64)
    for place, column in enumerate(order or range(per_word)):
        packed |= codes[:, column::per_word] << (place * bits)
    return packed.to(torch.int32)  # keeps the low 32 bits


def gptq(bits: int, group: int, symmetric: bool, version: int = 1) -> Variant:
    def pack(weight: Tensor) -> Packed:
        inputs = weight.shape[1]
        size = inputs if group == -1 else group
        codes, zeros, scales = grid(weight, bits, size, symmetric)
        stored = (zeros - 1) % 2**bits if version == 1 else zeros
        parts = {
            "qweight": words(codes, bits).t(),
            "qzeros": words(stored.t(), bits),
            "scales": scales.t(),
            "g_idx": (torch.arange(inputs) // size).int(),
        }
        return parts, ungrid(codes, zeros, scales)

    settings = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": symmetric}
    settings |= {"desc_act": False} | ({} if version == 1 else {"checkpoint_format": "gptq_v2"})
    kind = "row" if group == -1 else f"g{group}"
    text = f"int{bits}-{kind}" + ("" if symmetric else "-zint")
    name = f"gptq{version}-{text}"
    return Variant(name, settings, pack, text.replace("int8-row", "int8"))


def awq(group: int) -> Variant:
    def pack(weight: Tensor) -> Packed:
        codes, zeros, scales = grid(weight, 4, group, symmetric=False)
        parts = {
            "qweight": words(codes.t(), 4, AWQ_PACK_ORDER),
            "qzeros": words(zeros.t(), 4, AWQ_PACK_ORDER),
            "scales": scales.t(),
        }
        return parts, ungrid(codes, zeros, scales)

    settings = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm"}
    settings |= {"zero_point": True}
    return Variant(f"awq-g{group}", settings, pack, f"int4-g{group}-zint")


def compressed(
    bits: int, group: int | None, symmetric: bool, dtype: torch.dtype = torch.float16,
    keeps: tuple[str, ...] = FLOATS,
) -> Variant:  # fmt: skip
    """compressed-tensors, packed and unpacked again by its own compressor."""
    strategy = "group" if group else "channel"
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy}
    weights |= {"group_size": group} if group else {}

    def pack(weight: Tensor) -> Packed:
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization import QuantizationScheme

        scheme = QuantizationScheme(targets=["Linear"], weights=weights)
        compressor = BaseCompressor.get_value_from_registry("pack-quantized")
        _, zeros, scales = grid(weight, bits, group or weight.shape[1], symmetric)
        state = {"weight": weight, "weight_scale": scales.to(dtype)}
        state["weight_zero_point"] = (zeros - 2 ** (bits - 1)).to(torch.int8)
        parts = compressor.compress(state, scheme)
        exact = parts | {"weight_scale": scales.to(dtype).float()}
        return dict(parts), compressor.decompress(exact, scheme)["weight"].float()

    settings = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
    }
    text = f"int{bits}" + (f"-g{group}" if group else "-row" if bits == 4 else "")
    text += ("" if symmetric else "-zint") + {2: "", 4: "-sfloat32"}[dtype.itemsize]
    text += "-sbfloat16" if dtype == torch.bfloat16 else ""
    whole = "" if keeps else "-whole"
    return Variant(f"compressed-{text}{whole}", settings, pack, text, keeps)


def flat_blocks(codes: Tensor, unpack_scales: Callable[..., Tensor], state: Any) -> Tensor:
    """Values of bitsandbytes' codes: the flattened matrix in blocks, the first code high."""
    scales = state.absmax
    if state.nested:
        scales = unpack_scales(scales, state.state2) + state.offset
    flat = torch.stack([codes.view(-1) >> 4, codes.view(-1) & 15], dim=1).view(-1).long()
    repeated = scales.repeat_interleave(state.blocksize)[: len(flat)]
    return (state.code[flat] * repeated).view(state.shape)


def four_bit(
    kind: str, *, double: bool = False, block: int = 64, storage: torch.dtype = torch.uint8,
    config: dict[str, Any] | None = None, group: int | None = None,
) -> Variant:  # fmt: skip
    """bitsandbytes' nf4 and fp4 by its own functions, as Params4bit saves itself."""

    def pack(weight: Tensor) -> Packed:
        from bitsandbytes import functional

        codes, state = functional.quantize_4bit(
            weight, blocksize=block, quant_type=kind, compress_statistics=double,
            quant_storage=storage,
        )  # fmt: skip
        values = flat_blocks(codes.view(torch.uint8), functional.dequantize_blockwise, state)
        if weight.shape[1] % block == 0:
            # Of blocks that end inside a row its CPU code reads the wrong scales (0.50.2).
            assert torch.equal(values, functional.dequantize_4bit(codes, state))
        parts = {f"weight.{key}": part for key, part in state.as_dict(packed=True).items()}
        return parts | {"weight": codes}, values

    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    group = group or min(block, 128)
    text = kind if group == 64 else f"{kind}-g{group}"
    name = f"bnb-{kind}-b{block}-g{group}{'-double' if double else ''}-{storage.itemsize}"
    return Variant(name, settings, pack, text, config=config)


def eight_bit() -> Variant:
    """bitsandbytes' int8 by its own functions, as Linear8bitLt saves itself."""

    def pack(weight: Tensor) -> Packed:
        from bitsandbytes import functional

        codes, maxima, _ = functional.int8_vectorwise_quant(weight.half())
        parts = {"weight": codes, "SCB": maxima.float()}
        parts["weight_format"] = torch.tensor(0, dtype=torch.uint8)
        return parts, functional.int8_vectorwise_dequant(codes, maxima.float())

    settings = {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 6.0}
    return Variant("bnb-int8", settings, pack, "int8-sfloat32")


VARIANTS = [
    *(gptq(4, group, symmetric) for group in (32, 64, 128, -1) for symmetric in (True, False)),
    *(gptq(8, group, symmetric) for group in (128, -1) for symmetric in (True, False)),
    *(gptq(4, 64, symmetric, version=2) for symmetric in (True, False)),
    *(awq(group) for group in (32, 64, 128)),
    *(compressed(4, group, symmetric) for group in (32, 128, None) for symmetric in (True, False)),
    *(compressed(8, group, symmetric) for group in (64, None) for symmetric in (True, False)),
    compressed(4, 64, True, torch.bfloat16),
    compressed(8, None, False, torch.float32),
    compressed(4, 32, False, keeps=()),
    compressed(8, None, True, keeps=()),
    four_bit("nf4"),
    four_bit("fp4"),
    four_bit("nf4", double=True),
    four_bit("fp4", double=True, block=128),
    four_bit("nf4", block=256),
    four_bit("nf4", storage=torch.bfloat16),
    four_bit("nf4", config={"hidden_size": 96, "head_dim": 24}, group=32),
    eight_bit(),
]
