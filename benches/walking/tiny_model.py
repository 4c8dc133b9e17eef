"""A Llama of two layers with random weights and a tokenizer of single characters, as a folder.

Two layers of a 1B model: a smaller one would not be laid out in the cache folder, as real ones are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

_CHARACTERS = [chr(code) for code in range(0x21, 0x7F)] + ["\u0120"]  # the last stands for a space
_SPECIAL = ["<s>", "</s>"]
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 9216,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": len(_SPECIAL) + len(_CHARACTERS),
    "max_position_embeddings": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def write(folder: Path) -> None:
    """Write config.json, model.safetensors and tokenizer.json: the same each time."""
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer()), encoding="utf-8")
    save_file(_weights(), folder / "model.safetensors")


def _tokenizer() -> dict[str, Any]:
    """Byte-level BPE without merges."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokens = [*_SPECIAL, *_CHARACTERS]
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": index, "content": name, "special": True} | flags
            for index, name in enumerate(_SPECIAL)
        ],
        "pre_tokenizer": byte_level | {"use_regex": True},
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [],
        },
    }


def _weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, inner, vocab = (
        CONFIG[key] for key in ("hidden_size", "intermediate_size", "vocab_size")
    )
    key_value = CONFIG["num_key_value_heads"] * CONFIG["head_dim"]
    shapes = {"model.embed_tokens": (vocab, hidden)}
    norms = ["model.norm"]
    for index in range(CONFIG["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        norms += [f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm"]
        shapes |= {
            f"{layer}.self_attn.q_proj": (hidden, hidden),
            f"{layer}.self_attn.k_proj": (key_value, hidden),
            f"{layer}.self_attn.v_proj": (key_value, hidden),
            f"{layer}.self_attn.o_proj": (hidden, hidden),
            f"{layer}.mlp.gate_proj": (inner, hidden),
            f"{layer}.mlp.up_proj": (inner, hidden),
            f"{layer}.mlp.down_proj": (hidden, inner),
        }
    weights = {
        f"{name}.weight": torch.randn(shape, generator=generator).mul_(0.05).bfloat16()
        for name, shape in shapes.items()
    }
    return weights | {f"{name}.weight": torch.ones(hidden, dtype=torch.bfloat16) for name in norms}
