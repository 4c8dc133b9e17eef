"""Kernels of the native library, over panels of 32 rows (native/src/layout/layout.h).

Activations are rounded to 8 bits per group of inputs (of 32 where the weights have one scale
per row), the integers multiplied exactly, and groups summed in float32 in a fixed order. Groups
with outliers are rounded twice, to 16 bits (native/src/products/rounded/activations.h). The exact
products do not round float32 activations, and are the only ones over float weights
(native/src/products/exact/activations.h). A row of the result depends only on its row of
activations, and is the same on every instruction set.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from .. import native
from ..errors import QuantError
from ..native import structs
from ..packing import PackedWeight
from ..scheme import Scheme
from .kernel import Shape, Tensors

# Products of Gaussian numbers agree with the reference's to at least this many dB after rounding
# the activations to 8 bits. Groups of 32 measure 46 dB, of 128 43.5 dB.
ACTIVATIONS_FLOOR_DB = 41.0
_PANEL = 32  # rows stored together; the last panel is padded with zeros


class NativeProduct:
    """One kind of weights, with any groups, zeros and scales.

    kind: "int4", "int8", "nf4", "fp4" or "float" (all three float types). exact: float32
    activations are not rounded.
    """

    backend = "native"

    def __init__(self, kind: str, exact: bool = False) -> None:
        self.kind = kind
        self.exact = exact
        self.name = f"native.{kind}.exact" if exact and kind != "float" else f"native.{kind}"

    def refusal(
        self, scheme: Scheme, shape: Shape, device: torch.device, lookup: bool
    ) -> str | None:
        kind = "float" if scheme.is_float else scheme.codebook or f"int{scheme.bits}"
        if kind != self.kind:
            supported = "float types" if self.kind == "float" else self.kind
            return f"supports {supported} only"
        if scheme.coded or scheme.group_size == 16:
            return "supports scales of float types in groups of 32 or more"
        if device.type != "cpu":
            return f"runs on CPUs, not on {device}"
        missing = native.missing()
        if missing is None:
            native.library()  # raises for a wrong EDGELM_ISA, which must not be ignored silently
        return missing

    def prepare(self, packed: PackedWeight) -> Tensors:
        layout = torch.empty(self.nbytes(packed.scheme, packed.shape), dtype=torch.uint8)
        canonical = {name: t.contiguous() for name, t in packed.tensors().items()}
        pointers = {name: t.data_ptr() for name, t in canonical.items()}
        native.library().edgelm_pack(
            native.matrix(packed.scheme, packed.shape),
            pointers["qweight"],
            pointers.get("scales"),
            pointers.get("zeros"),
            layout.data_ptr(),
            native.threads(),
        )
        return {"layout": layout}

    def layout(self, scheme: Scheme, shape: Shape) -> Tensors:
        size = self.nbytes(scheme, shape)
        return {"layout": torch.empty(size, dtype=torch.uint8, device="meta")}

    def nbytes(self, scheme: Scheme, shape: Shape) -> int:
        return _layout_bytes(scheme, shape)

    def prepare_bytes(self, scheme: Scheme, shape: Shape) -> int:
        # The layout; canonical tensors that are contiguous already are not copied.
        return self.nbytes(scheme, shape)

    def scratch_bytes(self, scheme: Scheme, shape: Shape, rows: int) -> int:
        # What the library needs, and float32 copies of whatever is not float32.
        return self._workspace_bytes(scheme, shape, rows) + 4 * (rows * sum(shape) + shape[0])

    def multiply(
        self, x: Tensor, tensors: Tensors, scheme: Scheme, bias: Tensor | None, out: Tensor
    ) -> None:
        rows, shape = len(x), (out.shape[1], x.shape[1])
        _check(x, tensors["layout"], scheme, bias, out)
        x = x.float() if x.stride(1) == 1 else x.float().contiguous()
        bias = None if bias is None else bias.float()
        direct = out.dtype == torch.float32 and out.stride(1) == 1
        product = out if direct else torch.empty(out.shape, dtype=torch.float32)
        workspace = torch.empty(self._workspace_bytes(scheme, shape, rows), dtype=torch.uint8)
        call = structs.Product(
            native.matrix(scheme, shape, self.exact),
            tensors["layout"].data_ptr(),
            x.data_ptr(),
            None if bias is None else bias.data_ptr(),
            product.data_ptr(),
            workspace.data_ptr(),
            rows,
            x.stride(0),
            product.stride(0),
            native.threads(),
        )
        native.library().edgelm_multiply(ctypes.byref(call))
        if not direct:
            out.copy_(product)

    def lookup(self, ids: Tensor, tensors: Tensors, scheme: Scheme, out: Tensor) -> None:
        direct = out.dtype == torch.float32 and out.stride(1) == 1
        rows = out if direct else torch.empty(out.shape, dtype=torch.float32)
        ids = ids.contiguous()
        held = tensors["layout"].nbytes // _layout_bytes(scheme, (1, out.shape[1])) * _PANEL
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < held:
            found = f"{int(ids.min())}-{int(ids.max())}"
            raise QuantError(f"row ids {found} are out of range: the table has {held} rows")
        call = structs.RowLookup(
            # A row's place does not depend on the number of outputs.
            native.matrix(scheme, (1, out.shape[1])),
            tensors["layout"].data_ptr(),
            ids.data_ptr(),
            rows.data_ptr(),
            len(ids),
            rows.stride(0),
        )
        native.library().edgelm_lookup(ctypes.byref(call))
        if not direct:
            out.copy_(rows)

    def _workspace_bytes(self, scheme: Scheme, shape: Shape, rows: int) -> int:
        described = native.matrix(scheme, shape, self.exact)
        return int(native.library().edgelm_workspace_bytes(described, rows))


@cache
def _layout_bytes(scheme: Scheme, shape: Shape) -> int:
    return int(native.library().edgelm_layout_bytes(native.matrix(scheme, shape)))


def _check(x: Tensor, layout: Tensor, scheme: Scheme, bias: Tensor | None, out: Tensor) -> None:
    """Raise QuantError unless all sizes match: the library would read out of bounds."""
    shape = (out.shape[1], x.shape[1])
    wanted = _layout_bytes(scheme, shape)
    if layout.nbytes != wanted or not layout.is_contiguous():
        raise QuantError(
            f"a matrix {list(shape)} of {scheme} takes {wanted} contiguous bytes; the given layout "
            f"has {layout.nbytes}. Pass the tensors that prepare() returned, and x and out of "
            "matching sizes"
        )
    if len(out) != len(x) or (bias is not None and bias.shape != (shape[0],)):
        raise QuantError(
            f"x {list(x.shape)}, bias {None if bias is None else list(bias.shape)} and out "
            f"{list(out.shape)} do not match; allowed: [M, K], [N], [M, N]"
        )
