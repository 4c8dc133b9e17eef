"""BLOOM: ALiBi instead of rotation, LayerNorms (one over the embedding), a plain GELU MLP.

BigScience 2022, arXiv:2211.05100; the reference is ``BloomForCausalLM``. ``slow_but_exact`` and
``pretraining_tp`` only change the order of additions and are not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgelm.config import ConfigReader, ModelConfig
from edgelm.errors import ModelFileError
from edgelm.models.attention import Attention
from edgelm.models.decoder import Decoder, DecoderLayer
from edgelm.models.layers import MLP, Embedding, Head, LayerNorm
from edgelm.models.weight_names import Interleaved, Source
from edgelm.ops.position import Alibi

_QKV = "transformer.h.{}.self_attention.query_key_value"

WEIGHTS: dict[str, Source] = {
    "embed": "transformer.word_embeddings",
    "embed_norm": "transformer.word_embeddings_layernorm",
    "layers.{}.attn.q": Interleaved(_QKV, 0, 3),
    "layers.{}.attn.k": Interleaved(_QKV, 1, 3),
    "layers.{}.attn.v": Interleaved(_QKV, 2, 3),
    "layers.{}.attn.o": "transformer.h.{}.self_attention.dense",
    "layers.{}.mlp.up": "transformer.h.{}.mlp.dense_h_to_4h",
    "layers.{}.mlp.down": "transformer.h.{}.mlp.dense_4h_to_h",
    "layers.{}.attn_norm": "transformer.h.{}.input_layernorm",
    "layers.{}.mlp_norm": "transformer.h.{}.post_attention_layernorm",
    "norm": "transformer.ln_f",
    "head": "lm_head",
}


def read_config(data: Mapping[str, Any]) -> ModelConfig:
    """Read the settings of a ``config.json`` whose ``model_type`` is bloom."""
    reader = ConfigReader(data)
    hidden = reader.integer("n_embed", "hidden_size")
    layers = reader.layers("n_layer", "num_hidden_layers")
    heads = reader.integer("n_head", "num_attention_heads")
    if hidden % heads:
        raise ModelFileError(
            f"config.json: hidden_size {hidden} does not divide by n_head {heads}."
        )
    return ModelConfig(
        model_type="bloom",
        vocab_size=reader.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_size=hidden // heads,
        max_context=reader.integer("seq_length", default=2048),
        norm_eps=reader.number("layer_norm_epsilon", default=1e-5),
        activation="gelu_pytorch_tanh",
        tied=reader.flag("tie_word_embeddings", default=True),
        scale=(hidden // heads) ** -0.5,
        windows=(None,) * layers,
        attention_bias=True,
        mlp_bias=True,
        gated=False,
        keep_normed=reader.flag("apply_residual_connection_post_layernorm"),
        open_ended=True,
        **reader.special_ids(),
    )


def build(config: ModelConfig, head: Head | None) -> Decoder:
    """Build the decoder with ``head``, without weights."""
    hidden, eps, alibi = config.hidden_size, config.norm_eps, Alibi(config.num_heads)
    layers = [
        DecoderLayer(
            LayerNorm(hidden, eps),
            Attention(config, index, alibi, out_bias=True),
            LayerNorm(hidden, eps),
            MLP(config),
            keep_normed=config.keep_normed,
        )
        for index in range(config.num_layers)
    ]
    embed = Embedding.for_head(config, head)
    embed_norm, norm = LayerNorm(hidden, eps), LayerNorm(hidden, eps)
    return Decoder(embed, layers, norm, head, embed_norm=embed_norm)
