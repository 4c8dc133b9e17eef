"""Operations of a decoding step in the native library, as calls to run now or to record.

Each function makes a ``Call``: a function of the library and a struct of pointers and sizes, as
src/api/edgelm_ops.h describes them. A call can be run any number of times; positions and rows are
read from their tensors each time. Tensors are float32 on the CPU; the numbers of one token are
contiguous, with any stride between tokens. Nothing is allocated but the call.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from . import library, structs, threads

FUNCTIONS = {"silu": 0, "gelu_pytorch_tanh": 1, "relu2": 2}
STORAGES = {torch.bfloat16: 1, torch.float32: 2, torch.int8: 3}


@dataclass(frozen=True)
class Call:
    """One call of the library: ``function(pointer to struct)``.

    ``tensors`` is the memory that the struct points into, kept alive as long as the call.
    """

    function: str
    struct: ctypes.Structure
    tensors: tuple[Tensor | None, ...]

    def __call__(self) -> None:
        getattr(library(), self.function)(ctypes.byref(self.struct))


@dataclass(frozen=True)
class LayerCache:
    """Keys and values [rows, G, slots, D] of a layer, position p of a row in slot p % slots.

    For int8 the scales [rows, G, slots, 1] are bfloat16.
    """

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.keys, self.values, self.key_scales, self.value_scales

    def struct(self) -> structs.Cache:
        storage = STORAGES.get(self.keys.dtype)
        if storage is None:
            raise ValueError(f"keys in {self.keys.dtype}; native caches hold {list(STORAGES)}")
        for tensor in self.tensors:
            assert tensor is None or tensor.is_contiguous()
        assert (self.key_scales is None) == (self.keys.dtype != torch.int8)
        groups, slots, size = self.keys.shape[1:]
        return structs.Cache(*map(address, self.tensors), slots, groups, size, storage)


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> Call:
    """x / rms(x) * weight; x, out [M, N] or [M, heads, N], other memory. weight: [N]."""
    return Call("edgelm_rms_norm", _norm(x, weight, None, eps, out), (x, weight, out))


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, out: Tensor) -> Call:
    """(x - mean) / deviation * weight + bias; arguments as for ``rms_norm``, bias [N]."""
    return Call("edgelm_layer_norm", _norm(x, weight, bias, eps, out), (x, weight, bias, out))


def add(x: Tensor, y: Tensor) -> Call:
    """x += y, both [M, N]."""
    struct = structs.Addition(address(x), address(y), *x.shape, stride(x), stride(y), threads())
    return Call("edgelm_add", struct, (x, y))


def scale(x: Tensor, factor: float, out: Tensor) -> Call:
    """out = x * factor, both [M, N]; with factor 1 a copy. out may be x."""
    return Call("edgelm_scale", _map(x, factor, out), (x, out))


def softcap(x: Tensor, bound: float, out: Tensor) -> Call:
    """out = bound * tanh(x / bound), both [M, N]. out may be x."""
    return Call("edgelm_softcap", _map(x, bound, out), (x, out))


def activation(x: Tensor, name: str, out: Tensor) -> Call:
    """out = the function of transformers' ``name`` in ``FUNCTIONS`` of x, both [M, N]."""
    return _activation(x, None, name, out)


def gated_activation(gate_up: Tensor, name: str, out: Tensor) -> Call:
    """out [M, N] = function(gate) * up for gate_up [M, 2 * N], gate first."""
    gate, up = gate_up.chunk(2, dim=-1)
    return _activation(gate, up, name, out)


def rotate(x: Tensor, table: Tensor, positions: Tensor, interleaved: bool, out: Tensor) -> Call:
    """Rotary embedding of x [M, heads, D] into out, which may be x.

    Args:
        table: [2, context, pairs], cosines and sines; what lies beyond 2 * pairs is copied.
        positions: [M] int64. interleaved: pairs are neighbours instead of halves.
    """
    struct = structs.Rotation(
        *map(address, (x, out, table[0], table[1], positions)),
        *x.shape, table.shape[2], stride(x), stride(out), interleaved, threads(),
    )  # fmt: skip
    return Call("edgelm_rotate", struct, (x, out, table, positions))


def store(cache: LayerCache, keys: Tensor, values: Tensor, rows: Tensor, positions: Tensor) -> Call:
    """Keys and values [M, G, D] into their places; rows and positions [M] int64."""
    struct = structs.Append(
        cache.struct(), *map(address, (keys, values, rows, positions)),
        keys.shape[0], stride(keys), stride(values), threads(),
    )  # fmt: skip
    return Call("edgelm_store", struct, (*cache.tensors, keys, values, rows, positions))


def attend(
    queries: Tensor, cache: LayerCache, rows: Tensor, positions: Tensor, out: Tensor,
    workspace: Tensor, *, scale: float, window: int | None = None, softcap: float | None = None,
    slopes: Tensor | None = None,
) -> Call:  # fmt: skip
    """softmax(scores) v over what each token's row holds up to its position.

    Args:
        queries, out: [M, H, D] with H a multiple of the cache's G. rows, positions: [M] int64.
        workspace: uint8, at least ``attention_bytes``. window: how many positions a token sees,
            itself included; None: all. softcap: bound of the scores. slopes: [H] of ALiBi.
    """
    struct = structs.Attention(
        cache.struct(),
        *map(address, (queries, out, rows, positions, slopes, workspace)),
        *queries.shape[:2], stride(queries), stride(out), window or 0, scale, softcap or 0.0,
        _attention_threads(),
    )  # fmt: skip
    assert workspace.numel() >= library().edgelm_attention_bytes(ctypes.byref(struct))
    tensors = (*cache.tensors, queries, out, rows, positions, slopes, workspace)
    return Call("edgelm_attend", struct, tensors)


def attention_bytes(tokens: int, heads: int, shape: tuple[int, int, int]) -> int:
    """Bytes of ``attend``'s workspace for up to M tokens over a cache of (slots, G, D)."""
    struct = structs.Attention(
        tokens=tokens, heads=heads, threads=max(_attention_threads(), _cores())
    )
    struct.cache.slots, struct.cache.groups, struct.cache.size = shape
    return int(library().edgelm_attention_bytes(ctypes.byref(struct)))


def _attention_threads() -> int:
    """Number of threads, at most that of ``attention_bytes``, even if torch's setting changes."""
    return min(threads(), _cores())


def _cores() -> int:
    return os.cpu_count() or 1


def argmax(x: Tensor, out: Tensor) -> Call:
    """out [M] int64 = index of the first largest number of x [M, N], -1 where one is not finite."""
    struct = structs.Maximum(address(x), address(out), *x.shape, stride(x), threads())
    return Call("edgelm_argmax", struct, (x, out))


def sample(
    logits: Tensor, uniform: float, *, temperature: float, top_k: int, top_p: float, min_p: float
) -> int:
    """Draw a token of logits [V] by ``uniform`` in [0, 1) from those that the filters keep.

    The filters are those of ``edgelm.generation.processors``; ``logits`` are overwritten by
    weights. -1 if every logit is -infinity.
    """
    assert logits.is_contiguous() and logits.dim() == 1
    out = ctypes.c_int64()
    pointer = ctypes.addressof(out)
    draw = structs.Sampling(
        address(logits), pointer, len(logits), top_k, uniform, top_p, temperature, min_p
    )
    Call("edgelm_sample", draw, (logits,))()
    return out.value


def _norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, out: Tensor) -> structs.Norm:
    tokens, *heads, size = x.shape
    return structs.Norm(
        *map(address, (x, out, weight, bias)),
        tokens, prod(heads), size, stride(x), stride(out), eps, threads(),
    )  # fmt: skip


def _map(x: Tensor, number: float, out: Tensor) -> structs.Unary:
    return structs.Unary(
        address(x), address(out), *x.shape, stride(x), stride(out), number, threads()
    )


def _activation(gate: Tensor, up: Tensor | None, name: str, out: Tensor) -> Call:
    strides = stride(gate), 0 if up is None else stride(up), stride(out)
    struct = structs.Activation(
        *map(address, (gate, up, out)), *gate.shape, *strides, FUNCTIONS[name], threads()
    )
    return Call("edgelm_activate", struct, (gate, up, out))


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def stride(tensor: Tensor) -> int:
    """Numbers from one token to the next; what a token holds must be contiguous float32."""
    assert tensor.dtype == torch.float32 and tensor[0].is_contiguous()
    return tensor.stride(0)
