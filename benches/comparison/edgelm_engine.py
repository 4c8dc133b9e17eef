"""This project as an engine: a model from a file, a folder, or random weights of a shape."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch

import edgelm
from edgelm.generation.request import Request
from edgelm.generation.sampling import SamplingSettings
from edgelm.models.model_files import ModelFiles
from edgelm.planning.matrices import bytes_per_token
from edgelm.reports.benchmark import random_model
from quant import find

PASSAGE = (
    "The lighthouse keeper counted eleven ships that evening: four with cargoes of timber, three "
    "with salt, two with letters for the island, and two whose captains would not say what they "
    "carried. He wrote each name into the ledger, trimmed the lamp, and went down to the harbour. "
)


class EdgeLM:
    """Greedy answers through the generation loop.

    Args:
        model: a reference, or the name of a shape where `shape` is true.
        copy: prompts repeat a passage instead of being random ids.
        speculate: `auto` or `off` where the engine can guess ahead; `off` unless said.
        settings: of ``edgelm.load``.
    """

    def __init__(
        self, model: str, threads: int, *, shape: bool = False, copy: bool = False,
        speculate: str = "off", **settings: Any,
    ) -> None:  # fmt: skip
        files = random_model(model, settings["quant"]) if shape else ModelFiles.open(model)
        self._lm = edgelm.load(files, threads=threads, **settings)
        guesses = "speculate" in {field.name for field in fields(Request)}
        if speculate != "off" and not guesses:
            raise NotImplementedError("this version has no prompt lookup")
        self._extra: dict[str, Any] = {"speculate": speculate} if guesses else {}
        self._copy = copy
        plan = self.plan = self._lm.plan
        backends = {find(p.kernel).backend for p in plan.products}
        cache_bytes = sum(p.bytes for p in plan.parts if p.name.startswith("kv cache."))
        self.about = {
            "version": edgelm.__version__,
            "type": plan.scheme,
            "backends": sorted(backends),
            "bits_per_weight": round(plan.bits_per_weight, 3),
            "weight_bytes": plan.weight_bytes,
            "cache_bytes": cache_bytes,
            "bytes_per_token": bytes_per_token(files.assemble("causal-lm").decoder, plan.products),
        }

    def turn(self, prompt: int, steps: int, seed: int) -> tuple[float, float]:
        request = Request(self._ids(prompt, seed), steps + 1, SamplingSettings(), **self._extra)
        with self._lm.batch([request], end_ids=frozenset()) as batch:
            for _ in batch.tokens():
                pass
            stats = batch.stats(0)
        return stats.prefill_s, stats.decode_s

    def close(self) -> None:
        self._lm.close()

    def _ids(self, count: int, seed: int) -> tuple[int, ...]:
        if not self._copy:
            generator = torch.Generator().manual_seed(seed)
            ids = torch.randint(self._lm.config.vocab_size, (count,), generator=generator)
            return tuple(ids.tolist())
        passage = self._lm.encode(PASSAGE)
        return tuple((passage * (count // len(passage) + 1))[:count])
