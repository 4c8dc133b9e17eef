"""transformers with random weights of a shape: bfloat16, torchao's or bitsandbytes' layers."""

from __future__ import annotations

from importlib.metadata import version
from time import perf_counter
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from edgelm.checkpoint.shapes import shape_config

DEMO_SHAPE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
}
"""SmolLM2-135M."""


class Transformers:
    """Args: layers is bfloat16, torchao-int8, torchao-int4 or bitsandbytes-nf4."""

    def __init__(self, model: str, threads: int, *, layers: str) -> None:
        torch.set_num_threads(threads)
        shape = DEMO_SHAPE if model == "demo" else shape_config(model)
        config = AutoConfig.for_model(**shape)
        self._model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
        library, _, bits = layers.partition("-")
        if library == "torchao":
            _torchao(self._model, bits)
        elif library == "bitsandbytes":
            bitsandbytes_layers(self._model, "cpu")
        used = "transformers" if library == "bfloat16" else library
        self.about: dict[str, Any] = {"version": f"{used} {version(used)}", "type": bits or "bf16"}
        if library == "bfloat16":
            nbytes = 2 * sum(p.numel() for p in self._model.parameters())
            table = self._model.get_input_embeddings().weight.nbytes
            tied = config.tie_word_embeddings
            self.about |= {
                "bits_per_weight": 16.0,
                "weight_bytes": nbytes,
                "bytes_per_token": nbytes - (0 if tied else table),
            }

    @torch.inference_mode()
    def turn(self, prompt: int, steps: int, seed: int) -> tuple[float, float]:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(self._model.config.vocab_size, (1, prompt), generator=generator)
        start = perf_counter()
        out = self._model(ids, use_cache=True, logits_to_keep=1)
        ids = out.logits.argmax(-1)
        between = perf_counter()
        for _ in range(steps):
            out = self._model(ids, past_key_values=out.past_key_values, use_cache=True)
            ids = out.logits[:, -1:].argmax(-1)
        return between - start, perf_counter() - between


def _torchao(model: Any, bits: str) -> None:
    from torchao.quantization import (
        Int8WeightOnlyConfig,
        IntxWeightOnlyConfig,
        PerGroup,
        quantize_,
    )

    if bits == "int8":
        quantize_(model, Int8WeightOnlyConfig())
    else:
        quantize_(model, IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)))


def bitsandbytes_layers(model: Any, device: str) -> None:
    """Its nf4 layers in place of all linear ones but the head, as transformers does it."""
    import bitsandbytes

    for module in model.model.modules():
        for name, linear in list(module.named_children()):
            if not isinstance(linear, torch.nn.Linear):
                continue
            layer = bitsandbytes.nn.Linear4bit(
                linear.in_features,
                linear.out_features,
                bias=linear.bias is not None,
                compute_dtype=torch.bfloat16,
                quant_type="nf4",
            )
            layer.weight = bitsandbytes.nn.Params4bit(
                linear.weight.data, requires_grad=False, quant_type="nf4"
            )
            layer.bias = linear.bias
            setattr(module, name, layer.to(device).eval())
