"""OpenVINO GenAI on a GGUF file, with its hint for latency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai


class OpenVINO:
    """Times are those that the pipeline itself reports, without tokenizing."""

    def __init__(self, model: str, threads: int) -> None:
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
        }
        self._pipeline = openvino_genai.LLMPipeline(model, "CPU", **settings)
        self.about = {
            "version": openvino_genai.__version__,
            "type": Path(model).stem.rpartition("-")[2].rpartition(".")[2],
        }

    def turn(self, prompt: int, steps: int, seed: int) -> tuple[float, float]:
        ids = np.random.default_rng(seed).integers(300, 40_000, (1, prompt))
        inputs = openvino_genai.TokenizedInputs(
            openvino.Tensor(ids.astype(np.int64)), openvino.Tensor(np.ones_like(ids, np.int64))
        )
        wanted = openvino_genai.GenerationConfig()
        wanted.max_new_tokens, wanted.ignore_eos, wanted.do_sample = steps + 1, True, False
        told = self._pipeline.generate(inputs, wanted).perf_metrics
        first_s = told.get_ttft().mean / 1e3
        return first_s, told.get_tpot().mean / 1e3 * steps if steps else 0.0
