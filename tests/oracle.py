"""transformers as the oracle: tiny random models, written as folders that both sides read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import edgelm

RANGE_BOUND = 1e-4
"""Largest allowed difference, as a share of the reference's range (largest minus smallest)."""

LLAMA: dict[str, Any] = {
    "vocab_size": 211,
    "hidden_size": 48,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 96,
    "rms_norm_eps": 1e-3,
    "initializer_range": 0.25,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    "attention_bias": True,
    "mlp_bias": True,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""Grouped heads, biases that are not zero, norms that are not one, an eps and a base that show."""


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    # A window of 7, shorter than the texts and no divisor of their chunks; caps that bite; a
    # query scale that is not the head size.
    "gemma2": LLAMA
    | {
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
        "num_hidden_layers": 4,
        "sliding_window": 7,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 1.5,
        "attention_bias": False,
        "tie_word_embeddings": True,
    },
    "helium": LLAMA | {"num_attention_heads": 3, "num_key_value_heads": 3, "attention_bias": False},
    "persimmon": {
        key: LLAMA[key]
        for key in ("vocab_size", "num_hidden_layers", "initializer_range", "bos_token_id",
                    "eos_token_id", "pad_token_id", "max_position_embeddings")
    }
    | {
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_attention_heads": 4,
        "layer_norm_eps": 1e-3,
        "qk_layernorm": True,
        "hidden_dropout": 0.6,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.25,
        },
    },
    "bloom": {
        "vocab_size": 211,
        "hidden_size": 96,
        "n_layer": 3,
        "n_head": 6,
        "layer_norm_epsilon": 1e-3,
        "initializer_range": 0.25,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    },
}  # fmt: skip
"""Every family with its hard features on."""

CLASSES = {
    "bloom": "Bloom", "gemma2": "Gemma2", "helium": "Helium", "llama": "Llama",
    "persimmon": "Persimmon",
}  # fmt: skip
HEADS = {
    "causal-lm": "ForCausalLM",
    "sequence-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "question-answering": "ForQuestionAnswering",
}


def family(name: str, folder: Path, head: str = "causal-lm", **changes: Any) -> tuple[Any, Path]:
    """A random model of a family under a head, and the folder it was saved to."""
    import transformers

    torch.manual_seed(0)
    kind = CLASSES[name]
    config = getattr(transformers, f"{kind}Config")(**(FAMILIES[name] | changes))
    config._attn_implementation = "eager"
    model = getattr(transformers, kind + HEADS[head])(config).eval()
    spread_vectors(model)
    model.save_pretrained(folder)
    return model, folder


def llama(folder: Path, **changes: Any) -> tuple[Any, Path]:
    """A random LlamaForCausalLM and the folder it was saved to."""
    return family("llama", folder, **changes)


def spread_vectors(model: torch.nn.Module) -> None:
    """Biases that are not zero and norms that are not one, so that leaving one out shows."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3)
            elif parameter.dim() == 1:
                parameter.add_(torch.empty_like(parameter).uniform_(-0.5, 0.5))


def load_exact(folder: Path, **settings: Any) -> edgelm.LanguageModel:
    """Our side of a comparison: float32, not quantized."""
    return edgelm.load(folder, quant="none", dtype="float32", **settings)


def share_of_range(ours: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest difference over the reference's range."""
    assert ours.shape == reference.shape, (ours.shape, reference.shape)
    span = float(reference.max() - reference.min())
    return float((ours - reference).abs().max()) / span


def assert_close(ours: torch.Tensor, reference: torch.Tensor, what: str = "logits") -> None:
    share = share_of_range(ours, reference)
    print(f"{what}: {share:.2e} of the range (bound {RANGE_BOUND:.0e})")
    assert share < RANGE_BOUND, what
