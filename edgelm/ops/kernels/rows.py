"""Kernels over rows of numbers: norms, activations, additions, soft-caps.

Everything is computed in float32 and rounded once, to the type of the result. The numbers of a
token are contiguous, with any stride between tokens.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tanh(x: tl.tensor) -> tl.tensor:
    """Hyperbolic tangent by exp alone, which every device has; error at most 1e-7."""
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)


@triton.jit
def norm(
    x: tl.tensor, weight: tl.tensor, bias: tl.tensor, out: tl.tensor, size: tl.tensor,
    eps: tl.tensor, x_stride: tl.tensor, out_stride: tl.tensor, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """x / rms(x) * weight, with a bias (x - mean) / deviation * weight + bias.

    One program per token and head: x, out [M, heads, size]. weight, bias: [size] float32.
    """
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = tl.arange(0, BLOCK)
    live = at < size
    numbers = tl.load(x + token * x_stride + head * size + at, mask=live, other=0.0).to(tl.float32)
    if bias is not None:
        numbers = tl.where(live, numbers - tl.sum(numbers, 0) / size, 0.0)
    numbers = numbers / tl.sqrt(tl.sum(numbers * numbers, 0) / size + eps)
    numbers = numbers * tl.load(weight + at, mask=live, other=0.0)
    if bias is not None:
        numbers += tl.load(bias + at, mask=live, other=0.0)
    tl.store(out + token * out_stride + head * size + at, numbers, mask=live)


@triton.jit
def transform(
    x: tl.tensor, y: tl.tensor, out: tl.tensor, size: tl.tensor, number: tl.tensor,
    x_stride: tl.tensor, y_stride: tl.tensor, out_stride: tl.tensor, NAME: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """out = NAME(x) [M, size], for "add" x + y; other functions are multiplied by y if given."""
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = at < size
    numbers = tl.load(x + token * x_stride + at, mask=live, other=0.0).to(tl.float32)
    if NAME == "scale":
        numbers = numbers * number
    elif NAME == "softcap":
        numbers = number * tanh(numbers / number)
    elif NAME == "silu":
        numbers = numbers / (1.0 + tl.exp(-numbers))
    elif NAME == "gelu_pytorch_tanh":
        inner = 0.7978845608028654 * (numbers + 0.044715 * numbers * numbers * numbers)
        numbers = 0.5 * numbers * (1.0 + tanh(inner))
    elif NAME == "relu2":
        numbers = tl.maximum(numbers, 0.0)
        numbers = numbers * numbers
    if y is not None:
        others = tl.load(y + token * y_stride + at, mask=live, other=0.0).to(tl.float32)
        numbers = numbers + others if NAME == "add" else numbers * others
    tl.store(out + token * out_stride + at, numbers, mask=live)
