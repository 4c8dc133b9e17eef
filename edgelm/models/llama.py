"""Llama 1-3, CodeLlama, SmolLM2, TinyLlama: the plain pre-norm decoder with a gated MLP.

Touvron et al. 2023, arXiv:2302.13971; the reference is ``LlamaForCausalLM`` of transformers 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgelm.config import ConfigReader, ModelConfig, head_layout
from edgelm.models.attention import Attention
from edgelm.models.decoder import Decoder, DecoderLayer
from edgelm.models.layers import Embedding, GatedMLP, Head, RMSNorm
from edgelm.models.weight_names import Source
from edgelm.ops.position import Rope

WEIGHTS: dict[str, Source] = {
    "embed": "model.embed_tokens",
    "layers.{}.attn.q": "model.layers.{}.self_attn.q_proj",
    "layers.{}.attn.k": "model.layers.{}.self_attn.k_proj",
    "layers.{}.attn.v": "model.layers.{}.self_attn.v_proj",
    "layers.{}.attn.o": "model.layers.{}.self_attn.o_proj",
    "layers.{}.mlp.gate": "model.layers.{}.mlp.gate_proj",
    "layers.{}.mlp.up": "model.layers.{}.mlp.up_proj",
    "layers.{}.mlp.down": "model.layers.{}.mlp.down_proj",
    "layers.{}.attn_norm": "model.layers.{}.input_layernorm",
    "layers.{}.mlp_norm": "model.layers.{}.post_attention_layernorm",
    "norm": "model.norm",
    "head": "lm_head",
}


def read_config(data: Mapping[str, Any]) -> ModelConfig:
    """Read the settings of a ``config.json`` whose ``model_type`` is llama."""
    reader = ConfigReader(data)
    hidden, layers = reader.integer("hidden_size"), reader.layers("num_hidden_layers")
    heads, kv_heads, head_size = head_layout(reader, hidden)
    context = reader.integer("max_position_embeddings", default=2048)
    rope = reader.rope(head_size, context, default_theta=10000.0)
    return ModelConfig(
        model_type="llama",
        vocab_size=reader.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=reader.integer("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_size=head_size,
        max_context=rope.context_limit,
        norm_eps=reader.number("rms_norm_eps", default=1e-6),
        activation=reader.activation("hidden_act", "silu"),
        tied=reader.flag("tie_word_embeddings"),
        scale=head_size**-0.5,
        windows=(None,) * layers,
        rope=rope,
        attention_bias=reader.flag("attention_bias"),
        mlp_bias=reader.flag("mlp_bias"),
        **reader.special_ids(),
    )


def build(config: ModelConfig, head: Head | None) -> Decoder:
    """Build the decoder with ``head``, without weights."""
    assert config.rope is not None
    hidden, eps, rope = config.hidden_size, config.norm_eps, Rope(config.rope)
    layers = [
        DecoderLayer(
            RMSNorm(hidden, eps),
            Attention(config, index, rope, out_bias=config.attention_bias),
            RMSNorm(hidden, eps),
            GatedMLP(config),
        )
        for index in range(config.num_layers)
    ]
    embed = Embedding.for_head(config, head)
    return Decoder(embed, layers, RMSNorm(hidden, eps), head)
