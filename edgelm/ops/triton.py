"""Operations as Triton kernels, for CUDA devices (and ROCm's, untested there).

Sums are float32 whatever the activations are. A step of single tokens reads its rows, positions and
lengths on the device and allocates nothing, so it can be captured as a CUDA graph. Matches
``reference`` within the bounds of tests/interpreted/triton_ops.py; what is not supported here
(returning probabilities) the engine leaves to ``reference``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from edgelm.config import ModelConfig
from edgelm.ops.cache_sizes import ring_slots
from edgelm.ops.position import Rope
from edgelm.ops.reference import Scoring
from quant import QuantEmbedding, QuantLinear
from quant import triton as products

if TYPE_CHECKING:
    from edgelm.ops.step import Step

SPLIT = 256  # slots of a row that one program of a decode step takes
_TILE_BYTES = 16 << 10  # of keys, and the same for values
_QUERY_BYTES = {2: 32 << 10, 4: 16 << 10}  # of a prompt's queries, by the size of a number
_BLOCK = 1024  # numbers of a row that one program of a map takes


def serves(device: torch.device) -> str | None:
    """Reason why these operations cannot run on a device, as in quant/triton; None if they can.

    Under TRITON_INTERPRET=1 they also run on CPUs, number by number, as in the tests.
    """
    if device.type == "cpu" and _interpreted():
        return products.uninstalled()
    return products.missing(device)


def workspace_elements(config: ModelConfig, tokens: int, chunk: int, context: int) -> int:
    """Number of float32 elements that ``attend`` needs for steps of up to ``tokens`` tokens."""
    slots = max(ring_slots(window, context, chunk) for window in config.windows)
    pieces = -(-slots // SPLIT)
    return tokens * config.num_heads * pieces * (config.head_size + 2)


class TritonOps:
    """The operations of ``reference`` as launches of kernels.

    Args:
        partial: float32 [workspace_elements(...)] for the results of the pieces of ``attend``.
        most: maximum tokens of a step whose keys are split into pieces; larger steps are prompts.
    """

    def __init__(self, partial: Tensor, most: int) -> None:
        self._partial, self._most = partial, most

    def linear(self, product: QuantLinear, x: Tensor, out: Tensor) -> Tensor:
        return product.forward(x, out)

    def embed(self, table: QuantEmbedding, ids: Tensor, out: Tensor) -> Tensor:
        return table.forward(ids, out)

    def scale_(self, x: Tensor, factor: float) -> Tensor:
        rounded = float(torch.tensor(factor, dtype=x.dtype))
        return _transform("scale", x, None, x, rounded)

    def copy(self, x: Tensor, out: Tensor) -> Tensor:
        return out.copy_(x)

    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, out: Tensor, scratch: Tensor
    ) -> Tensor:
        return _norm(x, weight, None, eps, out)

    def layer_norm(
        self, x: Tensor, weight: Tensor, bias: Tensor, eps: float, out: Tensor, scratch: Tensor
    ) -> Tensor:
        return _norm(x, weight, bias, eps, out)

    def rotate_and_store(
        self, step: Step, layer: int, both: Tensor, values: Tensor, rope: Rope, out: Tensor
    ) -> Tensor:
        from edgelm.ops.kernels import places

        assert step.angles is not None
        table, table_places = step.angles.table, step.angles.positions
        _, context, pairs = table.shape
        cached = _cached(step, layer)
        _, groups, slots, size = cached[0].shape
        rest = size - 2 * pairs
        places.rotate_and_store[both.shape[:2]](
            both, values, out, table, table_places, *cached, step.rows, step.positions, context,
            both.shape[1] - groups, slots, groups, size, pairs, _stride(both), _stride(values),
            _stride(out), INTERLEAVED=rope.interleaved, PAIRS=_power(pairs),
            REST=_power(rest) if rest else 0, BLOCK=_power(size),
        )  # fmt: skip
        return out[:, : both.shape[1] - groups]

    def store(self, step: Step, layer: int, keys: Tensor, values: Tensor) -> None:
        from edgelm.ops.kernels import places

        cached = _cached(step, layer)
        _, groups, slots, size = cached[0].shape
        places.store[keys.shape[:2]](
            keys, values, *cached, step.rows, step.positions, slots, groups, size,
            _stride(keys), _stride(values), BLOCK=_power(size),
        )  # fmt: skip

    def attend(
        self, step: Step, layer: int, queries: Tensor, scoring: Scoring, out: Tensor
    ) -> Tensor:
        if len(queries) <= self._most:
            self._attend_singly(step, layer, queries, scoring, out)
        else:
            _attend_together(step, layer, queries, scoring, out)
        return out

    def _attend_singly(
        self, step: Step, layer: int, queries: Tensor, scoring: Scoring, out: Tensor
    ) -> None:
        from edgelm.ops.kernels import decode

        cached = _cached(step, layer)
        _, groups, slots, size = cached[0].shape
        tokens, heads = queries.shape[:2]
        pieces, share = -(-slots // SPLIT), heads // groups
        assert self._partial.numel() >= tokens * heads * pieces * (size + 2)
        decode.attend_piece[(tokens, groups, pieces)](
            queries, *cached, step.rows, step.positions, scoring.slopes, self._partial, slots,
            groups, size, _stride(queries), step.cache.window_of(layer), scoring.scale,
            scoring.softcap, SHARE=share, HEADS=max(16, _power(share)), SPLIT=SPLIT,
            **_tile(cached[0], queries),
        )  # fmt: skip
        decode.join[(tokens, heads)](
            self._partial, out, pieces, size, _stride(out), BLOCK_D=_power(size)
        )

    def activation(self, x: Tensor, name: str, out: Tensor) -> Tensor:
        return _transform(name, x, None, out)

    def gated_activation(self, gate_up: Tensor, name: str, out: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return _transform(name, gate, up, out)

    def softcap_(self, x: Tensor, bound: float) -> Tensor:
        return _transform("softcap", x, None, x, bound)

    def add_(self, x: Tensor, branch: Tensor) -> Tensor:
        return _transform("add", x, branch, x)


def _attend_together(
    step: Step, layer: int, queries: Tensor, scoring: Scoring, out: Tensor
) -> None:
    """Attend row by row; lengths come from the host, so this cannot be captured."""
    from edgelm.ops.kernels import prefill

    cached = _cached(step, layer)
    _, groups, slots, size = cached[0].shape
    for segment in step.segments:
        tokens = slice(segment.start, segment.start + segment.count)
        fitting = _QUERY_BYTES[queries.itemsize] // (_power(size) * queries.itemsize)
        block_t = max(16, min(64, _power(segment.count), fitting))
        prefill.attend_tile[(-(-segment.count // block_t), queries.shape[1])](
            queries[tokens], *cached, scoring.slopes, out[tokens], segment.row, segment.position,
            segment.count, slots, groups, queries.shape[1] // groups, size, _stride(queries),
            _stride(out), step.cache.window_of(layer), scoring.scale, scoring.softcap,
            BLOCK_T=block_t, num_warps=4 if size <= 128 else 8, **_tile(cached[0], queries),
        )  # fmt: skip


def _norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, out: Tensor) -> Tensor:
    from edgelm.ops.kernels import rows

    size = x.shape[-1]
    heads = x.shape[1] if x.dim() == 3 else 1
    warps = 4 if size <= 2048 else 8
    rows.norm[(x.shape[0], heads)](
        x, weight, bias, out, size, eps, _stride(x), _stride(out), BLOCK=_power(size),
        num_warps=warps,
    )  # fmt: skip
    return out


def _transform(name: str, x: Tensor, y: Tensor | None, out: Tensor, number: float = 0.0) -> Tensor:
    from edgelm.ops.kernels import rows

    block = min(_BLOCK, _power(x.shape[1]))
    rows.transform[(x.shape[0], -(-x.shape[1] // block))](
        x, y, out, x.shape[1], number, _stride(x), 0 if y is None else _stride(y), _stride(out),
        NAME=name, BLOCK=block,
    )  # fmt: skip
    return out


def _cached(step: Step, layer: int) -> tuple[Any, ...]:
    """Keys and values [rows, G, slots, D] of a layer, and their scales or None."""
    held = step.cache.tensors_of(layer)
    return (*held, None, None)[:4]


def _stride(tensor: Tensor) -> int:
    """Stride from one token to the next; the numbers of a token must be contiguous."""
    assert tensor.shape[0] == 0 or tensor[0].is_contiguous()
    return tensor.stride(0)


def _compute(queries: Tensor) -> Any:
    """Type in which products of attention are computed; the interpreter lacks bfloat16."""
    import triton.language as tl

    if _interpreted():
        return tl.float32
    return {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}.get(queries.dtype, tl.float32)


def _tile(keys: Tensor, queries: Tensor) -> dict[str, Any]:
    """Number of keys per tile, chosen so that they fit the memory of any card.

    float32 is not prefetched: it is bound by products without tensor cores, not by memory.
    """
    block_d = max(16, _power(keys.shape[-1]))
    block_s = max(16, min(64, _TILE_BYTES // (block_d * keys.itemsize)))
    return {
        "BLOCK_S": block_s,
        "BLOCK_D": block_d,
        "COMPUTE": _compute(queries),
        "num_stages": 1 if queries.itemsize == 4 else 2,
    }


def _power(count: int) -> int:
    """The next power of two, as block sizes must be."""
    return 1 << max(0, count - 1).bit_length()


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"
