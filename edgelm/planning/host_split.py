"""Split: the first layers of a model on the CPU, where an accelerator has no room for all of them.

Embedding, head and the layers after the first few stay on the device. What a step needs crosses
twice: the hidden states to the host and back. Layers of the host run natively, in float32.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from edgelm.budget.placement import ON_HOST, layer_of
from edgelm.budget.plan import Part, Plan, ProductPlan
from edgelm.engine.restore_points import PART as RESTORE_POINTS
from edgelm.errors import UsageError
from edgelm.machine.transfer import TRANSFER_BYTES
from edgelm.ops.cache_sizes import cache_parts
from edgelm.ops.native import holds_natively, runs_natively
from edgelm.planning.load_peak import load_peak_bytes
from edgelm.planning.matrices import vector_bytes, weight_part
from edgelm.planning.settings import KV_DTYPES

if TYPE_CHECKING:
    from edgelm.planning.planner import Planner

_PER_LAYER = ("weights.", "kv cache.", RESTORE_POINTS)
_HOST_SHARE = ("activations", "attention", "rope table", "kernel scratch")


def split(planner: Planner, on_device: Plan, on_host: Plan) -> Plan:
    """As few layers on the host as the device's memory asks for.

    Args:
        on_device, on_host: plans of the whole model there, otherwise alike.

    Returns:
        All on the host where not even that fits.

    Raises:
        UsageError: the host cannot run its share natively.
    """
    if not runs_natively(on_host.products, torch.float32) or not holds_natively(
        KV_DTYPES[on_device.kv]
    ):
        raise UsageError(
            "offload 'cpu' runs layers natively: it needs the native library, a native backend for "
            "every matrix, and kv float32, bfloat16 or int8. Use offload='none' or device='cpu'."
        )
    layers = len(on_device.placement)

    def fits(count: int) -> bool:
        parts = _parts(planner, on_device, on_host, count)
        return _total(parts, "device") <= on_device.device_budget_bytes

    count = min(1 + bisect_left(range(1, layers + 1), True, key=fits), layers)
    parts = tuple(_parts(planner, on_device, on_host, count))
    products = tuple(_products(on_device, on_host, count))
    made = replace(
        on_device,
        placement=("cpu",) * count + on_device.placement[count:],
        parts=parts,
        products=products,
        load_peak_bytes=_load_peak_bytes(planner, products),
        draft_depth=0,
    )
    return replace(made, fits=made.within_budgets)


def _products(on_device: Plan, on_host: Plan, count: int) -> Iterator[ProductPlan]:
    """In loading order: the embedding, the host's layers, the others, the head."""

    def in_host_s_layer(product: ProductPlan) -> bool:
        layer = layer_of(product)
        return layer is not None and layer < count

    yield from (p for p in on_device.products if p.kind == "embed")
    yield from (p for p in on_host.products if in_host_s_layer(p))
    yield from (p for p in on_device.products if p.kind != "embed" and not in_host_s_layer(p))


def _parts(planner: Planner, on_device: Plan, on_host: Plan, count: int) -> Iterator[Part]:
    sizes: dict[tuple[str, str], int] = {}
    for product in _products(on_device, on_host, count):
        suffix, where = (ON_HOST, "host") if product.device == "cpu" else ("", "device")
        key = (weight_part(product.names[0]) + suffix, where)
        sizes[key] = sizes.get(key, 0) + product.nbytes
    total, kv = len(on_device.placement), KV_DTYPES[on_device.kv]
    for where, suffix, dtype, layers in (
        ("device", "", planner.dtype, range(count, total + 1)),  # with vectors of no layer
        ("host", ON_HOST, torch.float32, range(count)),
    ):
        sizes["weights.other" + suffix, where] = vector_bytes(planner.decoder, dtype, layers)
    given = (planner.config, on_device.rows, on_device.context, on_device.chunk, kv)
    for name, nbytes in cache_parts(*given, on_host=count).items():
        sizes[name, "host" if name.endswith(ON_HOST) else "device"] = nbytes
    for name, nbytes in cache_parts(*given, rings_only=True, on_host=count).items():
        suffix, where = (ON_HOST, "host") if name.endswith(ON_HOST) else ("", "device")
        key = (RESTORE_POINTS + suffix, where)
        sizes[key] = sizes.get(key, 0) + nbytes
    yield from (Part(name, nbytes, where) for (name, where), nbytes in sizes.items() if nbytes)
    for part in on_device.parts:
        if not part.name.startswith(_PER_LAYER):
            yield part
    for part in on_host.parts:
        if part.name in _HOST_SHARE:
            yield Part(part.name + ON_HOST, part.bytes)


def _load_peak_bytes(planner: Planner, products: Iterable[ProductPlan]) -> int:
    """The host's layers are made and stay; the others are made one by one beside them."""
    runtime = TRANSFER_BYTES + sum(part.bytes for part in planner.runtime_parts)
    staying = [p for p in products if p.device == "cpu"]
    leaving = [p for p in products if p.device != "cpu"]
    beside = runtime + sum(product.nbytes for product in staying)
    return max(
        load_peak_bytes(staying, planner.names, runtime),
        load_peak_bytes(leaving, planner.names, beside, leaves=True),
    )


def _total(parts: Iterable[Part], where: str) -> int:
    return sum(part.bytes for part in parts if part.where == where)
