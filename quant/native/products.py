"""Matrix products and table lookups of the native library as calls, complementing ``ops``."""

from __future__ import annotations

from torch import Tensor

from ..scheme import Scheme
from . import library, matrix, structs, threads
from .ops import Call, address, stride


def linear(
    layout: Tensor, scheme: Scheme, x: Tensor, bias: Tensor | None, out: Tensor, workspace: Tensor,
    exact: bool = False,
) -> Call:  # fmt: skip
    """out [M, N] = x [M, K] times a matrix in ``NativeProduct``'s layout, plus bias [N].

    workspace: uint8, at least ``workspace_bytes``. exact: activations are not rounded.
    """
    shape = (out.shape[1], x.shape[1])
    assert workspace.numel() >= workspace_bytes(scheme, shape, x.shape[0], exact)
    struct = structs.Product(
        matrix(scheme, shape, exact), *map(address, (layout, x, bias, out, workspace)),
        x.shape[0], stride(x), stride(out), threads(),
    )  # fmt: skip
    return Call("edgelm_multiply", struct, (layout, x, bias, out, workspace))


def workspace_bytes(scheme: Scheme, shape: tuple[int, int], rows: int, exact: bool = False) -> int:
    """Bytes of ``linear``'s workspace for M rows and a matrix of shape [N, K]."""
    return int(library().edgelm_workspace_bytes(matrix(scheme, shape, exact), rows))


def embed(layout: Tensor, scheme: Scheme, ids: Tensor, out: Tensor) -> Call:
    """out [M, K] = rows ``ids`` [M] int64 of a matrix in ``NativeProduct``'s layout."""
    # A row's place does not depend on the number of outputs.
    struct = structs.RowLookup(
        matrix(scheme, (1, out.shape[1])), *map(address, (layout, ids, out)),
        len(ids), stride(out),
    )  # fmt: skip
    return Call("edgelm_lookup", struct, (layout, ids, out))
