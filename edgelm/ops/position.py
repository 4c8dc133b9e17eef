"""Position encodings: rotary embeddings of every type, and ALiBi.

The formulas follow transformers 5 (``modeling_rope_utils.py``), against which the parity tests
compare. Types whose table depends on the length (``dynamic``, ``longrope``) get one table per
load, fixed by the context in the plan, so that chunks and single tokens agree; transformers
switches tables between calls instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgelm.config import RopeParameters
from edgelm.errors import ModelFileError, UnsupportedModelError


@dataclass(frozen=True)
class Angles:
    """Positions of tokens in the rotary table.

    table: [2, context, rotary_size / 2], cosines and sines. positions: [M] int64.
    cos, sin: [M, 1, rotary_size / 2], the rows at the positions, for the reference.
    """

    table: Tensor
    positions: Tensor
    cos: Tensor | None = None
    sin: Tensor | None = None


class Rope:
    """Rotates pairs of dimensions of queries and keys by an angle proportional to position.

    Args:
        parameters: the checkpoint's numbers.
        interleaved: pairs are neighbours (Helium, GGUF) instead of halves (Llama).
    """

    def __init__(self, parameters: RopeParameters, interleaved: bool = False) -> None:
        if parameters.rope_type not in _FREQUENCIES:
            raise UnsupportedModelError(
                f"config.json: rope_type is {parameters.rope_type!r}; "
                f"supported: {', '.join(_FREQUENCIES)}."
            )
        self.parameters = parameters
        self.interleaved = interleaved
        self.rotary_size = parameters.rotary_size
        self.fill_table(torch.empty(self.table_shape(1)))  # a missing key is found before loading

    def table_shape(self, context: int) -> tuple[int, int, int]:
        """Shape of the float32 table for ``context`` positions: cos and sin, position, pair."""
        return (2, context, self.rotary_size // 2)

    def fill_table(self, table: Tensor) -> None:
        """Write cos and sin of every position into ``table`` (``table_shape``, float32)."""
        context = table.shape[1]
        frequencies, magnitude = _FREQUENCIES[self.parameters.rope_type](self.parameters, context)
        angles = torch.arange(context, dtype=torch.float32)[:, None] * frequencies
        table[0].copy_(angles.cos().mul_(magnitude))
        table[1].copy_(angles.sin().mul_(magnitude))

    def pairs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Views of the first and second members of the rotated pairs of ``x`` [..., D]."""
        size = self.rotary_size
        if self.interleaved:
            return x[..., 0:size:2], x[..., 1:size:2]
        return x[..., : size // 2], x[..., size // 2 : size]


class Alibi:
    """ALiBi: no rotation; scores decrease linearly with distance, with one slope per head.

    Press et al. 2022, arXiv:2108.12409. Numbers of heads that are not a power of two interleave
    the slopes of the next one, as transformers' BLOOM does.
    """

    def __init__(self, heads: int) -> None:
        lower = 1 << (heads.bit_length() - 1)
        slopes = [2.0 ** (-8.0 * (i + 1) / lower) for i in range(lower)]
        slopes += [2.0 ** (-4.0 * (2 * i + 1) / lower) for i in range(heads - lower)]
        self.slopes = torch.tensor(slopes, dtype=torch.float32)


def _number(rope: RopeParameters, key: str, default: float | None = None) -> float:
    value: Any = rope.scaling.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ModelFileError(
            f"config.json: rope type {rope.rope_type!r} needs {key} above 0; it is {value!r}."
        )
    return float(value)


def _inverse(rope: RopeParameters, theta: float) -> Tensor:
    exponents = torch.arange(0, rope.rotary_size, 2, dtype=torch.float32) / rope.rotary_size
    return 1.0 / theta**exponents


def _default(rope: RopeParameters, context: int) -> tuple[Tensor, float]:
    return _inverse(rope, rope.theta), 1.0


def _linear(rope: RopeParameters, context: int) -> tuple[Tensor, float]:
    return _inverse(rope, rope.theta) / _number(rope, "factor"), 1.0


def _dynamic(rope: RopeParameters, context: int) -> tuple[Tensor, float]:
    """NTK: the base grows with the context once it exceeds the trained length."""
    factor, size, trained = _number(rope, "factor"), rope.rotary_size, rope.trained_context
    stretch = factor * max(context, trained) / trained - (factor - 1)
    return _inverse(rope, rope.theta * stretch ** (size / (size - 2))), 1.0


def _yarn(rope: RopeParameters, context: int) -> tuple[Tensor, float]:
    """Peng et al. 2023, arXiv:2309.00071: interpolate slow pairs, keep fast ones."""
    original = _number(rope, "original_max_position_embeddings", rope.trained_context)
    factor = _number(rope, "factor", rope.trained_context / original)
    size = rope.rotary_size

    def pair_of(rotations: float) -> float:
        return size * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low = pair_of(_number(rope, "beta_fast", 32))
    high = pair_of(_number(rope, "beta_slow", 1))
    if rope.scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    steps = torch.arange(size // 2, dtype=torch.float32)
    keep = 1 - ((steps - low) / max(high - low, 0.001)).clamp(0, 1)
    plain = _inverse(rope, rope.theta)
    return plain / factor * (1 - keep) + plain * keep, _yarn_magnitude(rope, factor)


def _yarn_magnitude(rope: RopeParameters, factor: float) -> float:
    def growth(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if "attention_factor" in rope.scaling:
        return _number(rope, "attention_factor")
    if rope.scaling.get("mscale") and rope.scaling.get("mscale_all_dim"):
        return growth(_number(rope, "mscale")) / growth(_number(rope, "mscale_all_dim"))
    return growth(1.0)


def _longrope(rope: RopeParameters, context: int) -> tuple[Tensor, float]:
    """Ding et al. 2024, arXiv:2402.13753: a searched divisor per pair, one list per length."""
    original = _number(rope, "original_max_position_embeddings", rope.trained_context)
    divisors = {}
    for key in ("short_factor", "long_factor"):
        values = rope.scaling.get(key)
        if not isinstance(values, list) or len(values) != rope.rotary_size // 2:
            raise ModelFileError(
                f"config.json: rope type 'longrope' needs {key}, a list of "
                f"{rope.rotary_size // 2} numbers."
            )
        divisors[key] = torch.tensor(values, dtype=torch.float32)
    factor = _number(rope, "factor", rope.trained_context / original)
    magnitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    magnitude = _number(rope, "attention_factor", magnitude)
    chosen = divisors["long_factor" if context > original else "short_factor"]
    return _inverse(rope, rope.theta) / chosen, magnitude


def _llama3(rope: RopeParameters, context: int) -> tuple[Tensor, float]:
    """Llama 3.1's rule: long wavelengths divided by the factor, a ramp between two bounds."""
    factor = _number(rope, "factor")
    low, high = _number(rope, "low_freq_factor"), _number(rope, "high_freq_factor")
    original = _number(rope, "original_max_position_embeddings", rope.trained_context)
    plain = _inverse(rope, rope.theta)
    turns = original / (2 * math.pi / plain)  # full turns over the original context
    ramp = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - ramp) * plain / factor + ramp * plain, 1.0


def llama3_divisors(rope: RopeParameters) -> Tensor:
    """Divisor of each frequency by Llama 3.1's rule, float32 [rotary_size / 2]."""
    return _inverse(rope, rope.theta) / _llama3(rope, rope.trained_context)[0]


_FREQUENCIES: dict[str, Callable[[RopeParameters, int], tuple[Tensor, float]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
}
