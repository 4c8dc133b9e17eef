"""Tiny models as GGUF files, written by the reference writer in llama.cpp's converter's ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.torch import load_file, save_file

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "bloom": gguf.MODEL_ARCH.BLOOM,
}
COMMON_KEYS = {
    "attention.head_count": ("num_attention_heads", "n_head"),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.key_length": ("head_dim",),
    "attention.value_length": ("head_dim",),
    "attention.layer_norm_epsilon": ("layer_norm_epsilon",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "block_count": ("num_hidden_layers", "n_layer"),
    "context_length": ("max_position_embeddings",),
    "embedding_length": ("hidden_size",),
    "feed_forward_length": ("intermediate_size",),
    "final_logit_softcapping": ("final_logit_softcapping",),
}


def write_gguf_model(
    folder: Path,
    path: Path,
    kind: Type = Type.F32,
    metadata: dict[str, Any] | None = None,
    more: dict[str, Any] | None = None,
    **split: Any,
) -> Path:
    """The model of a folder in Hugging Face layout as `path`: matrices as `kind`, vectors float32.

    Without `metadata` of a tokenizer, the vocabulary's entries are named <0>, <1>, ... `more`:
    other keys of the architecture. `split`: as the writer has them, for parts named after `path`.
    """
    config = json.loads((folder / "config.json").read_text("utf-8"))
    name = config["model_type"]
    writer = gguf.GGUFWriter(path, name, **split)
    keys = _metadata(config) | (_plain_vocabulary(config) if metadata is None else metadata)
    keys |= {f"{name}.{key}": value for key, value in (more or {}).items()}
    for key, value in keys.items():
        _add(writer, key, value)
    layers = keys[f"{name}.block_count"]
    names = gguf.get_tensor_name_map(ARCHITECTURES[name], layers)
    for hf_name, tensor in load_file(folder / "model.safetensors").items():
        gguf_name = names.get_name(
            hf_name.removeprefix("transformer."), try_suffixes=(".weight", ".bias")
        )
        assert gguf_name is not None, hf_name
        stored = kind if tensor.ndim == 2 else Type.F32
        values = converted(tensor.float(), hf_name, config)
        writer.add_tensor(gguf_name, blocks_of(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def converted(tensor: torch.Tensor, name: str, config: dict[str, Any]) -> torch.Tensor:
    """What llama.cpp's conversion/llama.py, gemma.py and bloom.py do to a tensor."""
    family = config["model_type"]
    if family == "gemma2" and name.endswith("norm.weight"):
        return tensor + 1
    if family == "llama" and (".q_proj." in name or ".k_proj." in name):
        key = "num_attention_heads" if ".q_proj." in name else "num_key_value_heads"
        heads, rows = config[key], tensor.shape[0]
        pairs = tensor.reshape(heads, 2, rows // heads // 2, -1)
        return pairs.swapaxes(1, 2).reshape(tensor.shape)
    if family == "bloom" and ".query_key_value." in name:
        turns = tensor.reshape(config["n_head"], 3, -1, *tensor.shape[1:])
        return torch.cat([turns[:, part].flatten(0, 1) for part in range(3)])
    return tensor


def as_stored(folder: Path, kind: Type, out: Path) -> Path:
    """The folder with each matrix replaced by what storing it as `kind` makes of it, float32."""
    out.mkdir()
    weights = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        weights[name] = tensor.float()
        if tensor.ndim == 2:
            config = json.loads((folder / "config.json").read_text("utf-8"))
            order = converted(torch.arange(len(tensor)).view(-1, 1), name, config).view(-1)
            blocks = blocks_of(weights[name][order], kind)
            values = torch.from_numpy(gguf.quants.dequantize(blocks, kind).copy())
            weights[name] = torch.empty_like(values).index_copy_(0, order, values)
    save_file(weights, out / "model.safetensors")
    (out / "config.json").write_bytes((folder / "config.json").read_bytes())
    return out


def blocks_of(values: torch.Tensor, kind: Type) -> np.ndarray:
    """Rows in blocks of `kind`: random ones where the gguf package can only read the type."""
    if kind == Type.Q6_K:
        return six_bits(values)
    try:
        return gguf.quants.quantize(values.contiguous().numpy(), kind)
    except NotImplementedError:
        return random_rows(kind, *values.shape)


# Where a block keeps its float16 scales; the other bytes may be anything.
SCALES_AT = {
    "Q5_1": (0, 2), "Q4_1": (0, 2), "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2),
    "Q5_K": (0, 2), "Q6_K": (208,), "TQ1_0": (52,), "TQ2_0": (64,),
}  # fmt: skip
MIDDLES = {"Q4_K": 7.5, "Q5_K": 15.5}  # codes that the minimum takes to zero, about


def six_bits(values: torch.Tensor) -> np.ndarray:
    """Q6_K by round to nearest: 256 codes of 6 bits, 16 scales of 8 bits, a float16 (gguf.quants
    has the way back)."""
    parts = values.float().view(-1, 16, 16)
    scales = parts.abs().amax(-1) / 31
    unit = (scales.amax(-1, keepdim=True) / 127).half()
    small = (scales / unit.float()).round().clamp(1, 127)
    codes = (parts / (unit.float() * small).unsqueeze(-1)).round().clamp(-32, 31) + 32
    halves = codes.to(torch.uint8).view(-1, 2, 128)
    low, high = halves & 15, (halves >> 4).view(-1, 2, 4, 32)
    nibbles = low[..., :64] | (low[..., 64:] << 4)
    pairs = high[:, :, 0] | (high[:, :, 1] << 2) | (high[:, :, 2] << 4) | (high[:, :, 3] << 6)
    fields = (nibbles, pairs, small.to(torch.int8), unit)
    stored = [field.contiguous().flatten(1).view(torch.uint8) for field in fields]
    return torch.cat(stored, 1).view(len(values), -1).numpy()


def random_rows(kind: Type, rows: int, inputs: int) -> np.ndarray:
    """uint8 [rows, bytes of a row]: random codes under scales of a sane size."""
    generator = np.random.default_rng(int(kind))
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = generator.integers(0, 256, (rows, inputs // block, size), dtype=np.uint8)
    for at in SCALES_AT.get(kind.name, (0,)):
        middle = MIDDLES.get(kind.name, 1) if at else 1
        scale = (middle * generator.uniform(0.0005, 0.002, blocks.shape[:2])).astype(np.float16)
        blocks[..., at : at + 2] = scale[..., None].view(np.uint8)
    if kind == Type.MXFP4:  # one exponent byte
        blocks[..., 0] = generator.integers(115, 119, blocks.shape[:2])
    if kind == Type.NVFP4:  # four unsigned 8-bit floats, which have a NaN
        blocks[..., :4] = generator.integers(8, 48, (*blocks.shape[:2], 4))
    if kind == Type.IQ1_M:  # the scale is spread over the top nibbles of four words
        for index, nibble in enumerate((0x00, 0x20, 0x40, 0x10)):
            at = 48 + 2 * index + 1
            blocks[..., at] = blocks[..., at] & 0x0F | nibble
    return blocks.reshape(rows, -1)


def _metadata(config: dict[str, Any]) -> dict[str, Any]:
    name = config["model_type"]
    keys: dict[str, Any] = {}
    for key, hf_keys in COMMON_KEYS.items():
        found = [config[k] for k in hf_keys if config.get(k) is not None]
        keys |= {f"{name}.{key}": found[0]} if found else {}
    if name == "bloom":
        keys["bloom.context_length"] = config.get("seq_length", config["hidden_size"])
        keys["bloom.feed_forward_length"] = 4 * config["hidden_size"]
        keys["bloom.attention.head_count_kv"] = config["n_head"]
    else:
        keys[f"{name}.rope.freq_base"] = float(config["rope_parameters"]["rope_theta"])
        keys[f"{name}.rope.dimension_count"] = config["head_dim"]
    return keys


def _plain_vocabulary(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [f"<{i}>" for i in range(config["vocab_size"])],
        "tokenizer.ggml.scores": [0.0] * config["vocab_size"],
        "tokenizer.ggml.token_type": [2, 3, 3] + [1] * (config["vocab_size"] - 3),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
