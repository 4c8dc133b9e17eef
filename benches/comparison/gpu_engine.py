"""transformers on a GPU with random weights of a shape: bfloat16, torchao's int4, bitsandbytes'
nf4. Steps of the first two are compiled over a static cache and run as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, StaticCache

from comparison.transformers_engine import bitsandbytes_layers
from edgelm.checkpoint.shapes import shape_config

LAYERS = ("bfloat16", "torchao-int4", "bitsandbytes-nf4")


class GpuPeer:
    """Greedy answers of one model.

    Args:
        shape: a name, or the content of a config.json. layers: one of ``LAYERS``. length: tokens of
            prompt and answer.
    """

    def __init__(
        self, shape: str | dict[str, Any], layers: str, length: int, device: str = "cuda"
    ) -> None:
        config = AutoConfig.for_model(**(shape_config(shape) if isinstance(shape, str) else shape))
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
        if layers == "torchao-int4":
            _torchao_int4(model)
        elif layers == "bitsandbytes-nf4":
            bitsandbytes_layers(model, device)
        self._model, self._device, self._length = model, device, length
        self._cache = StaticCache(config=config, max_cache_len=length)
        self._step: Callable[[Tensor, Tensor], Tensor] = self._decode
        if device == "cuda" and layers != "bitsandbytes-nf4":  # whose layers no graph can hold
            self._step = torch.compile(self._decode, mode="reduce-overhead", fullgraph=True)

    @torch.inference_mode()
    def turn(self, prompt: int, steps: int, seed: int) -> tuple[float, float]:
        """Seconds of the prompt with its first token, and of so many steps after it."""
        generator = torch.Generator().manual_seed(seed)
        vocab = self._model.config.vocab_size
        ids = torch.randint(vocab, (1, prompt), generator=generator).to(self._device)
        self._cache.reset()
        places = torch.arange(self._length, device=self._device)
        self._wait()
        start = perf_counter()
        token = self._decode(ids, places[:prompt])
        self._wait()
        between = perf_counter()
        for at in range(prompt, prompt + steps):
            token = self._step(token, places[at : at + 1]).clone()
        self._wait()
        return between - start, perf_counter() - between

    def _decode(self, ids: Tensor, places: Tensor) -> Tensor:
        out = self._model(
            ids, past_key_values=self._cache, cache_position=places, use_cache=True,
            position_ids=places[None], logits_to_keep=1,
        )  # fmt: skip
        return out.logits[:, -1:].argmax(-1)

    def _wait(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()


def _torchao_int4(model: Any) -> None:
    from torchao.quantization import Int4WeightOnlyConfig, quantize_

    quantize_(
        model.model, Int4WeightOnlyConfig(group_size=64, int4_packing_format="tile_packed_to_4d")
    )
