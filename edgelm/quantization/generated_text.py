"""Text that a model writes for its own calibration.

Samples at temperature 1 of what the model thinks is likely, after openings of a few tokens; Liu et
al. 2023 (LLM-QAT, arXiv:2305.17888) train quantized models on such text. The model is loaded in
int8 for it, which changes what it writes little, and closed before its layers are calibrated.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from edgelm.generation.request import Request
from edgelm.generation.sampling import SamplingSettings
from edgelm.loading import load, plan
from edgelm.machine import hardware
from edgelm.models.model_files import ModelFiles
from edgelm.progress import Progress
from edgelm.quantization.calibration_text import (
    HELD_BACK,
    LEAST_SEQUENCES,
    MOST_TOKENS,
    TOKENS_PER_INPUT,
    CalibrationText,
    built_in,
)

GENERATED = "generated"
_TOKENS = 256  # of a sequence
_OPENING_TOKENS = 4  # from the built-in text, so that sequences differ from their first words on
_ROWS = 8


def generated_text(files: ModelFiles, inputs: int, progress: Progress | None) -> CalibrationText:
    """As many tokens as matrices of ``inputs`` inputs need; written when they are asked for.

    progress: called with ("text", tokens done, tokens in all).
    """
    length = min(_TOKENS, files.config.max_context)
    fitted = math.ceil(TOKENS_PER_INPUT * inputs / length)
    count = max(LEAST_SEQUENCES, math.ceil(fitted * HELD_BACK / (HELD_BACK - 1)))
    shape = (min(count, MOST_TOKENS // length), length)
    return CalibrationText(
        "text that the model wrote", shape, f"{GENERATED} {shape}",
        lambda: _written(files, shape, progress),
        plan(files, **_settings(shape)).predicted_peak_bytes,
    )  # fmt: skip


def _settings(shape: tuple[int, int]) -> dict[str, Any]:
    """All that could change with the memory of the moment is fixed, so that the text is the same
    when an interrupted run goes on."""
    count, length = shape
    return {"quant": "int8", "kv": "float32", "context": length, "rows": min(_ROWS, count)}


def _written(files: ModelFiles, shape: tuple[int, int], progress: Progress | None) -> Tensor:
    """Ids, int64 [sequences, tokens]; every sequence is drawn with a seed of its own."""
    count, length = shape
    tokenizer = files.tokenizer
    start = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    source = list(built_in(tokenizer))
    openings = [
        start + source[first : first + _OPENING_TOKENS]
        for first in (number * len(source) // count for number in range(count))
    ]
    written = [list(opening) for opening in openings]
    requests = [
        Request(
            tuple(opening), length - len(opening), SamplingSettings(temperature=1.0, seed=number),
            speculate="off",
        )
        for number, opening in enumerate(openings)
    ]  # fmt: skip
    done = 0
    with load(files, **_settings(shape)) as lm, lm.batch(requests, end_ids=frozenset()) as batch:
        for answer, token in batch.tokens():
            written[answer.index].append(token)
            done += 1
            if progress and done % length == 0:
                progress("text", done, count * length)
    hardware.release_freed_memory()
    return torch.tensor(written)
