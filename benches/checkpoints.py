"""Generated checkpoints: folders of random bfloat16 weights in Hugging Face layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from edgelm.checkpoint.shapes import shape_config
from edgelm.reports.benchmark import random_model

SHARD_BYTES = 512 << 20

MODELS: dict[str, dict[str, Any]] = {
    "llama-0.4": {
        "model_type": "llama", "vocab_size": 64000, "hidden_size": 1024, "num_hidden_layers": 6,
        "intermediate_size": 2816, "num_attention_heads": 16, "num_key_value_heads": 4,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "bos_token_id": 1, "eos_token_id": 2,
    },
    "gemma2-0.4": shape_config("gemma-2-2b") | {
        "vocab_size": 128000, "hidden_size": 1024, "num_hidden_layers": 6, "head_dim": 128,
        "intermediate_size": 2816, "num_attention_heads": 8, "num_key_value_heads": 4,
        "query_pre_attn_scalar": 128, "sliding_window": 1024,
    },
    "bloom-0.4": shape_config("bloom-560m") | {"vocab_size": 125440, "n_layer": 6},
    "helium-0.4": shape_config("helium-1-preview-2b") | {
        "vocab_size": 64000, "hidden_size": 1024, "num_hidden_layers": 6, "head_dim": 64,
        "intermediate_size": 2816, "num_attention_heads": 16, "num_key_value_heads": 16,
    },
    "persimmon-0.4": shape_config("persimmon-8b") | {
        "vocab_size": 64000, "hidden_size": 1024, "num_hidden_layers": 6,
        "intermediate_size": 4096, "num_attention_heads": 16, "num_key_value_heads": 16,
    },
    "bloom-560m": shape_config("bloom-560m"),
    "llama-3.2-1b-untied": shape_config("llama-3.2-1b") | {"tie_word_embeddings": False},
}  # fmt: skip
"""Checkpoints of 0.3 to 3 GB in bfloat16."""


def checkpoint(model: str, where: Path) -> Path:
    """The folder of a generated checkpoint, made if it is not there."""
    folder = where / model
    if not folder.exists():
        partial = where / f"{model}.partial"
        write_model(MODELS[model], partial)
        partial.rename(folder)
    return folder


def write_model(config: dict[str, Any], folder: Path) -> None:
    """Random bfloat16 weights under their Hugging Face names, in shards."""
    source = random_model(config, quant="none").checkpoint
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weight_map: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    names = source.names()
    for name in names:
        shard[name] = source.read(name)
        if sum(t.nbytes for t in shard.values()) > SHARD_BYTES or name == names[-1]:
            file = f"model-{len(set(weight_map.values())):05}.safetensors"
            save_file(shard, folder / file)
            weight_map |= dict.fromkeys(shard, file)
            shard.clear()
    index = json.dumps({"weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")


def write_byte_tokenizer(folder: Path) -> None:
    """A tokenizer whose tokens are bytes, for a model whose vocabulary has no other."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Tokenizer(models.BPE({sign: index for index, sign in enumerate(alphabet)}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.save(str(folder / "tokenizer.json"))
