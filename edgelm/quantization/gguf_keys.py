"""The keys that describe a model in a GGUF file, as llama.cpp's converter writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgelm.errors import UnsupportedModelError
from edgelm.models.model_files import ModelFiles
from edgelm.reports.inspection import licence_of


def model_metadata(files: ModelFiles) -> dict[str, Any]:
    """Keys of the model, without those of its vocabulary and of the types of its tensors."""
    config, name = files.config, files.config.model_type
    if config.keep_normed:
        raise UnsupportedModelError(
            "apply_residual_connection_post_layernorm is true, which llama.cpp does not support."
        )
    epsilon = "layer_norm_epsilon" if name == "bloom" else "layer_norm_rms_epsilon"
    keys: dict[str, Any] = {
        "block_count": config.num_layers,
        "context_length": config.rope.trained_context if config.rope else config.max_context,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        f"attention.{epsilon}": config.norm_eps,
        "vocab_size": config.vocab_size,
    }
    if config.rope is not None:
        keys |= _rope_keys(files) | {
            "attention.key_length": config.head_size,
            "attention.value_length": config.head_size,
        }
    if name == "gemma2":
        keys |= _gemma2_keys(files)
    general = {
        "general.type": "model",
        "general.name": Path(files.name).name,
        "general.quantization_version": 2,
    }
    licence = licence_of(files.checkpoint)
    general |= {} if licence is None else {"general.license": licence}
    return general | {f"{name}.{key}": value for key, value in keys.items()}


def _rope_keys(files: ModelFiles) -> dict[str, Any]:
    rope = files.config.rope
    assert rope is not None
    keys: dict[str, Any] = {
        "rope.freq_base": float(rope.theta),
        "rope.dimension_count": rope.rotary_size,
    }
    if rope.rope_type in ("default", "llama3"):
        return keys
    plain = {"factor", "rope_type", "rope_theta", "original_max_position_embeddings"}
    if rope.rope_type not in ("linear", "yarn") or set(rope.scaling) - plain:
        raise UnsupportedModelError(
            f"rope scaling {rope.rope_type!r} with {', '.join(sorted(rope.scaling))} has no keys "
            "in GGUF files; linear, llama3 and plain yarn have. Give a folder as OUT."
        )
    keys |= {"rope.scaling.type": rope.rope_type}
    keys |= {"rope.scaling.factor": float(rope.scaling["factor"])}
    if rope.rope_type == "yarn":
        original = rope.scaling.get("original_max_position_embeddings", rope.trained_context)
        keys["rope.scaling.original_context_length"] = int(original)
    return keys


def _gemma2_keys(files: ModelFiles) -> dict[str, Any]:
    """Keys of Gemma 2; sliding layers and query scale must follow llama.cpp's fixed rule."""
    config = files.config
    size = config.hidden_size // config.num_heads if config.num_layers == 46 else config.head_size
    windows = {window for window in config.windows if window is not None}
    by_rule = all((w is not None) == (i % 2 == 0) for i, w in enumerate(config.windows))
    caps = (config.attention_softcap, config.final_softcap)
    if abs(config.scale - size**-0.5) > 1e-9 or len(windows) != 1 or not by_rule or None in caps:
        raise UnsupportedModelError(
            "This Gemma 2's query scale, sliding layers or soft-caps are not the original models', "
            "and GGUF files have no keys for that. Give a folder as OUT."
        )
    return {
        "attention.sliding_window": windows.pop(),
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.final_softcap,
    }
