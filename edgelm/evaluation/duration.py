"""How long an evaluation will take: the products of its tokens at this machine's speed."""

from __future__ import annotations

import math
import time

import torch

from edgelm.evaluation.inputs import Work

_ROWS, _MOST_OUTPUTS = 256, 1024  # of the product that is timed: 20 MiB of an 8B model
_NOISE = 2.0  # times a float32 run: bfloat16 products are slower on processors without them


def estimate_s(work: Work, *, baseline: bool, candidates: int) -> float:
    """Seconds that a baseline, if one is made, and candidates take; half or twice is possible.

    Multiplications alone count, in float32: quantized products are as fast or faster.
    """
    decoder = work.files.assemble("causal-lm").decoder
    sizes = {name: math.prod(shape) for name, shape in decoder.matrices()}
    embed = sizes.pop("embed")
    head = sizes.pop("head", embed)
    each = 2 * _tokens(work) / product_flops(work.files.config.hidden_size)
    layers = sum(sizes.values())
    made = each * (layers * (1 + _NOISE) + head * (1 + _NOISE)) if baseline else 0.0
    return made + candidates * each * (layers + 2 * head)  # the baseline's logits come anew


def _tokens(work: Work) -> int:
    """Tokens of the text and of all choices."""
    read = 0 if work.passage is None else work.passage.ids.numel()
    choices = (choice for own in work.encoded.values() for item in own for choice in item)
    return read + sum(len(choice.ids) for choice in choices)


def product_flops(inputs: int) -> float:
    """Floating-point operations a second of a float32 product, timed now."""
    rows, weights = torch.ones(_ROWS, inputs), torch.ones(min(inputs, _MOST_OUTPUTS), inputs)
    best = 0.0
    for _ in range(3):
        start = time.perf_counter()
        rows @ weights.T
        best = max(best, 2 * rows.numel() * len(weights) / (time.perf_counter() - start))
    return best


def spoken(seconds: float) -> str:
    """A duration in words: 40 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
