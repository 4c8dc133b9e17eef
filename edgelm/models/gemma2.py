"""Gemma 2: four norms a layer, soft-caps, scaled embeddings, every other layer in a window.

Gemma Team 2024, arXiv:2408.00118; the reference is ``Gemma2ForCausalLM`` of transformers 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgelm.config import ConfigReader, ModelConfig, head_layout
from edgelm.errors import ModelFileError, UnsupportedModelError
from edgelm.models import llama
from edgelm.models.attention import Attention
from edgelm.models.decoder import Decoder, DecoderLayer
from edgelm.models.layers import Embedding, GatedMLP, Head, RMSNorm
from edgelm.models.weight_names import Source
from edgelm.ops.position import Rope

WEIGHTS: dict[str, Source] = llama.WEIGHTS | {
    "layers.{}.attn_out_norm": "model.layers.{}.post_attention_layernorm",
    "layers.{}.mlp_norm": "model.layers.{}.pre_feedforward_layernorm",
    "layers.{}.mlp_out_norm": "model.layers.{}.post_feedforward_layernorm",
}


def read_config(data: Mapping[str, Any]) -> ModelConfig:
    """Read the settings of a ``config.json`` whose ``model_type`` is gemma2."""
    reader = ConfigReader(data)
    if reader.flag("use_bidirectional_attention"):
        raise UnsupportedModelError(
            "config.json: use_bidirectional_attention is true; only causal Gemma 2 is supported."
        )
    hidden, layers = reader.integer("hidden_size"), reader.layers("num_hidden_layers")
    heads, kv_heads, head_size = head_layout(reader, hidden)
    context = reader.integer("max_position_embeddings", default=8192)
    rope = reader.rope(head_size, context, default_theta=10000.0)
    return ModelConfig(
        model_type="gemma2",
        vocab_size=reader.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=reader.integer("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_size=head_size,
        max_context=rope.context_limit,
        norm_eps=reader.number("rms_norm_eps", default=1e-6),
        # hidden_act, the key of Gemma 1, does nothing here.
        activation=reader.activation("hidden_activation", "gelu_pytorch_tanh"),
        tied=reader.flag("tie_word_embeddings", default=True),
        scale=reader.number("query_pre_attn_scalar", default=256.0) ** -0.5,
        windows=_windows(reader, layers),
        rope=rope,
        attention_bias=reader.flag("attention_bias"),
        attention_softcap=_softcap(reader, "attn_logit_softcapping", 50.0),
        final_softcap=_softcap(reader, "final_logit_softcapping", 30.0),
        not_in_float16="Gemma 2's activations grow beyond float16's range (65504)",
        **reader.special_ids(),
    )


def _softcap(reader: ConfigReader, key: str, default: float) -> float | None:
    """Soft-cap of a key: null disables it; an absent key has the original models' value."""
    if key in reader.data and reader.data[key] is None:
        return None
    return reader.number(key, default=default)


def _windows(reader: ConfigReader, layers: int) -> tuple[int | None, ...]:
    """Windows by ``layer_types``; by default the original models': in even layers.

    One beyond a shortened ``max_position_embeddings`` never acts, which is allowed.
    """
    window = reader.integer("sliding_window", default=4096)
    kinds = reader.value("layer_types")
    if kinds is None:
        kinds = ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)]
    known = {"full_attention": None, "sliding_attention": window}
    allowed = list(known)  # a file's entry may be something that no dict can look up
    if not isinstance(kinds, list) or len(kinds) != layers or any(k not in allowed for k in kinds):
        raise ModelFileError(
            f"config.json: layer_types must name {layers} layers, each {' or '.join(known)}."
        )
    return tuple(known[kind] for kind in kinds)


def build(config: ModelConfig, head: Head | None) -> Decoder:
    """Build the decoder with ``head``, without weights."""
    assert config.rope is not None
    rope = Rope(config.rope)

    def norm() -> RMSNorm:
        return RMSNorm(config.hidden_size, config.norm_eps, offset=1.0)

    layers = [
        DecoderLayer(
            norm(),
            Attention(config, index, rope, out_bias=config.attention_bias),
            norm(),
            GatedMLP(config),
            attn_out_norm=norm(),
            mlp_out_norm=norm(),
        )
        for index in range(config.num_layers)
    ]
    embed = Embedding.for_head(config, head)
    return Decoder(embed, layers, norm(), head, embed_scale=config.hidden_size**0.5)
