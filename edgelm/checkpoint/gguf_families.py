"""What GGUF files of each architecture mean in Hugging Face's words: names, config, row order.

The tables follow llama.cpp's converter (conversion of LlamaForCausalLM and its tensor mapping).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgelm.checkpoint.gguf_header import Header
from edgelm.errors import ModelFileError, UnsupportedModelError

ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class Family:
    """One architecture.

    names: GGUF name without ".weight"/".bias" -> Hugging Face's, with * for the layer.
    permuted: names (as in `names`) whose rows are stored in pairs for interleaved rotation, and
        the metadata key (after the architecture) with their number of heads.
    folded: tensors that become part of the config and are no weights.
    config: (metadata, header, factors) -> config.json, factors being ROPE_FACTORS' values.
    """

    names: Mapping[str, str]
    permuted: Mapping[str, str]
    folded: frozenset[str]
    config: Callable[[Metadata, Header, torch.Tensor | None], dict[str, Any]]

    def hf_name(self, name: str) -> str | None:
        """Hugging Face's name of a tensor, None if this architecture has no such tensor."""
        stem, _, kind = name.rpartition(".")
        layer = re.fullmatch(r"blk\.(0|[1-9]\d{0,5})\.(.+)", stem)
        pattern = self.names.get(f"blk.*.{layer[2]}" if layer else stem)
        if pattern is None or kind not in ("weight", "bias"):
            return None
        return f"{pattern.replace('*', layer[1]) if layer else pattern}.{kind}"

    def heads_key(self, name: str) -> str | None:
        """The metadata key with the number of heads if `name`'s rows are permuted."""
        return self.permuted.get(re.sub(r"^blk\.\d+\.", "blk.*.", name.rpartition(".")[0]))


class Metadata:
    """Typed access to a file's keys; those of the architecture are named without its prefix."""

    def __init__(self, values: Mapping[str, Any], architecture: str, path: Path) -> None:
        self.values = values
        self.architecture = architecture
        self.path = path

    def get(self, key: str, kind: type, default: Any = ...) -> Any:
        """The value of "<architecture>.<key>" (or of a key of "tokenizer.") of type `kind`.

        Raises ModelFileError if it is of another type, or missing without a default.
        """
        full = key if key.startswith("tokenizer.") else f"{self.architecture}.{key}"
        value = self.values.get(full, default)
        if value is ...:
            raise ModelFileError(
                f"{self.path} lacks the metadata key {full}, which describes the model: it was "
                "not converted completely. Convert it again."
            )
        fits = isinstance(value, (int, float) if kind is float else kind)
        if value is not default and (not fits or isinstance(value, bool)):
            raise ModelFileError(
                f"{self.path}: the metadata key {full} must be one {kind.__name__}, "
                f"got {value!r:.80}."
            )
        return value

    def refuse_unless(self, key: str, allowed: tuple[Any, ...]) -> None:
        """UnsupportedModelError if the key is there with a value that changes the model."""
        full = f"{self.architecture}.{key}"
        if full in self.values and self.values[full] not in allowed:
            raise UnsupportedModelError(
                f"{self.path}: the metadata key {full} is {self.values[full]!r:.80}; supported: "
                f"{', '.join(map(repr, allowed))}. This model cannot be run."
            )


def _llama_config(
    metadata: Metadata, header: Header, factors: torch.Tensor | None
) -> dict[str, Any]:
    heads = metadata.get("attention.head_count", int)
    hidden = metadata.get("embedding_length", int)
    if heads < 1 or hidden < 1:
        raise ModelFileError(f"{metadata.path} claims {heads} heads in {hidden} dimensions.")
    head_dim = metadata.get("attention.key_length", int, hidden // heads)
    metadata.refuse_unless("attention.value_length", (head_dim,))
    metadata.refuse_unless("rope.dimension_count", (head_dim,))
    metadata.refuse_unless("expert_count", (0,))
    metadata.refuse_unless("attention.causal", (True,))
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": metadata.get("feed_forward_length", int),
        "num_hidden_layers": metadata.get("block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.get("attention.head_count_kv", int, heads),
        "head_dim": head_dim,
        "rms_norm_eps": metadata.get("attention.layer_norm_rms_epsilon", float),
        "max_position_embeddings": metadata.get("context_length", int),
        "rope_theta": metadata.get("rope.freq_base", float, 10000.0),
        "vocab_size": _vocab_size(metadata, header),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "attention_bias": "blk.0.attn_q.bias" in header.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in header.tensors,
        **_token_ids(metadata),
    }
    scaling = _rope_scaling(metadata, config, factors)
    return config | ({"rope_scaling": scaling} if scaling else {})


def _vocab_size(metadata: Metadata, header: Header) -> int:
    """Rows of the embedding, which may be padded; a file without weights counts its tokens."""
    if "token_embd.weight" in header.tensors:
        return header.tensors["token_embd.weight"].shape[0]
    return len(metadata.get("tokenizer.ggml.tokens", list))


def _token_ids(metadata: Metadata) -> dict[str, Any]:
    """bos, pad and every id that ends a text or a turn, as far as the file names them."""

    def token(name: str) -> int | None:
        return metadata.get(f"tokenizer.ggml.{name}_token_id", int, None)

    ends = [token(name) for name in ("eos", "eot", "eom")]
    unique = list(dict.fromkeys(end for end in ends if end is not None))
    eos = unique[0] if len(unique) == 1 else unique or None
    ids = {"bos_token_id": token("bos"), "eos_token_id": eos, "pad_token_id": token("padding")}
    return {key: value for key, value in ids.items() if value is not None}


def _rope_scaling(
    metadata: Metadata, config: dict[str, Any], factors: torch.Tensor | None
) -> dict[str, Any] | None:
    """config.json's rope_scaling, None if positions are used as they are."""
    kind = metadata.get("rope.scaling.type", str, "none")
    metadata.refuse_unless("rope.scale_linear", (1.0,))  # the key of files before 2023-10
    if factors is not None:
        metadata.refuse_unless("rope.scaling.type", ("none",))
        return _llama3_scaling(config, factors, metadata.path)
    if kind == "none":
        return None
    metadata.refuse_unless("rope.scaling.type", ("none", "linear", "yarn"))
    for key in ("attn_factor", "yarn_ext_factor", "yarn_attn_factor"):
        metadata.refuse_unless(f"rope.scaling.{key}", (1.0,))
    metadata.refuse_unless("rope.scaling.yarn_log_multiplier", (0.0,))
    scaling = {"rope_type": kind, "factor": metadata.get("rope.scaling.factor", float)}
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


LLAMA = Family(
    names={
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "output": "lm_head",
        "blk.*.attn_norm": "model.layers.*.input_layernorm",
        "blk.*.attn_q": "model.layers.*.self_attn.q_proj",
        "blk.*.attn_k": "model.layers.*.self_attn.k_proj",
        "blk.*.attn_v": "model.layers.*.self_attn.v_proj",
        "blk.*.attn_output": "model.layers.*.self_attn.o_proj",
        "blk.*.ffn_norm": "model.layers.*.post_attention_layernorm",
        "blk.*.ffn_gate": "model.layers.*.mlp.gate_proj",
        "blk.*.ffn_up": "model.layers.*.mlp.up_proj",
        "blk.*.ffn_down": "model.layers.*.mlp.down_proj",
    },
    permuted={"blk.*.attn_q": "attention.head_count", "blk.*.attn_k": "attention.head_count_kv"},
    folded=frozenset({ROPE_FACTORS}),
    config=_llama_config,
)
FAMILIES = {"llama": LLAMA}
