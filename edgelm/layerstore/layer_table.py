"""LayerTable: what a layer's file holds, where each tensor lies, and the sums of its blocks.

A table is checked before anything is made of it: it may be damaged, or another program's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import torch

from edgelm.budget.placement import ALIGNMENT
from edgelm.budget.plan import MatrixPlan
from edgelm.layerstore.block_sums import block_count
from quant import ModuleReport, QuantError, Scheme, find


class DamagedLayerError(Exception):
    """The file is not as written; it is only a copy and can be recreated."""


@dataclass(frozen=True)
class KeptTensor:
    """One tensor of a product: where it begins in the image, and a sum for each of its blocks."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    sums: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def to_list(self) -> list[Any]:
        kind = str(self.dtype).removeprefix("torch.")
        return [self.name, kind, self.shape, self.offset, self.sums]

    @classmethod
    def parse(cls, entry: Any) -> KeptTensor:
        """The tensor of an entry; raises ValueError or TypeError."""
        name, kind, shape, offset, sums = entry
        numbers = [*shape, offset, *sums]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError("it has a size, place or sum that is no count")
        dtype = getattr(torch, kind) if isinstance(name, str) else None
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"it has the type {kind!r:.40}")
        return cls(name, dtype, tuple(shape), offset, tuple(sums))


@dataclass(frozen=True)
class KeptProduct:
    """A product's tensors, and the reports of its parts from when they were packed."""

    tensors: tuple[KeptTensor, ...]
    modules: tuple[ModuleReport, ...]

    def to_dict(self) -> dict[str, Any]:
        modules = [asdict(module) | {"scheme": str(module.scheme)} for module in self.modules]
        return {"tensors": [tensor.to_list() for tensor in self.tensors], "modules": modules}

    @classmethod
    def parse(cls, data: Any) -> KeptProduct:
        """The product of an entry; raises what ``LayerTable.parse`` catches."""
        modules = (
            own | {"scheme": Scheme.parse(own["scheme"]), "shape": tuple(own["shape"])}
            for own in data["modules"]
        )
        tensors = tuple(map(KeptTensor.parse, data["tensors"]))
        return cls(tensors, tuple(ModuleReport(**module) for module in modules))


@dataclass(frozen=True)
class LayerTable:
    """job: whose file it is; image_bytes: of all tensors; products by their first names."""

    job: str
    image_bytes: int
    products: dict[str, KeptProduct]

    def to_bytes(self) -> bytes:
        products = {name: product.to_dict() for name, product in self.products.items()}
        told = {"job": self.job, "image_bytes": self.image_bytes, "products": products}
        return json.dumps(told).encode()

    @classmethod
    def parse(cls, text: bytes, image_bytes: int) -> LayerTable:
        """The table of an image that has so many bytes.

        Raises:
            DamagedLayerError: it is no such table, or places tensors outside the image, over each
                other or unaligned.
        """
        try:
            told = json.loads(text)
            products = {str(n): KeptProduct.parse(own) for n, own in told["products"].items()}
            table = cls(str(told["job"]), told["image_bytes"], products)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, QuantError) as e:
            raise DamagedLayerError(f"its table cannot be read: {e}") from None
        if table.image_bytes != image_bytes:
            raise DamagedLayerError("it has another size")
        table._check_places()
        return table

    def tensors(self) -> Iterator[KeptTensor]:
        """The tensors of all products."""
        for product in self.products.values():
            yield from product.tensors

    def check_against(self, products: Sequence[MatrixPlan]) -> None:
        """Compare types, shapes and names with what the plan's kernels lay out.

        Raises:
            DamagedLayerError: a pointer into the image would not be what its kernel reads.
        """
        planned = {product.names[0]: product for product in products}
        if self.products.keys() != planned.keys():
            raise DamagedLayerError("it holds other matrices than the plan names")
        for name, own in self.products.items():
            plan = planned[name]
            layout = find(plan.kernel).layout(Scheme.parse(plan.scheme), plan.shape)
            expected = [(key, tensor.dtype, tuple(tensor.shape)) for key, tensor in layout.items()]
            found = [(tensor.name, tensor.dtype, tensor.shape) for tensor in own.tensors]
            if sorted(found, key=str) != sorted(expected, key=str):
                raise DamagedLayerError(f"{name} has other tensors than {plan.kernel} lays out")
            if tuple(module.name for module in own.modules) != plan.names:
                raise DamagedLayerError(f"{name} has other parts than the plan names")

    def _check_places(self) -> None:
        end = 0
        for tensor in sorted(self.tensors(), key=lambda own: (own.offset, own.nbytes)):
            if tensor.offset < end or tensor.offset + tensor.nbytes > self.image_bytes:
                raise DamagedLayerError("a tensor lies outside its place")
            if tensor.offset % ALIGNMENT:
                raise DamagedLayerError("a tensor is not aligned")
            if len(tensor.sums) != block_count(tensor.nbytes):
                raise DamagedLayerError("a block has no sum")
            end = tensor.offset + tensor.nbytes
