"""The peak of memory while weights are read: the loader's steps, added up product by product."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from edgelm.budget.placement import file_groups
from edgelm.budget.plan import MatrixPlan
from edgelm.budget.units import BLOCK_BYTES
from edgelm.models.weight_names import WeightNames
from quant import Scheme, find

_PACKING_BYTES = 12 << 20  # temporaries of packing one block of quant.convert, by any method
_PIECES_BYTES = 48 << 20  # of a packed matrix being taken apart: a piece, its codes, their copy


def load_peak_bytes(
    products: Sequence[MatrixPlan], names: WeightNames, runtime_bytes: int,
    ready: Collection[str] = (), leaves: bool = False,
) -> int:  # fmt: skip
    """Bytes of the whole process at the worst moment of reading ``products`` in their order.

    Args:
        runtime_bytes: what the process takes without them. ready: first names of products that an
            earlier load laid out, to be mapped. leaves: a product goes to a device as soon as it
            is made; those that are mapped become resident a file at a time on their way.
    """
    if leaves:
        mapped = [sum(p.nbytes for p in own) for own in file_groups(products).values()]
        making = [_making_bytes(p, names) for p in products if p.names[0] not in ready]
        return runtime_bytes + max([0, *mapped, *making])
    peak = held = runtime_bytes
    for product in products:
        if product.names[0] not in ready:
            peak = max(peak, held + _making_bytes(product, names))
        held += product.nbytes
    return max(peak, held)


def _making_bytes(product: MatrixPlan, names: WeightNames) -> int:
    """The canonical form, and the larger of reading into it and laying it out for the kernel."""
    scheme = Scheme.parse(product.scheme)
    parts = zip(product.names, product.shapes, strict=True)
    reading = max(_reading_bytes(product, scheme, *part, names) for part in parts)
    laying_out = find(product.kernel).prepare_bytes(scheme, product.shape)
    return scheme.nbytes(product.shape) + max(reading, laying_out)


def _reading_bytes(
    product: MatrixPlan, scheme: Scheme, name: str, shape: tuple[int, int], names: WeightNames
) -> int:
    """A part of a fused product is packed by itself and then copied."""
    own = scheme.nbytes(shape) if len(product.names) > 1 else 0
    if product.stored:
        return own + min(_PIECES_BYTES, 2 * scheme.nbytes(shape))
    info = names.info(name, shape)
    dtype = getattr(torch, info.dtype, torch.float32)  # blocks of integers are read as float32
    step = max(1, BLOCK_BYTES // (shape[1] * torch.float32.itemsize))
    block = min(step, shape[0]) * shape[1] * dtype.itemsize
    copies = 1 if info.shape == shape else 2  # rows that lie apart are read one by one, then joined
    return own + copies * block + _PACKING_BYTES
