"""Persimmon 8B: LayerNorms, normed queries and keys, half of each head rotated, squared ReLU.

Adept 2023 (adept.ai/blog/persimmon-8b); the reference is ``PersimmonForCausalLM``. Dropouts in its
config belong to training and never act here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgelm.config import ConfigReader, ModelConfig, head_layout
from edgelm.models.attention import Attention
from edgelm.models.decoder import Decoder, DecoderLayer
from edgelm.models.layers import MLP, Embedding, Head, LayerNorm
from edgelm.models.weight_names import Interleaved, Source
from edgelm.ops.position import Rope

_QKV = "model.layers.{}.self_attn.query_key_value"

WEIGHTS: dict[str, Source] = {
    "embed": "model.embed_tokens",
    "layers.{}.attn.q": Interleaved(_QKV, 0, 3),
    "layers.{}.attn.k": Interleaved(_QKV, 1, 3),
    "layers.{}.attn.v": Interleaved(_QKV, 2, 3),
    "layers.{}.attn.o": "model.layers.{}.self_attn.dense",
    "layers.{}.attn.q_norm": "model.layers.{}.self_attn.q_layernorm",
    "layers.{}.attn.k_norm": "model.layers.{}.self_attn.k_layernorm",
    "layers.{}.mlp.up": "model.layers.{}.mlp.dense_h_to_4h",
    "layers.{}.mlp.down": "model.layers.{}.mlp.dense_4h_to_h",
    "layers.{}.attn_norm": "model.layers.{}.input_layernorm",
    "layers.{}.mlp_norm": "model.layers.{}.post_attention_layernorm",
    "norm": "model.final_layernorm",
    "head": "lm_head",
}

# The prompt format that Adept documents for persimmon-8b-chat, whose files have no template.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'human: ' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'adept: ' }}"
    "{% else %}{{ raise_exception('only user and assistant speak') }}{% endif %}"
    "{{ message['content'] }}{% if not loop.last %}{{ '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nadept:' }}{% endif %}"
)


def read_config(data: Mapping[str, Any]) -> ModelConfig:
    """Read the settings of a ``config.json`` whose ``model_type`` is persimmon."""
    reader = ConfigReader(data)
    hidden, layers = reader.integer("hidden_size"), reader.layers("num_hidden_layers")
    heads, kv_heads, head_size = head_layout(reader, hidden)
    context = reader.integer("max_position_embeddings", default=16384)
    rope = reader.rope(head_size, context, default_theta=25000.0, default_part=0.5)
    return ModelConfig(
        model_type="persimmon",
        vocab_size=reader.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=reader.integer("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_size=head_size,
        max_context=rope.context_limit,
        norm_eps=reader.number("layer_norm_eps", default=1e-5),
        activation=reader.activation("hidden_act", "relu2"),
        tied=reader.flag("tie_word_embeddings"),
        scale=head_size**-0.5,
        windows=(None,) * layers,
        rope=rope,
        attention_bias=True,
        mlp_bias=True,
        qk_norm=reader.flag("qk_layernorm", default=True),
        gated=False,
        **reader.special_ids(),
    )


def build(config: ModelConfig, head: Head | None) -> Decoder:
    """Build the decoder with ``head``, without weights."""
    assert config.rope is not None
    hidden, eps, rope = config.hidden_size, config.norm_eps, Rope(config.rope)
    qk_norm_eps = eps if config.qk_norm else None
    layers = [
        DecoderLayer(
            LayerNorm(hidden, eps),
            Attention(config, index, rope, out_bias=True, qk_norm_eps=qk_norm_eps),
            LayerNorm(hidden, eps),
            MLP(config),
        )
        for index in range(config.num_layers)
    ]
    return Decoder(Embedding.for_head(config, head), layers, LayerNorm(hidden, eps), head)
