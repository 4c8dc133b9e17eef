"""Operations in the native library, run immediately and, for a decode step, also recorded.

Only for float32 activations. Matches ``reference`` to about 110 dB (tests/quant/test_native_ops.py)
where the products are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgelm.budget.parts import PartName
from edgelm.budget.plan import Execution, MatrixPlan
from edgelm.config import ModelConfig
from edgelm.ops.cache_sizes import ring_slots
from edgelm.ops.position import Rope
from edgelm.ops.reference import Scoring
from quant import QuantEmbedding, QuantLinear, Scheme, native
from quant.backends import find
from quant.backends.native_backend import NativeProduct
from quant.native import ops
from quant.native import products as calls
from quant.native.ops import Call, LayerCache

if TYPE_CHECKING:
    from edgelm.ops.step import Step


def runs_natively(products: Iterable[MatrixPlan], dtype: torch.dtype) -> bool:
    """True if every operation of a step has a native version; the embedding may be of any kind.

    A head that shares the embedding's matrix has no other products; then the library must be there.
    """
    return (
        dtype == torch.float32
        and all(p.kernel.startswith("native.") for p in products if p.kind != "embed")
        and native.missing() is None
    )


def holds_natively(dtype: torch.dtype) -> bool:
    """True if the library supports caches of this type."""
    return dtype in ops.STORAGES


def workspaces(
    config: ModelConfig, execution: Execution, chunk: int, context: int,
    products: Iterable[MatrixPlan],
) -> dict[PartName, int]:  # fmt: skip
    """Bytes by plan part: the workspace of attention, and that of products of recorded steps."""
    slots = max(ring_slots(window, context, chunk) for window in config.windows)
    shape = (slots, config.num_kv_heads, config.head_size)
    sizes = {PartName.ATTENTION: ops.attention_bytes(chunk, config.num_heads, shape)}
    if execution.recorded:
        tokens = execution.decode_tokens
        kinds = {(p.scheme, p.shape, p.kernel) for p in products if p.kernel.startswith("native.")}
        sizes[PartName.RECORDED_STEP] = max(
            calls.workspace_bytes(Scheme.parse(scheme), shape, tokens, _exact(kernel))
            for scheme, shape, kernel in kinds
        )
    return sizes


class NativeOps:
    """The operations of ``reference`` as calls of the native library.

    Args:
        attention: uint8 workspace of ``attend``. products: uint8 workspace of recorded products;
            None runs them immediately with separate memory.
    """

    def __init__(self, attention: Tensor, products: Tensor | None = None) -> None:
        self._attention, self._products = attention, products
        self.calls: list[Call] = []
        self.first: Callable[[], object] | None = (
            None  # runs before them: a lookup outside the native library
        )

    @property
    def _recording(self) -> bool:
        return self._products is not None

    def _run(self, call: Call) -> None:
        if self._recording:
            self.calls.append(call)
        call()

    def linear(self, product: QuantLinear, x: Tensor, out: Tensor) -> Tensor:
        if self._products is None:
            return product.forward(x, out)
        assert isinstance(product.kernel, NativeProduct)
        layout = product.tensors["layout"]
        space, exact = self._products, product.kernel.exact
        self._run(calls.linear(layout, product.scheme, x, product.bias, out, space, exact))
        return out

    def embed(self, table: QuantEmbedding, ids: Tensor, out: Tensor) -> Tensor:
        if self._recording and isinstance(table.kernel, NativeProduct):
            self._run(calls.embed(table.tensors["layout"], table.scheme, ids, out))
        else:
            table.forward(ids, out)
            if self._recording:
                self.first = partial(table.forward, ids, out)
        return out

    def scale_(self, x: Tensor, factor: float) -> Tensor:
        self._run(ops.scale(x, factor, x))
        return x

    def copy(self, x: Tensor, out: Tensor) -> Tensor:
        self._run(ops.scale(x, 1.0, out))
        return out

    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, out: Tensor, scratch: Tensor
    ) -> Tensor:
        self._run(ops.rms_norm(x, weight, eps, out))
        return out

    def layer_norm(
        self, x: Tensor, weight: Tensor, bias: Tensor, eps: float, out: Tensor, scratch: Tensor
    ) -> Tensor:
        self._run(ops.layer_norm(x, weight, bias, eps, out))
        return out

    def rotate_and_store(
        self, step: Step, layer: int, both: Tensor, values: Tensor, rope: Rope, out: Tensor
    ) -> Tensor:
        assert step.angles is not None
        angles, heads = step.angles, both.shape[1] - values.shape[1]
        self._run(ops.rotate(both, angles.table, angles.positions, rope.interleaved, out))
        self.store(step, layer, out[:, heads:], values)
        return out[:, :heads]

    def store(self, step: Step, layer: int, keys: Tensor, values: Tensor) -> None:
        cache = LayerCache(*step.cache.tensors_of(layer))
        self._run(ops.store(cache, keys, values, step.rows, step.positions))

    def attend(
        self, step: Step, layer: int, queries: Tensor, scoring: Scoring, out: Tensor
    ) -> Tensor:
        call = ops.attend(
            queries, LayerCache(*step.cache.tensors_of(layer)), step.rows, step.positions, out,
            self._attention, scale=scoring.scale, window=step.cache.window_of(layer),
            softcap=scoring.softcap, slopes=scoring.slopes,
        )  # fmt: skip
        self._run(call)
        return out

    def activation(self, x: Tensor, name: str, out: Tensor) -> Tensor:
        self._run(ops.activation(x, name, out))
        return out

    def gated_activation(self, gate_up: Tensor, name: str, out: Tensor) -> Tensor:
        self._run(ops.gated_activation(gate_up, name, out))
        return out

    def softcap_(self, x: Tensor, bound: float) -> Tensor:
        self._run(ops.softcap(x, bound, x))
        return x

    def argmax(self, x: Tensor, out: Tensor) -> None:
        self._run(ops.argmax(x, out))

    def add_(self, x: Tensor, branch: Tensor) -> Tensor:
        self._run(ops.add(x, branch))
        return x


def _exact(kernel: str) -> bool:
    found = find(kernel)
    return isinstance(found, NativeProduct) and found.exact
