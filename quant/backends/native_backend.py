"""The products of the native library: int4 and int8 in panels of 32 rows (native/src/layout.h).

Activations are rounded to 8 bits per group of inputs (of 32 where the weights have one scale
per row), the integers multiplied exactly, and groups summed in float32 in one order. Groups with
numbers that stand out are rounded twice, to 16 bits (native/src/activations.h). A row of the
result depends on its own row of activations alone, and is the same on every instruction set.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import native
from ..packing import PackedWeight
from ..scheme import Scheme
from .kernel import Shape, Tensors

# Products of Gaussian numbers agree with the reference's to this many dB: what rounding the
# activations to 8 bits leaves. Groups of 32 measure 46 dB, of 128 43.5 dB.
ACTIVATIONS_FLOOR_DB = 41.0


class NativeProduct:
    """Codes of `bits` bits, in groups or one scale per row, with any zeros and scales."""

    backend = "native"

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.name = f"native.int{bits}"

    def supports(
        self, scheme: Scheme, shape: Shape, device: torch.device, lookup: bool
    ) -> str | None:
        if scheme.bits != self.bits or scheme.codebook is not None:
            return f"holds int{self.bits}"
        if device.type != "cpu":
            return f"runs on CPUs, not on {device}"
        return native.missing()

    def prepare(self, packed: PackedWeight) -> Tensors:
        assert packed.scales is not None
        canonical = {name: t.contiguous() for name, t in packed.tensors().items()}
        layout = torch.empty(self.nbytes(packed.scheme, packed.shape), dtype=torch.uint8)
        zeros = canonical.get("zeros")
        native.library().edgelm_pack(
            native.matrix(packed.scheme, packed.shape),
            canonical["qweight"].data_ptr(),
            canonical["scales"].data_ptr(),
            None if zeros is None else zeros.data_ptr(),
            layout.data_ptr(),
            native.threads(),
        )
        return {"layout": layout}

    def nbytes(self, scheme: Scheme, shape: Shape) -> int:
        return int(native.library().edgelm_layout_bytes(native.matrix(scheme, shape)))

    def scratch_bytes(self, scheme: Scheme, shape: Shape, rows: int) -> int:
        # The rounded activations, and float32 copies of whatever is not float32.
        return _workspace_bytes(scheme, shape, rows) + 4 * (rows * sum(shape) + shape[0])

    def multiply(
        self, x: Tensor, tensors: Tensors, scheme: Scheme, bias: Tensor | None, out: Tensor
    ) -> None:
        rows, inputs = x.shape
        shape = (out.shape[1], inputs)
        x = x.float() if x.stride(1) == 1 else x.float().contiguous()
        bias = None if bias is None else bias.float()
        direct = out.dtype == torch.float32 and out.stride(1) == 1
        product = out if direct else torch.empty(out.shape, dtype=torch.float32)
        workspace = torch.empty(_workspace_bytes(scheme, shape, rows), dtype=torch.uint8)
        native.library().edgelm_multiply(
            native.matrix(scheme, shape),
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


def _workspace_bytes(scheme: Scheme, shape: Shape, rows: int) -> int:
    return int(native.library().edgelm_workspace_bytes(native.matrix(scheme, shape), rows))
