"""Helium 1: a Llama whose rotary pairs are neighbours and whose output projection has no bias.

Kyutai 2025 (huggingface.co/kyutai/helium-1-preview-2b); the reference is ``HeliumForCausalLM``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgelm.config import ModelConfig
from edgelm.errors import ModelFileError
from edgelm.models import llama
from edgelm.models.attention import Attention
from edgelm.models.decoder import Decoder, DecoderLayer
from edgelm.models.layers import Embedding, GatedMLP, Head, RMSNorm
from edgelm.ops.position import Rope

WEIGHTS = llama.WEIGHTS


def read_config(data: Mapping[str, Any]) -> ModelConfig:
    """Read the settings of a ``config.json`` whose ``model_type`` is helium."""
    defaults = {"rms_norm_eps": 1e-8, "max_position_embeddings": 4096, "rope_theta": 100000.0}
    given = {key: value for key, value in data.items() if value is not None}
    config = llama.read_config(defaults | given)
    if config.num_heads * config.head_size != config.hidden_size:
        raise ModelFileError(
            f"config.json: num_attention_heads {config.num_heads} x head_dim {config.head_size} "
            f"is not hidden_size {config.hidden_size}, which Helium requires."
        )
    return replace(config, model_type="helium")


def build(config: ModelConfig, head: Head | None) -> Decoder:
    """Build the decoder with ``head``, without weights."""
    assert config.rope is not None
    hidden, eps, rope = config.hidden_size, config.norm_eps, Rope(config.rope, interleaved=True)
    layers = [
        DecoderLayer(
            RMSNorm(hidden, eps),
            Attention(config, index, rope, out_bias=False),
            RMSNorm(hidden, eps),
            GatedMLP(config),
        )
        for index in range(config.num_layers)
    ]
    return Decoder(Embedding.for_head(config, head), layers, RMSNorm(hidden, eps), head)
