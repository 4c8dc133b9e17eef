"""The products of the native library, over panels of 32 rows (native/src/layout.h).

Activations are rounded to 8 bits per group of inputs (of 32 where the weights have one scale
per row), the integers multiplied exactly, and groups summed in float32 in one order. Groups with
numbers that stand out are rounded twice, to 16 bits (native/src/activations.h). The exact products
take float32 activations as they are, and are the only ones over weights of floats
(native/src/exact.h). A row of the result depends on its own row of activations alone, and is the
same on every instruction set.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from .. import native
from ..errors import QuantError
from ..packing import PackedWeight
from ..scheme import Scheme
from .kernel import Shape, Tensors

# Products of Gaussian numbers agree with the reference's to this many dB: what rounding the
# activations to 8 bits leaves. Groups of 32 measure 46 dB, of 128 43.5 dB.
ACTIVATIONS_FLOOR_DB = 41.0
_PANEL = 32  # rows that lie together; those beyond the last are zeros


class NativeProduct:
    """One kind of weights, with any groups, zeros and scales.

    kind: "int4", "int8", "nf4", "fp4" or "float", which has the three float types. exact: float32
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
            return f"holds {self.kind}" if self.kind != "float" else "holds floats"
        if device.type != "cpu":
            return f"runs on CPUs, not on {device}"
        missing = native.missing()
        if missing is None:
            native.library()  # raises where EDGELM_ISA is wrong: not what is passed over in silence
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
        native.library().edgelm_multiply(
            native.matrix(scheme, shape, self.exact),
            tensors["layout"].data_ptr(),
            x.data_ptr(),
            rows,
            x.stride(0),
            None if bias is None else bias.data_ptr(),
            product.data_ptr(),
            product.stride(0),
            workspace.data_ptr(),
            native.threads(),
        )
        if not direct:
            out.copy_(product)

    def lookup(self, ids: Tensor, tensors: Tensors, scheme: Scheme, out: Tensor) -> None:
        direct = out.dtype == torch.float32 and out.stride(1) == 1
        rows = out if direct else torch.empty(out.shape, dtype=torch.float32)
        ids = ids.contiguous()
        held = tensors["layout"].nbytes // _layout_bytes(scheme, (1, out.shape[1])) * _PANEL
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < held:
            raise QuantError(f"rows {int(ids.min())} to {int(ids.max())} asked of {held} rows")
        native.library().edgelm_lookup(
            # The number of outputs plays no part in where a row lies.
            native.matrix(scheme, (1, out.shape[1])),
            tensors["layout"].data_ptr(),
            ids.data_ptr(),
            len(ids),
            rows.data_ptr(),
            rows.stride(0),
        )
        if not direct:
            out.copy_(rows)

    def _workspace_bytes(self, scheme: Scheme, shape: Shape, rows: int) -> int:
        described = native.matrix(scheme, shape, self.exact)
        return int(native.library().edgelm_workspace_bytes(described, rows))


@cache
def _layout_bytes(scheme: Scheme, shape: Shape) -> int:
    return int(native.library().edgelm_layout_bytes(native.matrix(scheme, shape)))


def _check(x: Tensor, layout: Tensor, scheme: Scheme, bias: Tensor | None, out: Tensor) -> None:
    """QuantError unless all sizes belong together: the library itself would read beyond them."""
    shape = (out.shape[1], x.shape[1])
    wanted = _layout_bytes(scheme, shape)
    if layout.nbytes != wanted or not layout.is_contiguous():
        raise QuantError(
            f"a matrix {list(shape)} of {scheme} takes {wanted} bytes in one piece; the layout "
            f"given has {layout.nbytes}. Give the tensors that prepare() made, and x and out of "
            "their sizes"
        )
    if len(out) != len(x) or (bias is not None and bias.shape != (shape[0],)):
        raise QuantError(
            f"x {list(x.shape)}, bias {None if bias is None else list(bias.shape)} and out "
            f"{list(out.shape)} do not belong together; allowed: [M, K], [N], [M, N]"
        )
