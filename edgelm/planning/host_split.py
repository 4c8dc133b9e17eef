"""Split: the first layers of a model on the CPU, where an accelerator has no room for all of them.

Embedding, head and the layers after the first few stay on the device. What a step needs crosses
twice: the hidden states to the host and back. Layers of the host run natively, in float32.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from edgelm.budget.dtypes import KV_DTYPES
from edgelm.budget.parts import KV_CACHE, WEIGHTS, Part, PartName, Share, Where
from edgelm.budget.plan import MatrixPlan, Plan
from edgelm.errors import UsageError
from edgelm.machine.transfer import TRANSFER_BYTES
from edgelm.models.assembled import Assembled
from edgelm.ops.cache_sizes import cache_parts
from edgelm.ops.native import holds_natively
from edgelm.planning.load_peak import load_peak_bytes
from edgelm.planning.matrices import vector_bytes

_PER_LAYER = WEIGHTS | KV_CACHE | {PartName.RESTORE_POINTS}
_HOST_SHARE = frozenset(
    {
        *(PartName.ACTIVATIONS, PartName.ATTENTION, PartName.ROPE_TABLE),
        PartName.KERNEL_SCRATCH,
    }
)


def split(
    model: Assembled, dtype: torch.dtype, runtime_bytes: int, on_device: Plan, on_host: Plan
) -> Plan:
    """As few layers on the host as the device's memory asks for.

    Args:
        dtype: of activations on the device. runtime_bytes: of the process without a model.
        on_device, on_host: plans of the whole model there, otherwise alike.

    Returns:
        All on the host where not even that fits.

    Raises:
        UsageError: the host cannot run its share natively.
    """
    if on_host.execution.ops != "native" or not holds_natively(KV_DTYPES[on_device.kv]):
        raise UsageError(
            "offload 'cpu' runs layers natively: it needs the native library, a native backend for "
            "every matrix, and kv float32, bfloat16 or int8. Use offload='none' or device='cpu'."
        )
    layers = len(on_device.placement)

    def fits(count: int) -> bool:
        parts = _parts(model, dtype, on_device, on_host, count)
        return _total(parts, "device") <= on_device.device_budget_bytes

    count = min(1 + bisect_left(range(1, layers + 1), True, key=fits), layers)
    products = tuple(_products(on_device, on_host, count))
    plan = replace(
        on_device,
        placement=("cpu",) * count + on_device.placement[count:],
        parts=tuple(_parts(model, dtype, on_device, on_host, count)),
        products=products,
        # A step that crosses to the host and back is not one graph.
        execution=replace(on_device.execution, recorded=False),
        load_peak_bytes=_load_peak_bytes(model, runtime_bytes, products),
    )
    return replace(plan, fits=plan.within_budgets)


def _products(on_device: Plan, on_host: Plan, count: int) -> Iterator[MatrixPlan]:
    """In loading order: the embedding, the host's layers, the others, the head."""

    def stays(product: MatrixPlan) -> bool:
        layer = product.name.layer
        return layer is not None and layer < count

    yield from (p for p in on_device.products if p.kind == "embed")
    yield from (p for p in on_host.products if stays(p))
    yield from (p for p in on_device.products if p.kind != "embed" and not stays(p))


def _parts(
    model: Assembled, dtype: torch.dtype, on_device: Plan, on_host: Plan, count: int
) -> Iterator[Part]:
    sizes: Counter[Share] = Counter()
    for product in _products(on_device, on_host, count):
        where: Where = "host" if product.device == "cpu" else "device"
        sizes[Share(product.name.part, where)] += product.nbytes
    behind = len(on_device.placement)  # where vectors of no layer count
    vectors = Share(PartName.VECTORS, "device"), Share(PartName.VECTORS, "host")
    sizes[vectors[0]] = vector_bytes(model.decoder, dtype, range(count, behind + 1))
    sizes[vectors[1]] = vector_bytes(model.decoder, torch.float32, range(count))
    kv = KV_DTYPES[on_device.kv]
    caches = (model.config, on_device.rows, on_device.context, on_device.chunk, kv)
    sizes.update(cache_parts(*caches, place="device", on_host=count))
    rings = cache_parts(*caches, rings_only=True, place="device", on_host=count)
    for share, nbytes in rings.items():
        sizes[Share(PartName.RESTORE_POINTS, share.where)] += nbytes
    yield from (Part(share.name, nbytes, share.where) for share, nbytes in sizes.items() if nbytes)
    yield from (part for part in on_device.parts if part.name not in _PER_LAYER)
    yield from (part for part in on_host.parts if part.name in _HOST_SHARE)


def _load_peak_bytes(model: Assembled, runtime_bytes: int, products: Iterable[MatrixPlan]) -> int:
    """The host's layers are made and stay; the others are made one by one beside them."""
    runtime = TRANSFER_BYTES + runtime_bytes
    staying = [p for p in products if p.device == "cpu"]
    leaving = [p for p in products if p.device != "cpu"]
    beside = runtime + sum(product.nbytes for product in staying)
    return max(
        load_peak_bytes(staying, model.names, runtime),
        load_peak_bytes(leaving, model.names, beside, leaves=True),
    )


def _total(parts: Iterable[Part], where: Where) -> int:
    return sum(part.bytes for part in parts if part.where == where)
