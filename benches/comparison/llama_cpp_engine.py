"""llama.cpp through the C interface that llama-cpp-python binds: no sampler, only arg-max."""

from __future__ import annotations

import ctypes
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as lib

BATCH = 2048


class LlamaCpp:
    """Args:
    context: positions. flash: flash attention. cache: type of keys and values, as ggml names it.
    """

    def __init__(
        self, model: str, threads: int, *, context: int, flash: bool, ubatch: int = 512,
        cache: str = "F16",
    ) -> None:  # fmt: skip
        self._quiet = lib.llama_log_callback(lambda level, text, data: None)
        lib.llama_log_set(self._quiet, None)
        lib.llama_backend_init()
        self._model = lib.llama_model_load_from_file(
            model.encode(), lib.llama_model_default_params()
        )
        if not self._model:
            raise RuntimeError(f"llama.cpp does not load {Path(model).name}")
        settings = lib.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = context, BATCH, ubatch
        settings.n_threads = settings.n_threads_batch = threads
        on, off = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED, lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.flash_attn_type = on if flash else off
        settings.type_k = settings.type_v = getattr(lib, f"GGML_TYPE_{cache}")
        self._context = lib.llama_init_from_model(self._model, settings)
        if not self._context:
            raise RuntimeError(f"llama.cpp makes no context with flash={flash}, cache={cache}")
        self._vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))
        self.about: dict[str, Any] = {
            "version": f"llama-cpp-python {version('llama-cpp-python')}",
            "type": Path(model).stem.rpartition("-")[2].rpartition(".")[2],
            "system": lib.llama_print_system_info().decode().strip(),
            "cache_bytes": self._cache_bytes(context, cache),
        }

    def turn(self, prompt: int, steps: int, seed: int) -> tuple[float, float]:
        ids = np.random.default_rng(seed).integers(self._vocabulary, size=prompt).tolist()
        lib.llama_memory_clear(lib.llama_get_memory(self._context), False)
        start = perf_counter()
        for first in range(0, prompt, BATCH):
            self._decode(ids[first : first + BATCH])
        token = self._best()
        between = perf_counter()
        for _ in range(steps):
            self._decode([token])
            token = self._best()
        return between - start, perf_counter() - between

    def logits(self, ids: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """What follows each token of a text from its beginning, [tokens, vocabulary]."""
        lib.llama_memory_clear(lib.llama_get_memory(self._context), False)
        batch = lib.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            batch.token[place], batch.pos[place], batch.logits[place] = token, place, 1
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
        failed = lib.llama_decode(self._context, batch)
        lib.llama_batch_free(batch)
        if failed:
            raise RuntimeError(f"llama_decode refused {len(ids)} tokens")
        pointer = ctypes.cast(lib.llama_get_logits(self._context), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(pointer, (len(ids), self._vocabulary)).copy()

    def _decode(self, ids: list[int]) -> None:
        array = (lib.llama_token * len(ids))(*ids)  # the batch keeps a mere pointer to it
        batch = lib.llama_batch_get_one(array, len(ids))
        if lib.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode refused {len(ids)} tokens")

    def _best(self) -> int:
        pointer = lib.llama_get_logits_ith(self._context, -1)
        numbers = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float))
        return int(np.ctypeslib.as_array(numbers, (self._vocabulary,)).argmax())

    def _cache_bytes(self, context: int, cache: str) -> int:
        """Of keys and values as if every layer kept all positions."""
        model = self._model
        size = lib.llama_model_n_embd(model) // lib.llama_model_n_head(model)
        numbers = 2 * lib.llama_model_n_layer(model) * lib.llama_model_n_head_kv(model) * size
        return int(numbers * context * (2 if cache == "F16" else 34 / 32))
