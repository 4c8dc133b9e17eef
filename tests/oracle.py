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


def llama(folder: Path, **changes: Any) -> tuple[Any, Path]:
    """A random LlamaForCausalLM and the folder it was saved to."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**(LLAMA | changes), attn_implementation="eager")
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3)
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    return model, folder


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
