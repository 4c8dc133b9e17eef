"""GGUF architectures mapped to Hugging Face's terms: names, config, row order.

The tables follow llama.cpp's converter (its conversion/llama.py, gemma.py and bloom.py, and the
tensor mapping of its package gguf).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from edgelm.checkpoint.gguf_header import Header
from edgelm.checkpoint.gguf_metadata import Metadata
from edgelm.errors import UnsupportedModelError

ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class RowOrder:
    """Difference, within each head, between the row order of a tensor and Hugging Face's.

    heads_key: the metadata key (after the architecture) with the number of heads.
    pairs: rows j and j + half of a head stand side by side, for interleaved rotation.
    parts: 1, or how many matrices that Hugging Face interleaves head by head (q, k, v) stand one
        below the other.
    """

    heads_key: str
    pairs: bool = False
    parts: int = 1


@dataclass(frozen=True)
class Family:
    """One architecture.

    names: GGUF name without ".weight"/".bias" -> Hugging Face's, with * for the layer.
    config: (metadata, header, factors) -> config.json, factors being ROPE_FACTORS' values.
    orders: names (as in ``names``) whose rows come in another order.
    folded: tensors that become part of the config and are not weights.
    norm_offset: what the converter added to the weights of all norms.
    """

    names: Mapping[str, str]
    config: Callable[[Metadata, Header, torch.Tensor | None], dict[str, Any]]
    orders: Mapping[str, RowOrder] = field(default_factory=dict)
    folded: frozenset[str] = frozenset()
    norm_offset: float = 0.0

    def hf_name(self, name: str) -> str | None:
        """Hugging Face's name of a tensor, None if this architecture has no such tensor."""
        stem, _, kind = name.rpartition(".")
        layer = re.fullmatch(r"blk\.(0|[1-9]\d{0,5})\.(.+)", stem)
        pattern = self.names.get(f"blk.*.{layer[2]}" if layer else stem)
        if pattern is None or kind not in ("weight", "bias"):
            return None
        return f"{pattern.replace('*', layer[1]) if layer else pattern}.{kind}"

    def order(self, name: str) -> RowOrder | None:
        """The order of ``name``'s rows if it is not Hugging Face's."""
        return self.orders.get(re.sub(r"^blk\.\d+\.", "blk.*.", name.rpartition(".")[0]))

    def offset(self, name: str) -> float:
        """Number that was added to the stored weights of ``name``."""
        return self.norm_offset if name.endswith("norm.weight") else 0.0


def _llama_config(
    metadata: Metadata, header: Header, factors: torch.Tensor | None
) -> dict[str, Any]:
    config = _decoder_config(metadata, header) | {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "attention_bias": "blk.0.attn_q.bias" in header.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in header.tensors,
    }
    metadata.refuse_unless("expert_count", (0,))
    scaling = _rope_scaling(metadata, config, factors)
    return config | ({"rope_scaling": scaling} if scaling else {})


def _gemma2_config(
    metadata: Metadata, header: Header, factors: torch.Tensor | None
) -> dict[str, Any]:
    """Config of Gemma 2; layer types and query scale, absent in the file, follow llama.cpp.

    Even layers slide, and queries are scaled by their size, in the 27B model (46 layers) by
    hidden / heads.
    """
    config = _decoder_config(metadata, header)
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    metadata.refuse_unless("attention.sliding_window_pattern", (2,))
    scaling = _rope_scaling(metadata, config, factors)
    return (
        config
        | ({"rope_scaling": scaling} if scaling else {})
        | {
            "model_type": "gemma2",
            "architectures": ["Gemma2ForCausalLM"],
            "hidden_activation": "gelu_pytorch_tanh",
            "attention_bias": False,
            "sliding_window": metadata.get("attention.sliding_window", int, 4096),
            "layer_types": [
                "full_attention" if i % 2 else "sliding_attention" for i in range(layers)
            ],
            "attn_logit_softcapping": metadata.get("attn_logit_softcapping", float, 50.0),
            "final_logit_softcapping": metadata.get("final_logit_softcapping", float, 30.0),
            "query_pre_attn_scalar": config["hidden_size"] // heads
            if layers == 46
            else config["head_dim"],
        }
    )


def _bloom_config(
    metadata: Metadata, header: Header, factors: torch.Tensor | None
) -> dict[str, Any]:
    hidden, heads = _hidden_and_heads(metadata)
    metadata.refuse_unless("attention.head_count_kv", (heads,))
    metadata.refuse_unless("feed_forward_length", (4 * hidden,))
    metadata.refuse_unless("attention.max_alibi_bias", (8.0,))
    return {
        "model_type": "bloom",
        "architectures": ["BloomForCausalLM"],
        "hidden_size": hidden,
        "n_layer": metadata.get("block_count", int),
        "n_head": heads,
        "layer_norm_epsilon": metadata.get("attention.layer_norm_epsilon", float),
        "seq_length": metadata.get("context_length", int),
        "vocab_size": _vocab_size(metadata, header),
        "tie_word_embeddings": _tied(header),
        **_token_ids(metadata, _vocab_size(metadata, header)),
    }


def _decoder_config(metadata: Metadata, header: Header) -> dict[str, Any]:
    """Config keys that Llama and Gemma 2 share."""
    hidden, heads = _hidden_and_heads(metadata)
    head_dim = metadata.get("attention.key_length", int, hidden // heads)
    metadata.refuse_unless("attention.value_length", (head_dim,))
    metadata.refuse_unless("rope.dimension_count", (head_dim,))
    metadata.refuse_unless("attention.causal", (True,))
    return {
        "hidden_size": hidden,
        "intermediate_size": metadata.get("feed_forward_length", int),
        "num_hidden_layers": metadata.count("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.get("attention.head_count_kv", int, heads),
        "head_dim": head_dim,
        "rms_norm_eps": metadata.get("attention.layer_norm_rms_epsilon", float),
        "max_position_embeddings": metadata.get("context_length", int),
        "rope_theta": metadata.get("rope.freq_base", float, 10000.0),
        "vocab_size": _vocab_size(metadata, header),
        "tie_word_embeddings": _tied(header),
        **_token_ids(metadata, _vocab_size(metadata, header)),
    }


def _hidden_and_heads(metadata: Metadata) -> tuple[int, int]:
    return metadata.count("embedding_length"), metadata.count("attention.head_count")


def _tied(header: Header) -> bool:
    return "output.weight" not in header.tensors


def _vocab_size(metadata: Metadata, header: Header) -> int:
    """Rows of the embedding, which may be padded; a file without weights counts its tokens."""
    if "token_embd.weight" in header.tensors:
        return header.tensors["token_embd.weight"].shape[0]
    return len(metadata.get("tokenizer.ggml.tokens", list))


def _token_ids(metadata: Metadata, vocab_size: int) -> dict[str, Any]:
    """The bos id, the pad id and all ids that end a text or a turn, as far as the file has them.

    An id outside the vocabulary (-1, or 2**32 - 1) stands for none, as in llama.cpp.
    """

    def token(name: str) -> int | None:
        found = metadata.get(f"tokenizer.ggml.{name}_token_id", int, None)
        return found if found is not None and 0 <= found < vocab_size else None

    ends = [token(name) for name in ("eos", "eot", "eom")]
    unique = list(dict.fromkeys(end for end in ends if end is not None))
    eos = unique[0] if len(unique) == 1 else unique or None
    ids = {"bos_token_id": token("bos"), "eos_token_id": eos, "pad_token_id": token("padding")}
    return {key: value for key, value in ids.items() if value is not None}


def _rope_scaling(
    metadata: Metadata, config: dict[str, Any], factors: torch.Tensor | None
) -> dict[str, Any] | None:
    """config.json's rope_scaling, None if positions are used as they are."""
    # Without a type a factor is linear; rope.scale_linear is its key in files before 2023-10.
    old = metadata.get("rope.scale_linear", float, 0.0)
    factor = metadata.get("rope.scaling.factor", float, old)
    kind = metadata.get("rope.scaling.type", str, "linear" if factor not in (0, 1) else "none")
    if factors is not None:
        metadata.refuse_unless("rope.scaling.type", ("none",))
        return _llama3_scaling(config, factors, metadata.path)
    if kind == "none":
        return None
    metadata.refuse_unless("rope.scaling.type", ("none", "linear", "yarn"))
    for key in ("attn_factor", "yarn_ext_factor", "yarn_attn_factor"):
        metadata.refuse_unless(f"rope.scaling.{key}", (1.0,))
    metadata.refuse_unless("rope.scaling.yarn_log_multiplier", (0.0,))
    scaling = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = metadata.get(
            "rope.scaling.original_context_length", int
        )
        scaling["beta_fast"] = metadata.get("rope.scaling.yarn_beta_fast", float, 32.0)
        scaling["beta_slow"] = metadata.get("rope.scaling.yarn_beta_slow", float, 1.0)
    return scaling


def _llama3_scaling(
    config: dict[str, Any], factors: torch.Tensor, path: Path
) -> dict[str, Any] | None:
    """Llama 3.1's scaling from the divisor of each frequency that the converter wrote.

    The file holds only the divisors. Every published Llama 3.x was made with the three numbers
    below, so the divisors are computed from them again and must agree; nothing is guessed.
    """
    low, high, original = 1.0, 4.0, 8192
    scaling = {
        "rope_type": "llama3",
        "factor": round(float(factors.max()), 3),
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
    size = config["head_dim"]
    frequencies = config["rope_theta"] ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    turns = original * frequencies / (2 * math.pi)
    blend = ((turns - low) / (high - low)).clamp(0, 1)
    expected = 1 / ((1 - blend) / scaling["factor"] + blend)
    if factors.shape != expected.shape or not torch.allclose(factors.double(), expected, 1e-4):
        raise UnsupportedModelError(
            f"{path} scales its rotary frequencies by a table ({ROPE_FACTORS}) that is not Llama "
            "3.1's. Use the model's safetensors files, whose config names the scaling."
        )
    return scaling if scaling["factor"] != 1 else None


_LAYER = "model.layers.*"
LLAMA = Family(
    names={
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "output": "lm_head",
        "blk.*.attn_norm": f"{_LAYER}.input_layernorm",
        "blk.*.attn_q": f"{_LAYER}.self_attn.q_proj",
        "blk.*.attn_k": f"{_LAYER}.self_attn.k_proj",
        "blk.*.attn_v": f"{_LAYER}.self_attn.v_proj",
        "blk.*.attn_output": f"{_LAYER}.self_attn.o_proj",
        "blk.*.ffn_norm": f"{_LAYER}.post_attention_layernorm",
        "blk.*.ffn_gate": f"{_LAYER}.mlp.gate_proj",
        "blk.*.ffn_up": f"{_LAYER}.mlp.up_proj",
        "blk.*.ffn_down": f"{_LAYER}.mlp.down_proj",
    },
    config=_llama_config,
    orders={
        "blk.*.attn_q": RowOrder("attention.head_count", pairs=True),
        "blk.*.attn_k": RowOrder("attention.head_count_kv", pairs=True),
    },
    folded=frozenset({ROPE_FACTORS}),
)
GEMMA2 = Family(
    names={
        **LLAMA.names,
        "blk.*.post_attention_norm": f"{_LAYER}.post_attention_layernorm",
        "blk.*.ffn_norm": f"{_LAYER}.pre_feedforward_layernorm",
        "blk.*.post_ffw_norm": f"{_LAYER}.post_feedforward_layernorm",
    },
    config=_gemma2_config,
    norm_offset=1.0,
)
_BLOCK = "transformer.h.*"
BLOOM = Family(
    names={
        "token_embd": "transformer.word_embeddings",
        "token_embd_norm": "transformer.word_embeddings_layernorm",
        "output_norm": "transformer.ln_f",
        "output": "lm_head",
        "blk.*.attn_norm": f"{_BLOCK}.input_layernorm",
        "blk.*.attn_qkv": f"{_BLOCK}.self_attention.query_key_value",
        "blk.*.attn_output": f"{_BLOCK}.self_attention.dense",
        "blk.*.ffn_norm": f"{_BLOCK}.post_attention_layernorm",
        "blk.*.ffn_up": f"{_BLOCK}.mlp.dense_h_to_4h",
        "blk.*.ffn_down": f"{_BLOCK}.mlp.dense_4h_to_h",
    },
    config=_bloom_config,
    orders={"blk.*.attn_qkv": RowOrder("attention.head_count", parts=3)},
)
FAMILIES = {"llama": LLAMA, "gemma2": GEMMA2, "bloom": BLOOM}
